"""Masks of several granularities from colour and texture alone: no weights, no learning, any photograph.

A reduced copy of the image is cut into small regions along the boundaries of colour and texture; the most alike
neighbours are merged until one region is left; and of all regions that existed on the way, the ones that resisted
being merged the longest become masks. A part thus lies within its object's mask as long as it differs from the object
less than the object does from what is around it.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ureca.proposals.deduplication import distinct
from ureca.proposals.segments_boundaries import (
    NUM_HISTOGRAMS,
    boundary_strength,
    histogram_channels,
    superpixels,
)
from ureca.proposals.segments_merging import Hierarchy, MergeRule, merge
from ureca.proposals.segments_runs import ColumnRuns
from ureca.proposals.segments_upsampling import upsample
from ureca.regions import rle as rle_codec
from ureca.regions.mask import Mask


class SegmentsSettings(BaseModel):
    """What regions are alike, and which of them become masks.

    Attributes:
        max_masks: most masks of an image.
        min_area_fraction: smallest mask, as a share of the image.
        max_area_fraction: largest mask, as a share of the image; the whole image is never a mask. Larger regions are
            mostly an image less one object, and would hold everything else as their parts.
        max_iou: IoU from which two masks are duplicates; the one that resists merging longer stays.
        max_working_pixels: most pixels of the reduced copy; time and detail grow with it.
        appearance_weight: what a difference in colour and texture counts, against the boundary between two regions.
        small_region_fraction: regions well below this share of the image are merged early.
        enclosure_discount: how much sooner a region is merged with one that surrounds it, 0 (no sooner) to 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_masks: int = Field(default=80, ge=1)
    min_area_fraction: float = Field(default=0.001, ge=0, le=1)
    max_area_fraction: float = Field(default=0.5, gt=0, le=1)
    max_iou: float = Field(default=0.8, gt=0, le=1)
    max_working_pixels: int = Field(default=200_000, ge=1)
    appearance_weight: float = Field(default=0.7, ge=0)
    small_region_fraction: float = Field(default=0.01, ge=0)
    enclosure_discount: float = Field(default=0.6, ge=0, le=1)

    @model_validator(mode="after")
    def _leaves_room_for_masks(self) -> Self:
        if self.min_area_fraction > self.max_area_fraction:
            raise ValueError("min_area_fraction is above max_area_fraction: no mask could be both")
        return self


class SegmentsProposer:
    """Cuts an image into nested regions.

    Attributes:
        name: what it is, with its version.
    """

    def __init__(self, settings: SegmentsSettings | None = None) -> None:
        self.name = "segments-1"
        self._settings = settings or SegmentsSettings()

    def propose(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Masks of an image [H, W, 3] uint8 RGB, with ids from 1, the most salient first.

        Each mask is 4-connected; any two are nested exactly or disjoint; no two have an IoU of ``max_iou`` or more. The
        same pixels give the same masks. An image without any boundary, or of one pixel, has none.

        ``predicted_iou`` is None. ``stability_score`` is the region's persistence, 0 to 1: the share of the way up to
        the merge that ended it during which it existed. 0 is a step on the way from one region to another, 1 one of the
        small regions that merging starts from.

        Args:
            image: the pixels, EXIF rotation applied.
            annotation: not used.
        """
        from skimage.color import rgb2lab

        settings = self._settings
        lab = rgb2lab(_reduced(image, settings.max_working_pixels)).astype(np.float32)
        histograms = histogram_channels(lab)
        strength = boundary_strength(lab, histograms)
        rule = MergeRule(
            appearance_weight=settings.appearance_weight,
            small_region_fraction=settings.small_region_fraction,
            enclosure_discount=settings.enclosure_discount,
        )
        hierarchy = merge(superpixels(strength), strength, histograms, NUM_HISTOGRAMS, rule)
        nodes = _salient_nodes(hierarchy, settings)
        upsampled = zip(nodes, upsample(hierarchy, nodes, *image.shape[:2]), strict=True)
        drawn = [(node, rle) for node, rle in upsampled if rle is not None]
        kept = distinct((rle for _, rle in drawn), settings.max_iou, settings.max_masks)
        persistence = _persistence(hierarchy)
        return [
            Mask(
                id=id,
                rle=drawn[position][1],
                bbox_xywh=rle_codec.inclusive_box_xywh(drawn[position][1]),
                area_px=rle_codec.area_px(drawn[position][1]),
                stability_score=float(persistence[drawn[position][0]]),
            )
            for id, position in enumerate(kept, start=1)
        ]


def _reduced(image: npt.NDArray[np.uint8], max_pixels: int) -> npt.NDArray[np.uint8]:
    """The image, shrunk by averaging so that it has no more than so many pixels."""
    height, width = image.shape[:2]
    if height * width <= max_pixels:
        return image
    scale = (max_pixels / (height * width)) ** 0.5
    short = max(1, round(min(height, width) * scale))
    long = max(1, min(round(max(height, width) * scale), max_pixels // short))
    size = (long, short) if width >= height else (short, long)
    # reducing_gap: whole-number averaging first keeps it fast and small for images of tens of megapixels
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX, reducing_gap=3.0))


def _salient_nodes(hierarchy: Hierarchy, settings: SegmentsSettings) -> list[int]:
    """Nodes of allowed size without near duplicates, those that resisted merging longest first."""
    fractions = hierarchy.areas_px / hierarchy.labels.size
    allowed = (fractions >= settings.min_area_fraction) & (fractions <= settings.max_area_fraction)
    allowed &= hierarchy.parents >= 0
    order = np.argsort(-hierarchy.death_heights, kind="stable")
    candidates = order[allowed[order]].tolist()
    runs = ColumnRuns.of_columns(np.ascontiguousarray(hierarchy.labels.T))
    rles = (runs.encode(hierarchy.holds(node, runs.labels)) for node in candidates)
    return [candidates[position] for position in distinct(rles, settings.max_iou, settings.max_masks)]


def _persistence(hierarchy: Hierarchy) -> npt.NDArray[np.float64]:
    deaths = hierarchy.death_heights
    lived = np.ones_like(deaths)
    np.divide(hierarchy.heights, deaths, out=lived, where=deaths > 0)
    return 1 - lived
