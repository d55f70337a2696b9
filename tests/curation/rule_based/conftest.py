"""Drawn images: a grey canvas of 200 x 300 pixels on which shapes are painted through their masks."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from ureca.curation.protocols import CurationImage
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views

BoolMask = npt.NDArray[np.bool_]


class Canvas:
    """Draws masks bool [height, width]; coordinates are in pixels, angles counter-clockwise."""

    def __init__(self, height: int = 200, width: int = 300) -> None:
        self.y, self.x = np.mgrid[:height, :width]

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float | None = None) -> BoolMask:
        return ((self.x - x) / radius_x) ** 2 + ((self.y - y) / (radius_y or radius_x)) ** 2 <= 1

    def rectangle(self, left: int, top: int, right: int, bottom: int) -> BoolMask:
        return (self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < bottom)

    def bar(self, x: float, y: float, length: float, width: float, angle_deg: float) -> BoolMask:
        angle = np.radians(angle_deg)
        along = (self.x - x) * np.cos(angle) - (self.y - y) * np.sin(angle)
        across = (self.x - x) * np.sin(angle) + (self.y - y) * np.cos(angle)
        return (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)


def make_image(pixels: npt.NDArray[np.uint8], masks: Sequence[BoolMask]) -> CurationImage:
    """All masks are regions; ids count from 1 in the order given."""
    by_id = {id: Mask.from_array(id, mask) for id, mask in enumerate(masks, start=1)}
    tree = MaskTree.build(list(by_id.values()))
    return CurationImage(
        pixels=pixels,
        masks=by_id,
        tree=tree,
        main_objects=tuple(tree.children[ROOT]),
        regions=tuple(tree.walk()),
        views=Views(pixels, by_id),
    )


def paint(*layers: tuple[BoolMask, str]) -> npt.NDArray[np.uint8]:
    """uint8 [200, 300, 3], grey where nothing is painted; colours are hexadecimal sRGB."""
    pixels = np.full((200, 300, 3), 136, np.uint8)
    for mask, colour in layers:
        pixels[mask] = list(bytes.fromhex(colour))
    return pixels


@pytest.fixture(scope="session")
def canvas() -> Canvas:
    return Canvas()


@pytest.fixture(scope="session")
def image_of() -> Callable[[npt.NDArray[np.uint8], Sequence[BoolMask]], CurationImage]:
    return make_image


@pytest.fixture(scope="session")
def painted() -> Callable[..., npt.NDArray[np.uint8]]:
    return paint
