"""Which regions of an image could be taken for one another (paper, stage 4)."""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.embedder import Embedder, RegionCrop
from ureca.curation.image import CurationImage

_CROP_SIDE_PX = 448  # of the crops that are embedded; embedders work at 224 or less
_CROPS_AT_ONCE = 64


class UniquenessSettings(BaseModel):
    """When regions count as look-alikes, and how often a caption is rewritten."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    similarity_threshold: float = Field(default=0.8, ge=-1, le=1, description="cosine above which two look alike")
    include_nested: bool = Field(default=False, description="also pair a region with its own parts")
    max_rounds: int = Field(default=3, ge=1, description="rewrites of a caption that another region still has")


def find_lookalikes(
    image: CurationImage, region_ids: Sequence[int], embedder: Embedder, settings: UniquenessSettings
) -> dict[int, list[int]]:
    """Look-alikes of each region among ``region_ids``, most alike first; regions without any are left out."""
    if len(region_ids) < 2:
        return {}
    vectors = np.concatenate(
        [
            embedder.embed([_crop(image, id) for id in region_ids[start : start + _CROPS_AT_ONCE]])
            for start in range(0, len(region_ids), _CROPS_AT_ONCE)
        ]
    )
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    found: dict[int, list[int]] = {}
    for row, id in zip(cosines, region_ids, strict=True):
        alike = [
            region_ids[index] for index in np.argsort(-row, kind="stable") if row[index] > settings.similarity_threshold
        ]
        if not settings.include_nested:
            alike = [other for other in alike if not image.tree.is_nested(id, other)]
        if alike:
            found[id] = alike
    return found


def equal_captions(captions: Mapping[int, str]) -> dict[int, list[int]]:
    """For each region whose caption another region has too, but for case, spaces and full stops, those other regions.

    Whatever they look like, a caption that two regions share is not unique.
    """
    holders: dict[str, list[int]] = {}
    for id, caption in captions.items():
        holders.setdefault(_normal_form(caption), []).append(id)
    return {id: [other for other in ids if other != id] for ids in holders.values() if len(ids) > 1 for id in ids}


def _normal_form(caption: str) -> str:
    return " ".join(caption.casefold().split()).rstrip(". ")


def _crop(image: CurationImage, id: int) -> RegionCrop:
    pixels, mask = image.views.crop_with_mask(id, max_side_px=_CROP_SIDE_PX)
    return RegionCrop(pixels=pixels, mask=mask)
