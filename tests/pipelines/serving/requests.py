"""Requests and responses of the service, for tests."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from tests.serving.local import scene
from ureca.images import Pixels


def file_of(pixels: np.ndarray, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def base64_of(pixels: np.ndarray) -> str:
    return base64.b64encode(file_of(pixels)).decode()


def with_alpha(pixels: Pixels, inside: np.ndarray) -> str:
    """Encode an image with a mask as its alpha channel to a data: URL."""
    return "data:image/png;base64," + base64_of(np.dstack([pixels, inside.astype(np.uint8) * 255]))


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:60, :90]
    inside: np.ndarray = (rows - 20) ** 2 + (columns - 20) ** 2 <= 14**2
    return inside


def square() -> np.ndarray:
    inside = np.zeros((60, 90), np.bool_)
    inside[34:54, 44:60] = True
    return inside


IMAGE = base64_of(scene())
DISC = {"mask_png": base64_of(disc())}
SQUARE = {"polygon": [[44, 34, 60, 34, 60, 54, 44, 54]]}


def request(*regions: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"image": IMAGE, "regions": list(regions), **rest}


def events_of(text: str) -> list[tuple[str, str]]:
    """Parse server-sent events to names and data."""
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), data.removeprefix("data: ")) for name, data in blocks]
