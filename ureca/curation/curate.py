"""From an image and its masks to the rows of its regions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.annotator import Annotator
from ureca.curation.captions import RegionCaptions
from ureca.curation.embedder import Embedder
from ureca.curation.image import CurationImage
from ureca.curation.listener import Listener, ListeningSettings
from ureca.curation.lookalikes import UniquenessSettings
from ureca.curation.selection import TreeSettings, select_regions
from ureca.curation.switches import StageSettings
from ureca.curation.walk import caption_regions
from ureca.regions.mask import Mask
from ureca.regions.tree import MaskTree
from ureca.regions.views import Views


class ViewSettings(BaseModel):
    """What an MLLM is shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_side_px: int = Field(default=1024, ge=32, description="longest side of a view; larger ones are shrunk")


@dataclass(frozen=True)
class Curator:
    """Everything the curation of an image needs besides the image; built once, used for many images at a time."""

    annotator: Annotator
    embedder: Embedder
    tree: TreeSettings = field(default_factory=TreeSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    uniqueness: UniquenessSettings = field(default_factory=UniquenessSettings)
    verifier: Annotator | None = None
    listener: Listener | None = None
    listening: ListeningSettings = field(default_factory=ListeningSettings)
    stages: StageSettings = field(default_factory=StageSettings)


async def curate_image(
    pixels: npt.NDArray[np.uint8], masks: Sequence[Mask], curator: Curator, tree: MaskTree | None = None
) -> list[dict[str, Any]]:
    """Caption the regions of one image.

    Args:
        pixels: uint8 RGB [H, W, 3].
        masks: of this image, with distinct ids.
        curator: what writes, compares and checks captions.
        tree: of all masks, where it is planted already.

    Returns:
        one row a mask, fields as in ``ureca.schema.REGION``, parents before children; masks that are not captioned
        are there with the status ``skipped:<why>``.

    Raises:
        ValueError: a mask has another size than the image, or two have the same id.
    """
    for mask in masks:
        if mask.rle["size"] != list(pixels.shape[:2]):
            raise ValueError(f"mask {mask.id} has the size {mask.rle['size']}, the image {list(pixels.shape[:2])}")
    tree = tree or MaskTree.plant(masks, curator.tree.containment)
    main_objects, regions, skipped = select_regions(tree, curator.tree)
    by_id = {mask.id: mask for mask in masks}
    image = CurationImage(
        pixels=pixels,
        masks=by_id,
        tree=tree,
        main_objects=tuple(main_objects),
        regions=tuple(regions),
        views=Views(pixels, by_id, max_side_px=curator.views.max_side_px),
    )
    captions = await caption_regions(
        image,
        curator.annotator,
        curator.embedder,
        curator.uniqueness,
        curator.verifier,
        listener=curator.listener,
        listening=curator.listening,
        stages=curator.stages,
    )
    return [_region_row(by_id[id], tree, captions, skipped) for id in tree.walk()]


def _region_row(
    mask: Mask, tree: MaskTree, captions: Mapping[int, RegionCaptions], skipped: Mapping[int, str]
) -> dict[str, Any]:
    region = captions.get(mask.id, RegionCaptions())
    if mask.id in skipped:
        status = f"skipped:{skipped[mask.id]}"
    else:
        status = "ok" if region.failure is None else f"failed:{region.failure}"
    verdict = "unchecked"
    if region.verdict is not None:
        verdict = "accepted" if region.verdict.accepted else "rejected"
    return {
        "region_id": mask.id,
        "rle": mask.rle["counts"],
        "bbox_xywh": list(mask.bbox_xywh),
        "area_px": mask.area_px,
        "parent_id": tree.parents[mask.id],
        "depth": tree.depth(mask.id),
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "short_caption": region.short_caption,
        "detailed_caption": region.detailed_caption,
        "caption": region.caption,
        "lookalike_ids": region.lookalike_ids,
        "listener_choice": None if region.listener_choice is None else str(region.listener_choice),
        "listener_rounds": region.listener_rounds,
        "verdict": verdict,
        "verdict_reason": None if region.verdict is None else region.verdict.reason,
        "status": status,
    }
