"""Client of a running service."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TIMEOUT_S = 300.0


def largest_regions(address: str, image: Path, num_regions: int) -> list[dict[str, Any]]:
    """Return the largest regions that the service finds in an image, largest first, as JSON objects.

    Args:
        address: base URL of the service, such as http://127.0.0.1:8765.
        image: image file.
        num_regions: maximum number of regions.

    Raises:
        httpx2.HTTPError: the service is unreachable, or responds with an error.
    """
    found: list[dict[str, Any]] = _post(address, "regions", image, {})["regions"]
    return sorted(found, key=lambda region: -region["area_px"])[:num_regions]


def caption_regions(address: str, image: Path, rles: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Return the captions of regions of an image, in order.

    Args:
        address: base URL of the service.
        image: image file.
        rles: Non-empty masks of the image's size in COCO run-length encoding.

    Raises:
        httpx2.HTTPError: the service is unreachable, or responds with an error.
    """
    response = _post(address, "captions", image, {"regions": [{"rle": dict(rle)} for rle in rles]})
    return [item["caption"] for item in response["captions"]]


def _post(address: str, path: str, image: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    import httpx2

    files, form = {"image": (image.name, image.read_bytes())}, {"request": json.dumps(request)}
    url = f"{address.rstrip('/')}/v1/{path}"
    response = httpx2.post(url, files=files, data=form, timeout=_TIMEOUT_S, trust_env=False)
    body: dict[str, Any] = response.raise_for_status().json()
    return body
