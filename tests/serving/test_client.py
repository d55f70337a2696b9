"""The client of a running service."""

from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.serving.page_service import PageBackend, picture, serving
from ureca.serving.client import caption_regions, largest_regions
from ureca.serving.schemas import ApiError


def test_client_captions_the_largest_regions(tmp_path: Path) -> None:
    Image.fromarray(picture()[0]).save(tmp_path / "a.png")
    backend = PageBackend()
    with serving(backend) as address:
        regions = largest_regions(address, tmp_path / "a.png", 3)
        assert [region["region_id"] for region in regions] == [1, 2, 5]
        said = ["The left yellow thing.", "The left blue thing.", "The right blue thing."]
        assert caption_regions(address, tmp_path / "a.png", [regions[index]["rle"] for index in (2, 0, 1)]) == said
        backend.api_error = ApiError(429, "queue_full", "full", retry_after_s=1)
        with pytest.raises(httpx2.HTTPStatusError, match="429"):
            largest_regions(address, tmp_path / "a.png", 3)
