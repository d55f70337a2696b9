"""From what a request holds to pixels and masks, whoever wrote it."""

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ureca.errors import ImageError
from ureca.images import ImageLimits, Pixels, decode_layers
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.masks.rle import Rle
from ureca.serving.schemas import ApiError, RegionRequest
from ureca.serving.settings import ServingLimits

_MAX_OUTLINES = 50
"""Of a region, in perimeters of the image: the rasteriser walks every pixel of a polygon's outline."""


@dataclass(frozen=True)
class GivenRegions:
    """The regions of a request.

    Attributes:
        ids: of all of them, in order.
        masks: those that were given as masks, by id.
        prompts: boxes and points, by id.
        fields: where each is in the request, by id, for messages.
    """

    ids: tuple[int, ...]
    masks: dict[int, Mask]
    prompts: dict[int, Prompt]
    fields: dict[int, str]


def read_base64(text: str, param: str) -> bytes:
    """The bytes of base64 text, or of a ``data:`` URL.

    Raises:
        Refusal: 422 ``not_base64``.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ApiError(422, "not_base64", "a data: URL has the form data:image/png;base64,...", param=param)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(422, "not_base64", f"not base64: {error}", param=param) from error


def read_image(data: bytes, limits: ImageLimits, param: str) -> tuple[Pixels, Pixels | None]:
    """Colours uint8 [H, W, 3] and alpha uint8 [H, W] (None: the file has none) of an image file.

    Raises:
        Refusal: 422, the code is the kind of the ``ImageError``.
    """
    try:
        return decode_layers(data, limits)
    except ImageError as error:
        raise ApiError.of_data(error, param) from error


def read_regions(regions: Sequence[RegionRequest], size: tuple[int, int], limits: ServingLimits) -> GivenRegions:
    """Check and decode the regions of a request to an image of this size, (height, width) in pixels.

    Raises:
        Refusal: 422 ``too_many_regions``, ``too_many_pixels`` (of all masks together), ``duplicate_ids``,
            ``malformed``, ``size_mismatch``, ``empty_mask``, ``outside`` (a prompt that is not in the image), or a
            kind of ``ImageError``.
    """
    check_number(len(regions), size, limits)
    ids = _ids(regions)
    fields = {id: f"regions[{index}]" for index, id in enumerate(ids)}
    masks: dict[int, Mask] = {}
    prompts: dict[int, Prompt] = {}
    for id, region in zip(ids, regions, strict=True):
        if region.is_prompt:
            prompts[id] = _prompt(region, size, fields[id])
        else:
            masks[id] = mask_of(id, _rle(region, size, limits.image, fields[id]))
    return GivenRegions(tuple(ids), masks, prompts, fields)


def check_number(num_regions: int, size: tuple[int, int], limits: ServingLimits) -> None:
    """Refuse more regions, or more pixels of masks, than a request may have.

    Raises:
        Refusal: 422 ``too_many_regions`` or ``too_many_pixels``.
    """
    if num_regions > limits.max_regions:
        raise ApiError(
            422, "too_many_regions", f"{num_regions} regions, the limit is {limits.max_regions}", param="regions"
        )
    height, width = size
    if num_regions * height * width > limits.max_mask_pixels:
        raise ApiError(
            422,
            "too_many_pixels",
            f"{num_regions} masks of {height} x {width} pixels are more than {limits.max_mask_pixels} together",
            param="regions",
        )


def mask_of(id: int, rle: Rle) -> Mask:
    """A mask of given run lengths, with its exact box and area."""
    return Mask(id=id, rle=rle, bbox_xywh=rle_codec.box_xywh(rle), area_px=rle_codec.area_px(rle))


def _ids(regions: Sequence[RegionRequest]) -> list[int]:
    taken: set[int] = set()
    for index, region in enumerate(regions):
        if region.region_id is not None:
            if region.region_id in taken:
                message = f"the id {region.region_id} appears more than once"
                raise ApiError(422, "duplicate_ids", message, param=f"regions[{index}].region_id")
            taken.add(region.region_id)
    free = (id for id in range(2 * len(regions)) if id not in taken)
    return [next(free) if region.region_id is None else region.region_id for region in regions]


def _rle(region: RegionRequest, size: tuple[int, int], limits: ImageLimits, field: str) -> Rle:
    try:
        if region.mask_png is not None:
            field += ".mask_png"
            rle = _from_image(region.mask_png, size, limits, field)
        elif region.rle is not None:
            field += ".rle"
            _check_size(region.rle.size, size, field)
            rle = rle_codec.from_coco({"size": list(size), "counts": region.rle.counts}, *size)
        else:
            field += ".polygon"
            polygons = region.polygon or []
            _check_outlines(polygons, size)
            rle = rle_codec.from_coco(polygons, *size)
    except ValueError as error:
        raise ApiError(422, "malformed", str(error), param=field) from error
    if not rle_codec.area_px(rle):
        raise ApiError(422, "empty_mask", "the mask has no pixel: there is nothing to caption", param=field)
    return rle


def _from_image(text: str, size: tuple[int, int], limits: ImageLimits, field: str) -> Rle:
    colours, alpha = read_image(read_base64(text, field), limits, field)
    _check_size(colours.shape[:2], size, field)
    inside = np.asarray(colours.any(axis=2))
    return rle_codec.encode(inside if alpha is None else inside & (alpha > 0))


def _check_size(found: Sequence[int], size: tuple[int, int], field: str) -> None:
    if tuple(found) != size:
        message = f"the mask is {list(found)} (height, width), the image {list(size)}"
        raise ApiError(422, "size_mismatch", message, param=field)


def _check_outlines(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> None:
    around = 0.0
    for polygon in polygons:
        xs, ys = polygon[0::2], polygon[1::2]
        if len(xs) == len(ys) > 0:
            around += sum(
                math.hypot(xs[index] - xs[index - 1], ys[index] - ys[index - 1]) + 1 for index in range(len(xs))
            )
    if around > _MAX_OUTLINES * 2 * sum(size) + 10_000:
        raise ValueError(f"the outline is longer than {_MAX_OUTLINES} times the image's own")


def _prompt(region: RegionRequest, size: tuple[int, int], field: str) -> Prompt:
    height, width = size
    points = region.points or []
    for index, point in enumerate(points):
        if not (0 <= point.x <= width and 0 <= point.y <= height):
            message = f"({point.x:g}, {point.y:g}) is not in the image of {width} x {height} pixels (x, y)"
            raise ApiError(422, "outside", message, param=f"{field}.points[{index}]")
    if points and all(point.label == 0 for point in points) and region.bbox_xywh is None:
        raise ApiError(422, "malformed", "at least one point has the label 1", param=f"{field}.points")
    if region.bbox_xywh is not None:
        x, y, box_width, box_height = region.bbox_xywh
        if box_width <= 0 or box_height <= 0:
            raise ApiError(422, "malformed", "width and height of a box are above 0", param=f"{field}.bbox_xywh")
        if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
            message = f"the box has no pixel of the image of {width} x {height} pixels"
            raise ApiError(422, "outside", message, param=f"{field}.bbox_xywh")
    return Prompt(
        bbox_xywh=region.bbox_xywh,
        points_xy=tuple((point.x, point.y) for point in points),
        labels=tuple(point.label for point in points) or None,
    )
