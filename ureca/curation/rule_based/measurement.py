"""Measurements of the regions of an image: colours, texture, shape, location and spans."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.curation.protocols import CurationImage
from ureca.curation.rule_based.cache import IdentityCache
from ureca.curation.rule_based.colours import Colours, lightness_of, measure_colours, name_colours
from ureca.curation.rule_based.relations import Spans
from ureca.curation.rule_based.shapes import Shape, Texture, measure_shape, measure_texture
from ureca.curation.rule_based.vocabulary import Rule, Vocabulary, noun_of
from ureca.masks import rle as rle_codec

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""


@dataclass(frozen=True, slots=True)
class RegionLocation:
    """Location of a region in a frame: the image, or the box of its parent. All values are fractions of the frame.

    Attributes:
        x: centre of mass, 0 (left) to 1 (right).
        y: centre of mass, 0 (top) to 1 (bottom).
        width: width of the region's box.
        height: height of the region's box.
        gap_left, gap_top, gap_right, gap_bottom: distances between the sides of the region's box and of the frame.
        covered: area of the region over that of the image or the parent.
        in_image: True if the frame is the image.
    """

    x: float
    y: float
    width: float
    height: float
    gap_left: float
    gap_top: float
    gap_right: float
    gap_bottom: float
    covered: float
    in_image: bool


def locate(
    box: Box, centre_xy_px: tuple[float, float], frame: Box, *, covered: float, in_image: bool
) -> RegionLocation:
    """Locate a region in a frame.

    Args:
        box: box of the region.
        centre_xy_px: centre of mass of the region.
        frame: box of the parent or of the image.
        covered: area of the region over that of the parent or image.
        in_image: True if the frame is the image.
    """
    width, height = max(frame[2] - frame[0], 1.0), max(frame[3] - frame[1], 1.0)
    return RegionLocation(
        x=(centre_xy_px[0] - frame[0]) / width,
        y=(centre_xy_px[1] - frame[1]) / height,
        width=(box[2] - box[0]) / width,
        height=(box[3] - box[1]) / height,
        gap_left=(box[0] - frame[0]) / width,
        gap_top=(box[1] - frame[1]) / height,
        gap_right=(frame[2] - box[2]) / width,
        gap_bottom=(frame[3] - box[3]) / height,
        covered=covered,
        in_image=in_image,
    )


_Measure = Callable[[RegionLocation], float]
_EDGES: dict[str, tuple[_Measure, _Measure, _Measure]] = {
    "bottom": (lambda location: location.gap_bottom, lambda location: location.width, lambda location: 1 - location.y),
    "top": (lambda location: location.gap_top, lambda location: location.width, lambda location: location.y),
    "left": (lambda location: location.gap_left, lambda location: location.height, lambda location: location.x),
    "right": (lambda location: location.gap_right, lambda location: location.height, lambda location: 1 - location.x),
}
"""Gap to an edge, extent along it, and distance of the centre of mass from it, by edge."""


def _touches(edge: str, location: RegionLocation, slack: float) -> bool:
    return _EDGES[edge][0](location) <= 0.01 + 0.2 * slack


def _along(edge: str) -> Rule[RegionLocation]:
    gap, extent, distance = _EDGES[edge]
    return lambda location, slack: (
        gap(location) <= 0.01 + 0.2 * slack
        and extent(location) >= 0.6 - 2 * slack
        and distance(location) <= 0.3 + slack
    )


def _third(value: float, third: int, slack: float) -> bool:
    low, high = ((-1.0, 0.36), (0.36, 0.64), (0.64, 2.0))[third]
    return low - slack <= value <= high + slack


def _cell(column: int, row: int) -> Rule[RegionLocation]:
    return lambda location, slack: _third(location.x, column, slack) and _third(location.y, row, slack)


def _end(vertical: str) -> Rule[RegionLocation]:
    """Accept the middle third at the top or at the bottom, where the region reaches close to that edge."""
    cell = _cell(1, 0 if vertical == "top" else 2)
    return lambda location, slack: cell(location, slack) and _EDGES[vertical][0](location) <= 0.1 + 2 * slack


def _corner(horizontal: str, vertical: str) -> Rule[RegionLocation]:
    cell = _cell(0 if horizontal == "left" else 2, 0 if vertical == "top" else 2)
    return lambda location, slack: (
        location.in_image
        and _touches(horizontal, location, slack)
        and _touches(vertical, location, slack)
        and cell(location, slack)
    )


LOCATIONS = Vocabulary[RegionLocation](
    {
        "covering nearly all of": lambda location, slack: location.covered >= 0.9 - slack,
        "reaching all four edges of": lambda location, slack: (
            location.in_image and all(_touches(edge, location, slack) for edge in _EDGES)
        ),
        "covering most of": lambda location, slack: location.covered >= 0.55 - slack,
        "along the bottom edge of": _along("bottom"),
        "along the top edge of": _along("top"),
        "along the left edge of": _along("left"),
        "along the right edge of": _along("right"),
        "in the upper left corner of": _corner("left", "top"),
        "in the upper right corner of": _corner("right", "top"),
        "in the lower left corner of": _corner("left", "bottom"),
        "in the lower right corner of": _corner("right", "bottom"),
        "in the upper left of": _cell(0, 0),
        "at the top of": _end("top"),
        "in the upper part of": _cell(1, 0),
        "in the upper right of": _cell(2, 0),
        "on the left side of": _cell(0, 1),
        "in the centre of": _cell(1, 1),
        "on the right side of": _cell(2, 1),
        "in the lower left of": _cell(0, 2),
        "at the bottom of": _end("bottom"),
        "in the lower part of": _cell(1, 2),
        "in the lower right of": _cell(2, 2),
    }
)
"""At least one fits every region. Each is followed by the frame: "the image", "the red strip"."""


_EXTENTS = {
    "three quarters": 0.75,
    "two thirds": 0.667,
    "three fifths": 0.6,
    "half": 0.5,
    "two fifths": 0.4,
    "a third": 0.333,
    "a quarter": 0.25,
    "a fifth": 0.2,
    "a sixth": 0.167,
    "an eighth": 0.125,
    "a tenth": 0.1,
    "a fifteenth": 0.067,
    "a twentieth": 0.05,
    "a thirtieth": 0.033,
    "a fiftieth": 0.02,
}
_MIN_STATED = 0.015  # smaller shares are stated by sizes
_EXTENT_TOLERANCE = 1.4
EXTENT_PATTERN = rf"(?:{'|'.join(_EXTENTS)}|\d+%)"


def extent(covered: float) -> str | None:
    """Name a share of the image, 0 to 1, by the nearest fraction, "a quarter"; None for very small ones."""
    if covered < _MIN_STATED:
        return None
    return min(_EXTENTS, key=lambda word: max(_EXTENTS[word] / covered, covered / _EXTENTS[word]))


def fits_extent(stated: str, covered: float) -> bool:
    """Return True if a share of the image is about the stated one, a result of ``extent`` or a percentage."""
    share = _EXTENTS.get(stated) or int(stated.removesuffix("%")) / 100
    return share / _EXTENT_TOLERANCE <= covered <= share * _EXTENT_TOLERANCE


_AT_EDGE, _NEAR_EDGE, _OFF_CENTRE = 0.03, 0.1, 0.08
_FRACTIONS = {"a tenth": 0.1, "a fifth": 0.2, "a quarter": 0.25, "a third": 0.333, "two fifths": 0.4}
_FAR_FRACTIONS = {"three fifths": 0.6, "two thirds": 0.667, "three quarters": 0.75, "four fifths": 0.8}
_EXACT = ("just", "a tenth", "two fifths", "three fifths", "nine tenths")
"""Beginnings of words that are said only where rougher ones, such as "slightly above centre", are not enough."""
_BESIDE = 0.03  # "just over a third"
_WAY_TOLERANCE = 0.08
_CLOSE_TOLERANCE = 0.04


def _ways(ends: Sequence[str], sides: Sequence[str], halfway: str, inner: Mapping[str, float]) -> dict[str, float]:
    """Name points on an axis, 0 to 1, by their distances from its ends; ``just over`` and ``just under`` are close."""
    (start, end), (before, after) = ends, sides
    named = {
        f"close to the {start} edge": _AT_EDGE,
        f"near the {start} edge": _NEAR_EDGE,
        **inner,
        f"slightly {before} centre": 0.5 - _OFF_CENTRE,
        halfway: 0.5,
        f"slightly {after} centre": 0.5 + _OFF_CENTRE,
        f"near the {end} edge": 1 - _NEAR_EDGE,
        f"close to the {end} edge": 1 - _AT_EDGE,
    }
    for words, value in {**inner, halfway: 0.5}.items():
        step = -_BESIDE if words.endswith("from the right") else _BESIDE
        named |= {f"just over {words}": value + step, f"just under {words}": value - step}
    return named


_ACROSS = _ways(
    ("left", "right"),
    ("left of", "right of"),
    "halfway across",
    {f"{words} of the way from the left": value for words, value in _FRACTIONS.items()}
    | {f"{words} of the way from the right": 1 - value for words, value in _FRACTIONS.items()},
)
_DOWN = _ways(
    ("top", "bottom"),
    ("above", "below"),
    "halfway down",
    {
        f"{words} of the way down": value
        for words, value in (_FRACTIONS | _FAR_FRACTIONS | {"nine tenths": 0.9}).items()
    },
)
_WAY = " of the way"
"""Words that are said once for both axes: "a quarter of the way from the left and three fifths down"."""
_DOWN_IN_ANY_FORM = _DOWN | {words.replace(_WAY, ""): value for words, value in _DOWN.items()}
POINT_PATTERN = rf"(?:(?P<across>{'|'.join(_ACROSS)})|(?P<down>{'|'.join(_DOWN_IN_ANY_FORM)}))(?! of)"


def points(location: RegionLocation) -> Iterator[str]:
    """Name the centre of a region in the image, from the shortest words to the closest ones.

    By one axis, "near the left edge", at first that in which it is farther from the centre; then by both, "near the
    left edge and halfway down", with "of the way" once; then with "just over" and "just under".
    """

    def nearest(ways: Mapping[str, float], value: float, closely: bool) -> str:
        return min(
            (words for words in ways if not words.startswith("slightly" if closely else _EXACT)),
            key=lambda words: abs(ways[words] - value),
        )

    across, down = nearest(_ACROSS, location.x, False), nearest(_DOWN, location.y, False)
    yield from (across, down) if abs(location.x - 0.5) >= abs(location.y - 0.5) else (down, across)
    closest = nearest(_ACROSS, location.x, True), nearest(_DOWN, location.y, True)
    for x, y in ((across, down), closest):
        yield f"{x} and {y.replace(_WAY, '') if _WAY in x else y}"


def fits_point(words: str, location: RegionLocation, *, slack: float = 1.0) -> bool:
    """Return True if the centre of a region is about where words of ``points`` say; ``slack`` scales the tolerance."""
    for part in words.split(" and "):
        value, stated = (location.x, _ACROSS[part]) if part in _ACROSS else (location.y, _DOWN_IN_ANY_FORM[part])
        if abs(stated - value) > slack * (_CLOSE_TOLERANCE if part.startswith("just") else _WAY_TOLERANCE):
            return False
    return True


def within_it(location: str) -> str:
    """Refer to the frame by "it": "in the centre of" becomes "in its centre"."""
    return location.removesuffix(" of").replace(" the ", " its ") if " the " in location else f"{location} it"


_MAIN_PART_FRACTION = 0.55  # of a region's area, from which a part covers most of it
_MAX_BLOCK_PX = 8
_SIDE_PX = 128
"""Longest side at which a region is measured, enough for colour, texture and outline."""


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """Measurements of one region.

    Attributes:
        parent_id: id of the region that contains it; None for a main object.
        child_ids: ids of its parts, largest first.
        box: bounding box, in pixels of the image.
        centre_xy_px: centre of mass, in pixels of the image.
        colours: colours of its pixels.
        texture: texture of its pixels.
        shape: shape of its mask.
        in_image: location in the image.
        in_parent: location in its parent's box; None for a main object.
        spans: its ends along rows and columns of the image.
        category: noun of its class in the annotation file; None: it has none.
    """

    parent_id: int | None
    child_ids: tuple[int, ...]
    box: Box
    centre_xy_px: tuple[float, float]
    colours: Colours
    texture: Texture
    shape: Shape
    in_image: RegionLocation
    in_parent: RegionLocation | None
    spans: Spans
    category: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Appearance:
    """Measurements of the pixels of one region.

    Attributes:
        centre_xy_px: centre of mass, in pixels from the upper left corner of the region's box.
        colours: colours of its pixels.
        texture: texture of its pixels.
        shape: shape of its mask.
    """

    centre_xy_px: tuple[float, float]
    colours: Colours
    texture: Texture
    shape: Shape


def parts_of(id: int, measured: Mapping[int, Measurement]) -> list[int]:
    """Return the parts of a region, the largest first.

    A part without class that covers most of the region and has its colour is no news: its own parts take its place.
    """
    parts: list[int] = []
    waiting = list(measured[id].child_ids)
    while waiting:
        part = waiting.pop()
        if part not in measured:
            continue
        own, its = (name_colours(measured[each].colours) for each in (id, part))
        looks_like_it = own[0].split()[-1] == its[0].split()[-1] or set(own) == set(its)
        covers_most = measured[part].shape.area_px >= _MAIN_PART_FRACTION * measured[id].shape.area_px
        if looks_like_it and covers_most and measured[part].category is None:
            waiting.extend(measured[part].child_ids)
        else:
            parts.append(part)
    return sorted(parts, key=lambda part: -measured[part].shape.area_px)


def measure_regions(image: CurationImage) -> dict[int, Measurement]:
    """Measure every region with at least one pixel, in the order of ``image.regions``."""
    height, width = image.pixels.shape[:2]
    regions, main_objects = set(image.regions), set(image.main_objects)
    measured: dict[int, Measurement] = {}
    for id in image.regions:
        if rle_codec.area_px(image.masks[id].rle) == 0:
            continue
        box = _box(image, id)
        looks, spans = _appearance_and_spans(image, id)
        centre = (box[0] + looks.centre_xy_px[0], box[1] + looks.centre_xy_px[1])
        parent_id = image.tree.parents[id] if id not in main_objects else None
        in_parent = None
        if parent_id is not None:
            covered = looks.shape.area_px / rle_codec.area_px(image.masks[parent_id].rle)
            in_parent = locate(box, centre, _box(image, parent_id), covered=covered, in_image=False)
        measured[id] = Measurement(
            parent_id=parent_id,
            child_ids=tuple(child for child in image.tree.children[id] if child in regions),
            box=box,
            centre_xy_px=centre,
            colours=looks.colours,
            texture=looks.texture,
            shape=looks.shape,
            in_image=locate(box, centre, (0, 0, width, height), covered=looks.shape.area_fraction, in_image=True),
            in_parent=in_parent,
            spans=spans,
            category=noun_of(image.masks[id].category),
        )
    return measured


def region_appearance(image: CurationImage, id: int) -> Appearance:
    """Return the measurements of a region's pixels, taken once for all components that ask for them.

    Masks are decoded one at a time and large regions are reduced, so that memory does not grow with the number of
    regions.

    Args:
        image: image of the region.
        id: id of a mask with at least one pixel.
    """
    return _appearance_and_spans(image, id)[0]


def _appearance_and_spans(image: CurationImage, id: int) -> tuple[Appearance, Spans]:
    known = _APPEARANCES.get_blocking(image)
    if id not in known:
        left, top, right, bottom = (int(side) for side in _box(image, id))
        inside = rle_codec.decode_box(image.masks[id].rle, left, top, right, bottom) != 0
        height, width = image.pixels.shape[:2]
        looks = measure_appearance(image.pixels[top:bottom, left:right], inside, height * width)
        known[id] = looks, Spans.of(inside, left, top, (width, height))
    return known[id]


_APPEARANCES: IdentityCache[CurationImage, dict[int, tuple[Appearance, Spans]]] = IdentityCache(lambda _: {})


def measure_appearance(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], image_size_px: int | None = None
) -> Appearance:
    """Measure the pixels of a region.

    Args:
        pixels: crop of the region's box, uint8 RGB [h, w, 3].
        mask: bool [h, w], with at least one pixel.
        image_size_px: number of pixels of the image; None: that of the crop.
    """
    area_px = int(np.count_nonzero(mask))
    pixels, mask, reduction = reduce_region(pixels, mask)
    y, x = np.nonzero(mask)
    own = pixels[mask]
    lightness = np.zeros(mask.shape, np.float32)
    lightness[mask] = lightness_of(own)
    return Appearance(
        centre_xy_px=((float(x.mean()) + 0.5) * reduction, (float(y.mean()) + 0.5) * reduction),
        colours=measure_colours(own, ((x + 0.5) / mask.shape[1], (y + 0.5) / mask.shape[0])),
        texture=measure_texture(lightness, mask),
        shape=measure_shape(mask, area_px, area_px / (image_size_px or mask.size * reduction**2)),
    )


def _box(image: CurationImage, id: int) -> Box:
    x, y, width, height = rle_codec.box_xywh(image.masks[id].rle)
    return x, y, x + width, y + height


def reduce_region(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], int]:
    """Reduce a region by averaging over square blocks so that no side exceeds 128 pixels.

    Pixels outside of the mask do not contribute to blocks that are partly inside. Of blocks larger than 8 x 8 pixels,
    every second, third ... row and column is averaged, so that the cost does not grow with the size of a photograph.

    Args:
        pixels: uint8 RGB [h, w, 3].
        mask: bool [h, w].

    Returns:
        Reduced pixels, reduced mask, and the side of a block in pixels.
    """
    import cv2

    reduction = ceil(max(mask.shape) / _SIDE_PX)
    if reduction == 1:
        return pixels, mask, 1
    step = ceil(reduction / _MAX_BLOCK_PX)
    thinned = mask[::step, ::step]
    if step > 1 and np.count_nonzero(thinned) * step * step < np.count_nonzero(mask) / 2:
        step, thinned = 1, mask  # a region of thin lines
    reduction = step * ceil(reduction / step)
    weights = np.where(thinned, np.uint8(255), np.uint8(0))
    coverage = _reduced(weights, reduction // step)
    # A line thinner than a block covers no block to a half: the blocks with the highest coverage represent it.
    inside = coverage >= min(128, int(coverage.max()) // 2 + 1)
    colours = np.ascontiguousarray(pixels[::step, ::step])
    averages = _reduced(colours, reduction // step)
    mixed = inside & (coverage < 255)
    own = _reduced(np.asarray(cv2.copyTo(colours, weights), np.uint8), reduction // step)
    shares = np.maximum(coverage[mixed], 1)[:, None]
    averages[mixed] = np.minimum(255, own[mixed].astype(np.float32) * 255 / shares).astype(np.uint8)
    return averages, inside, reduction


def _reduced(pixels: npt.NDArray[np.uint8], reduction: int) -> npt.NDArray[np.uint8]:
    return np.array(Image.fromarray(pixels).reduce(reduction))
