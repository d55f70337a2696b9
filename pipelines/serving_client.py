"""Asking a running service, as its clients do."""

import json
from pathlib import Path

import httpx2

_TIMEOUT_S = 300.0


def largest_captions(address: str, image: Path, num_regions: int) -> list[str | None]:
    """Captions of the largest regions that the service finds in an image, from the largest.

    Args:
        address: of the service, such as http://127.0.0.1:8765.
        image: an image file.
        num_regions: the most that are captioned.

    Raises:
        httpx2.HTTPError: the service does not answer, or refuses.
    """
    file = {"image": (image.name, image.read_bytes())}
    with httpx2.Client(base_url=address, timeout=_TIMEOUT_S, trust_env=False) as client:
        found = client.post("/v1/regions", files=file).raise_for_status().json()["regions"]
        largest = sorted(found, key=lambda region: -region["area_px"])[:num_regions]
        if not largest:
            return []
        asked = {"regions": [{"rle": region["rle"]} for region in largest]}
        answer = client.post("/v1/captions", files=file, data={"request": json.dumps(asked)})
        return [item["caption"] for item in answer.raise_for_status().json()["captions"]]
