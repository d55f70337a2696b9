"""Asking a running service, as its clients do."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

_TIMEOUT_S = 300.0


def largest_regions(address: str, image: Path, num_regions: int) -> list[dict[str, Any]]:
    """The largest regions that the service finds in an image, from the largest, as it answers them.

    Args:
        address: of the service, such as http://127.0.0.1:8765.
        image: an image file.
        num_regions: at most.

    Raises:
        httpx2.HTTPError: the service does not answer, or refuses.
    """
    found: list[dict[str, Any]] = _post(address, "regions", image, {})["regions"]
    return sorted(found, key=lambda region: -region["area_px"])[:num_regions]


def captions(address: str, image: Path, rles: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Captions of regions of an image, in order.

    Args:
        address: of the service.
        image: an image file.
        rles: COCO's run lengths, each of the image's size and with at least one pixel.

    Raises:
        httpx2.HTTPError: the service does not answer, or refuses.
    """
    answer = _post(address, "captions", image, {"regions": [{"rle": dict(rle)} for rle in rles]})
    return [item["caption"] for item in answer["captions"]]


def _post(address: str, path: str, image: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    file, form = {"image": (image.name, image.read_bytes())}, {"request": json.dumps(request)}
    url = f"{address.rstrip('/')}/v1/{path}"
    answer = httpx2.post(url, files=file, data=form, timeout=_TIMEOUT_S, trust_env=False)
    body: dict[str, Any] = answer.raise_for_status().json()
    return body
