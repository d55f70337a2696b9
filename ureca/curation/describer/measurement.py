"""Everything that is measured of the regions of an image, one region at a time."""

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.curation.describer.colours import Colours, measure_colours, to_oklab
from ureca.curation.describer.places import Box, Place, locate
from ureca.curation.describer.shapes import Shape, measure_shape
from ureca.curation.describer.texture import Texture, measure_texture
from ureca.curation.image import CurationImage
from ureca.regions import rle as rle_codec

_SIDE_PX = 128
"""Longest side at which a region is looked at: what matters of colour, texture and outline is visible there."""


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """What the pixels of one region prove.

    Attributes:
        parent_id: the region that it is part of; None for a main object.
        child_ids: regions that are part of it, largest first.
        box: in pixels of the image.
        centre_xy_px: centre of mass, in pixels of the image.
        in_image: its place in the image.
        in_parent: its place in its parent's box; None for a main object.
    """

    parent_id: int | None
    child_ids: tuple[int, ...]
    box: Box
    centre_xy_px: tuple[float, float]
    colours: Colours
    texture: Texture
    shape: Shape
    in_image: Place
    in_parent: Place | None


def measure_regions(image: CurationImage) -> dict[int, Measurement]:
    """Measure every region with at least one pixel, in the order of ``image.regions``.

    Masks are decoded one after another and large regions are looked at in reduced size, so memory does not grow with
    the number of regions.
    """
    height, width = image.pixels.shape[:2]
    regions = set(image.regions)
    measured: dict[int, Measurement] = {}
    for id in image.regions:
        area_px = rle_codec.area_px(image.masks[id].rle)
        if area_px == 0:
            continue
        box = _box(image, id)
        left, top, right, bottom = (int(side) for side in box)
        inside = slice(top, bottom), slice(left, right)
        pixels, mask, reduction = look_at(image.pixels[inside], image.masks[id].decode()[inside])
        y, x = np.nonzero(mask)
        centre = (box[0] + (float(x.mean()) + 0.5) * reduction, box[1] + (float(y.mean()) + 0.5) * reduction)
        parent_id = image.tree.parents[id] if id not in image.main_objects else None
        in_parent = None
        if parent_id is not None:
            covered = area_px / rle_codec.area_px(image.masks[parent_id].rle)
            in_parent = locate(box, centre, _box(image, parent_id), covered=covered, in_image=False)
        area_fraction = area_px / (height * width)
        measured[id] = Measurement(
            parent_id=parent_id,
            child_ids=tuple(child for child in image.tree.children[id] if child in regions),
            box=box,
            centre_xy_px=centre,
            colours=measure_colours(pixels[mask]),
            texture=measure_texture(to_oklab(pixels / 255)[..., 0], mask),
            shape=measure_shape(mask, area_px, area_fraction),
            in_image=locate(box, centre, (0, 0, width, height), covered=area_fraction, in_image=True),
            in_parent=in_parent,
        )
    return measured


def _box(image: CurationImage, id: int) -> Box:
    x, y, width, height = rle_codec.box_xywh(image.masks[id].rle)
    return x, y, x + width, y + height


def look_at(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], int]:
    """Pixels [h, w, 3] and mask [h, w] of a region, averaged over square blocks so that no side exceeds 128.

    Returns:
        both, reduced, and the side of a block in pixels.
    """
    reduction = ceil(max(mask.shape) / _SIDE_PX)
    coverage = _reduced(mask.view(np.uint8) * np.uint8(255), reduction)
    # A line thinner than a block covers half of none: what it covers most stands for it.
    inside = coverage >= min(128, int(coverage.max()) // 2 + 1)
    return _reduced(pixels, reduction), inside, reduction


def _reduced(pixels: npt.NDArray[Any], reduction: int) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(reduction))
