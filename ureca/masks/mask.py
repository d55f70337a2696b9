"""One mask of one image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy.typing as npt

from ureca.errors import AnnotationError
from ureca.masks import rle as rle_codec
from ureca.masks.rle import BoolMask, Rle

MAX_MASKS = 4096
"""Largest number of masks of an image. Building a mask tree can take time proportional to its square."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask of one image, as run lengths.

    Attributes:
        id: id of the mask, unique within its image.
        rle: COCO compressed RLE; its ``size`` is [height, width] of the image.
        bbox_xywh: x, y, width and height of the bounding box in pixels, inclusive as in SA-1B: x + width is the last
            column inside. It is computed from the run lengths; ``ureca.masks.rle.box_xywh(mask.rle)`` counts pixels.
        area_px: number of pixels inside.
        predicted_iou: quality estimated by the generator, about 0 to 1 (SAM's can exceed 1); None: unknown.
        stability_score: IoU of the masks at a higher and a lower threshold, 0 to 1; None: unknown.
        extra: other keys of the annotation file.
        category: name of the class in the annotation file; None: it names none.
        fault: kind of the defect for which the annotation is unusable, in snake_case; the mask then has no pixel.
        notes: messages about the annotation by kind: its defect, repairs, and figures that disagree with the mask.

    Example:
        >>> import numpy as np
        >>> import ureca
        >>> pixels = np.zeros((20, 30), bool)
        >>> pixels[5:10, 10:20] = True
        >>> mask = ureca.Mask.from_array(1, pixels)
        >>> mask.area_px, mask.height_px, mask.width_px
        (50, 20, 30)
        >>> bool((mask.decode() == pixels).all())
        True
    """

    id: int
    rle: Rle
    bbox_xywh: tuple[float, float, float, float]
    area_px: int
    predicted_iou: float | None = None
    stability_score: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    category: str | None = None
    fault: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_array(
        cls,
        id: int,
        pixels: npt.NDArray[Any],
        *,
        predicted_iou: float | None = None,
        stability_score: float | None = None,
    ) -> Self:
        """Encode a mask [H, W], in which pixels other than 0 are inside, and compute its inclusive box and its area."""
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
            category=region.get("category"),
        )

    @property
    def height_px(self) -> int:
        """Height of the image that the mask belongs to."""
        return self.rle["size"][0]

    @property
    def width_px(self) -> int:
        """Width of the image that the mask belongs to."""
        return self.rle["size"][1]

    def notes_column(self) -> list[dict[str, str]] | None:
        """Return the notes as in ``ureca.schema.ANNOTATION_NOTES``; None without any."""
        return [{"kind": kind, "message": message} for kind, message in self.notes.items()] or None

    def decode(self) -> BoolMask:
        """Return the mask as pixels, bool [H, W]."""
        return rle_codec.decode(self.rle)
