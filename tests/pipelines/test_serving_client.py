"""What the demo asks a service."""

from pathlib import Path

import httpx2
import pytest
from PIL import Image

from pipelines.serving_client import largest_captions
from tests.serving.page_service import PageBackend, picture, serving
from ureca.serving.refusal import Refusal


def test_the_largest_regions_of_an_image_are_captioned(tmp_path: Path) -> None:
    Image.fromarray(picture()[0]).save(tmp_path / "a.png")
    backend = PageBackend()
    with serving(backend) as address:
        captions = ["The left blue thing.", "The right blue thing.", "The left yellow thing."]
        assert largest_captions(address, tmp_path / "a.png", 3) == captions
        backend.refusal = Refusal(429, "queue_full", "full", retry_after_s=1)
        with pytest.raises(httpx2.HTTPStatusError, match="429"):
            largest_captions(address, tmp_path / "a.png", 3)
