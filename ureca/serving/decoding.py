"""Decoding of requests: images, masks and prompts, with an ``ApiError`` that names the invalid field."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ureca.content import decode_data_url
from ureca.errors import ImageError
from ureca.image_limits import ImageLimits
from ureca.image_structure import read_structure
from ureca.images import Pixels, decode_layers, stored_frame
from ureca.masks import rle as rle_codec
from ureca.masks.frames import stored_size, turned_rle
from ureca.masks.mask import Mask
from ureca.masks.mask_images import decode_mask_image
from ureca.masks.prompts import Prompt
from ureca.masks.rle import Rle
from ureca.serving.schemas import MAX_COUNTS_LENGTH, ApiError, RegionInput
from ureca.serving.settings import ServingLimits

_MAX_OUTLINE_PERIMETERS = 50
"""Longest polygon outline, in perimeters of the image: rasterization visits every pixel of an outline."""


@dataclass(frozen=True)
class DecodedRegions:
    """The regions of a request.

    Attributes:
        ids: ids of all regions, in the order of the request.
        masks: regions given as masks, by id.
        prompts: regions given as boxes or points, by id.
        params: path of each region in the request, by id, for error messages.
    """

    ids: tuple[int, ...]
    masks: dict[int, Mask]
    prompts: dict[int, Prompt]
    params: dict[int, str]


def decode_base64(text: str, param: str) -> bytes:
    """Decode base64 text or a ``data:`` URL.

    Args:
        text: the text.
        param: path of the field in the request, for error messages.

    Raises:
        ApiError: 422 ``not_base64``.
    """
    try:
        return decode_data_url(text)
    except ValueError as error:
        raise ApiError(422, "not_base64", str(error), param=param) from error


def decode_image(data: bytes, limits: ImageLimits, param: str) -> tuple[Pixels, Pixels | None]:
    """Decode an image file.

    Args:
        data: contents of the file.
        limits: limits of the file size and of the number of pixels.
        param: path of the field in the request, for error messages.

    Returns:
        The colours, uint8 RGB [H, W, 3], and the alpha channel, uint8 [H, W]; None if the file has none.

    Raises:
        ApiError: 422 with the kind of the ``ImageError`` as its code.
    """
    try:
        return decode_layers(data, limits)
    except ImageError as error:
        raise ApiError.from_data_error(error, param) from error


def decode_regions(
    regions: Sequence[RegionInput],
    size: tuple[int, int],
    limits: ServingLimits,
    is_wanted: Callable[[], bool] = lambda: True,
    *,
    orientation: int = 1,
) -> DecodedRegions:
    """Validate and decode the regions of a request. Equal masks are decoded once.

    Args:
        regions: the regions.
        size: height and width of the upright image in pixels.
        limits: limits of a request.
        is_wanted: function that tells, before each region, whether the result is still wanted.
        orientation: EXIF orientation, 1 to 8, of the image that the regions are in as it is stored; 1: they are in the
            upright one. A mask file with an orientation of its own is turned upright by that one alone.

    Raises:
        ApiError: 499 ``cancelled``: the result is no longer wanted; or 422 ``too_many_regions``, ``too_many_pixels``
            (of all masks together, or of the distinct files of masks), ``duplicate_ids``, ``malformed``,
            ``size_mismatch``, ``empty_mask``, ``outside`` (a prompt outside the image), or the kind of an
            ``ImageError``.
    """
    check_region_count(len(regions), size, limits)
    upright_size, size = size, stored_size(size, orientation)
    ids = _assign_ids(regions)
    params = {id: f"regions[{index}]" for index, id in enumerate(ids)}
    files = {(region.mask_png, region.mask_value) for region in regions if region.mask_png is not None}
    if len(files) * size[0] * size[1] > limits.max_mask_file_pixels:
        message = (
            f"{len(files)} different mask_png of {size[0]} x {size[1]} pixels exceed the limit of "
            f"{limits.max_mask_file_pixels} in total; send some as rle"
        )
        raise ApiError(422, "too_many_pixels", message, param="regions")
    num_characters = sum(
        len(region.rle.counts) for region in regions if region.rle is not None and isinstance(region.rle.counts, str)
    )
    if num_characters > MAX_COUNTS_LENGTH:
        message = f"the compressed counts have {num_characters} characters, the limit is {MAX_COUNTS_LENGTH} in total"
        raise ApiError(422, "too_many_counts", message, param="regions")
    decoded: dict[str, Rle] = {}
    masks: dict[int, Mask] = {}
    prompts: dict[int, Prompt] = {}
    for id, region in zip(ids, regions, strict=True):
        if not is_wanted():
            raise ApiError(499, "cancelled", "the request has ended", param=params[id])
        if region.is_prompt:
            prompt = _decode_prompt(region, size, params[id])
            prompts[id] = prompt if orientation == 1 else prompt.turned(upright_size, orientation)
        else:
            key = region.model_dump_json(exclude={"region_id"}, exclude_none=True)
            if key not in decoded:
                rle = None
                if region.mask_png is not None and orientation != 1:
                    rle = _decode_oriented_file(region, upright_size, limits.image, params[id])
                if rle is None:
                    rle = _decode_mask(region, size, limits.image, params[id])
                    rle = rle if orientation == 1 else turned_rle(rle, orientation)
                decoded[key] = rle
            masks[id] = exact_mask(id, decoded[key])
    return DecodedRegions(tuple(ids), masks, prompts, params)


def check_region_count(num_regions: int, size: tuple[int, int], limits: ServingLimits) -> None:
    """Check the number of regions and of their mask pixels against the limits.

    Args:
        num_regions: number of regions in the request.
        size: height and width of each mask in pixels.
        limits: limits of a request.

    Raises:
        ApiError: 422 ``too_many_regions`` or ``too_many_pixels``.
    """
    if num_regions > limits.max_regions:
        message = f"{num_regions} regions, the limit is {limits.max_regions}"
        raise ApiError(422, "too_many_regions", message, param="regions")
    height, width = size
    if num_regions * height * width > limits.max_mask_pixels:
        message = f"{num_regions} masks of {height} x {width} pixels exceed the limit of {limits.max_mask_pixels}"
        raise ApiError(422, "too_many_pixels", message, param="regions")


def exact_mask(id: int, rle: Rle) -> Mask:
    """Create a mask whose bounding box and area are computed from its run lengths."""
    return Mask(id=id, rle=rle, bbox_xywh=rle_codec.box_xywh(rle), area_px=rle_codec.area_px(rle))


def _assign_ids(regions: Sequence[RegionInput]) -> list[int]:
    taken: set[int] = set()
    for index, region in enumerate(regions):
        if region.region_id is not None:
            if region.region_id in taken:
                message = f"the id {region.region_id} appears more than once"
                raise ApiError(422, "duplicate_ids", message, param=f"regions[{index}].region_id")
            taken.add(region.region_id)
    free = (id for id in range(2 * len(regions)) if id not in taken)
    return [next(free) if region.region_id is None else region.region_id for region in regions]


def _decode_oriented_file(
    region: RegionInput, upright_size: tuple[int, int], limits: ImageLimits, param: str
) -> Rle | None:
    """Decode a mask file with an EXIF orientation of its own, which turns it upright; None: it has none."""
    data = decode_base64(region.mask_png or "", f"{param}.mask_png")
    try:
        has_orientation = stored_frame(data, limits)[2] != 1
    except ImageError:  # told in full by the decoding
        return None
    return _decode_mask(region, upright_size, limits, param) if has_orientation else None


def _decode_mask(region: RegionInput, size: tuple[int, int], limits: ImageLimits, param: str) -> Rle:
    try:
        if region.mask_png is not None:
            param += ".mask_png"
            data = decode_base64(region.mask_png, param)
            stated = read_structure(data[: limits.max_bytes]).size
            if stated is not None and sorted(stated) != sorted(size):  # EXIF may turn it
                _check_size(stated[::-1], size, param)
            inside = decode_mask_image(data, limits, mask_value=region.mask_value)
            _check_size(inside.shape, size, param)
            rle = rle_codec.encode(inside)
        elif region.rle is not None:
            param += ".rle"
            _check_size(region.rle.size, size, param)
            rle = rle_codec.from_coco({"size": list(size), "counts": region.rle.counts}, *size)
        else:
            param += ".polygon"
            polygons = region.polygon or []
            if _outline_length_px(polygons) > _MAX_OUTLINE_PERIMETERS * 2 * sum(size) + 10_000:
                raise ValueError(f"the outline is longer than {_MAX_OUTLINE_PERIMETERS} perimeters of the image")
            rle = rle_codec.from_coco(polygons, *size)
    except ImageError as error:
        raise ApiError.from_data_error(error, param) from error
    except ValueError as error:
        raise ApiError(422, "malformed", str(error), param=param) from error
    if not rle_codec.area_px(rle):
        raise ApiError(422, "empty_mask", "the mask is empty", param=param)
    return rle


def _check_size(found: Sequence[int], size: tuple[int, int], param: str) -> None:
    if tuple(found) != size:
        message = f"the mask is {list(found)} (height, width), the image {list(size)}"
        raise ApiError(422, "size_mismatch", message, param=param)


def _outline_length_px(polygons: Sequence[Sequence[float]]) -> float:
    length = 0.0
    for polygon in polygons:
        xs, ys = polygon[0::2], polygon[1::2]
        if len(xs) == len(ys) > 0:
            length += sum(
                math.hypot(xs[index] - xs[index - 1], ys[index] - ys[index - 1]) + 1 for index in range(len(xs))
            )
    return length


def _decode_prompt(region: RegionInput, size: tuple[int, int], param: str) -> Prompt:
    height, width = size
    points = region.points or []
    for index, point in enumerate(points):
        if not (0 <= point.x <= width and 0 <= point.y <= height):
            message = f"({point.x:g}, {point.y:g}) is outside the image of {width} x {height} pixels (x, y)"
            raise ApiError(422, "outside", message, param=f"{param}.points[{index}]")
    if points and all(point.label == 0 for point in points) and region.bbox_xywh is None:
        raise ApiError(422, "malformed", "at least one point needs the label 1", param=f"{param}.points")
    if region.bbox_xywh is not None:
        x, y, box_width, box_height = region.bbox_xywh
        if box_width <= 0 or box_height <= 0:
            raise ApiError(422, "malformed", "width and height of a box must be above 0", param=f"{param}.bbox_xywh")
        if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
            message = f"the box is outside the image of {width} x {height} pixels"
            raise ApiError(422, "outside", message, param=f"{param}.bbox_xywh")
    return Prompt(
        bbox_xywh=region.bbox_xywh,
        points_xy=tuple((point.x, point.y) for point in points),
        labels=tuple(point.label for point in points) or None,
    )
