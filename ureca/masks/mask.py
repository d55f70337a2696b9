"""One mask of one image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy.typing as npt

from ureca.errors import AnnotationError
from ureca.masks import rle as rle_codec
from ureca.masks.rle import BoolMask, Rle


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask as data: run lengths, never pixels.

    Attributes:
        id: unique within its image.
        rle: COCO compressed RLE, ``size`` [height, width] is the image's.
        bbox_xywh: x, y, width, height in pixels, inclusive as in SA-1B: x + width is the last column inside. What an
            annotation file said is kept, so a box can be fractional, or exclusive where it came from COCO;
            ``ureca.masks.rle.box_xywh(mask.rle)`` is exact and counts pixels.
        area_px: number of pixels; as the file said, where it did.
        predicted_iou: the segmenter's own estimate of its quality, about 0 to 1 (SAM's can exceed 1); None: unknown.
        stability_score: 0 to 1, IoU of the masks at a higher and a lower threshold; None: unknown.
        extra: every other key that its annotation file had.
    """

    id: int
    rle: Rle
    bbox_xywh: tuple[float, float, float, float]
    area_px: int
    predicted_iou: float | None = None
    stability_score: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_array(
        cls,
        id: int,
        pixels: npt.NDArray[Any],
        *,
        predicted_iou: float | None = None,
        stability_score: float | None = None,
    ) -> Self:
        """Encode a mask [H, W] (non-zero is inside) and compute its inclusive box and its area."""
        rle = rle_codec.encode(pixels)
        return cls(
            id=id,
            rle=rle,
            bbox_xywh=rle_codec.inclusive_box_xywh(rle),
            area_px=rle_codec.area_px(rle),
            predicted_iou=predicted_iou,
            stability_score=stability_score,
        )

    @classmethod
    def from_region(cls, region: Mapping[str, Any], height_px: int, width_px: int) -> Self:
        """Make the mask of a stored region, a struct of ``ureca.schema.REGION`` or ``CAPTION`` or of a benchmark.

        Run lengths are validated: a dataset may come from anywhere, and pycocotools trusts them.

        Args:
            region: with ``region_id``, ``rle`` (COCO compressed counts), ``bbox_xywh`` and ``area_px``.
            height_px: height of the image.
            width_px: width of the image.

        Raises:
            AnnotationError: ``malformed``: the run lengths are no mask of an image of this size.
        """
        try:
            rle = rle_codec.from_coco({"size": [height_px, width_px], "counts": region["rle"]}, height_px, width_px)
        except ValueError as error:
            raise AnnotationError("malformed", f"region {region['region_id']}: {error}") from error
        return cls(
            id=region["region_id"],
            rle=rle,
            bbox_xywh=tuple(region["bbox_xywh"]),
            area_px=region["area_px"],
            predicted_iou=region.get("predicted_iou"),
            stability_score=region.get("stability_score"),
        )

    @property
    def height_px(self) -> int:
        """Height of the image that the mask belongs to."""
        return self.rle["size"][0]

    @property
    def width_px(self) -> int:
        """Width of the image that the mask belongs to."""
        return self.rle["size"][1]

    def decode(self) -> BoolMask:
        """The mask as pixels, bool [H, W]."""
        return rle_codec.decode(self.rle)
