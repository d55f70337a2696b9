"""From an image and its masks to the rows of its regions.

[from] Which masks of an image become captioned regions (paper, stage 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.embedders import DescriptorEmbedder
from ureca.curation.listener import Listener, ListeningSettings
from ureca.curation.protocols import Annotator, CurationImage, Embedder, RegionCaptions
from ureca.curation.rule_based.captioner import RuleBasedCaptioner
from ureca.curation.uniqueness import UniquenessSettings
from ureca.curation.walk import StageSettings, caption_regions
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views


class TreeSettings(BaseModel):
    """How the mask tree is planted and what of it is captioned.

    The paper's values, for SA-1B's ~100 masks an image, are the defaults but for ``main_object_min_levels``, which is
    4 there: with fewer masks an image it leaves nothing to caption.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    containment: float = Field(default=0.8, gt=0, le=1, description="share of a mask inside another to lie below it")
    main_object_min_levels: int = Field(default=1, ge=1, description="levels a top-level mask's subtree must have")
    min_area_fraction: float = Field(default=0.007, ge=0, le=1, description="smallest region, as share of the image")
    max_area_fraction: float = Field(default=0.7, gt=0, le=1, description="largest main object, as share of the image")


def select_regions(tree: MaskTree, settings: TreeSettings) -> tuple[list[int], list[int], dict[int, str]]:
    """Choose the main objects and their parts.

    Returns:
        ids of the main objects; ids of all regions, parents before children; and for every other mask why it is
        skipped: ``empty`` (it has no pixel), ``small``, ``large``, ``shallow`` (its subtree has too few levels) or
        ``parent`` (its parent is).
    """
    main_objects = tree.main_objects(
        min_levels=settings.main_object_min_levels,
        min_area_fraction=settings.min_area_fraction,
        max_area_fraction=settings.max_area_fraction,
    )
    # Masks without a pixel lie below nothing: a bound of 0 would make them main objects that no view can show.
    main_objects = [id for id in main_objects if tree.area_fractions[id] > 0]
    regions: list[int] = []
    for id in main_objects:
        regions += [id, *tree.parts(id, min_area_fraction=settings.min_area_fraction)]
    kept = set(regions)
    skipped = {id: _why_skipped(id, tree, kept, settings) for id in tree.walk() if id not in kept}
    return main_objects, regions, skipped


def _why_skipped(id: int, tree: MaskTree, kept: set[int], settings: TreeSettings) -> str:
    if tree.area_fractions[id] == 0:
        return "empty"
    if tree.area_fractions[id] < settings.min_area_fraction:
        return "small"
    if tree.parents[id] != ROOT:
        return "parent"
    return "large" if tree.area_fractions[id] > settings.max_area_fraction else "shallow"


class ViewSettings(BaseModel):
    """What an MLLM is shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_side_px: int = Field(default=1024, ge=32, description="longest side of a view; larger ones are shrunk")


@dataclass(frozen=True)
class Curator:
    """Components and settings of a curation; built once and used for many images, also concurrently.

    The defaults need neither a GPU nor weights: captions follow rules over measured colours, shapes and places.

    Attributes:
        annotator: writes the captions.
        embedder: compares the looks of regions.
        tree: selection of the masks that are captioned.
        views: rendering of the views that chat models see.
        uniqueness: search for look-alikes.
        verifier: judges the final captions; None: they stay unchecked.
        listener: chooses a region by a caption, which tests its uniqueness; None: captions are not tested.
        listening: number of rounds and candidates of the listener.
        stages: stages to run; all of them unless an ablation leaves some out.

    Example:
        >>> import ureca
        >>> from ureca.curation.curator import TreeSettings
        >>> curator = ureca.Curator(tree=TreeSettings(min_area_fraction=0.02))
        >>> regions = ureca.curate_image("photo.png", curator=curator)
    """

    annotator: Annotator = field(default_factory=RuleBasedCaptioner)
    embedder: Embedder = field(default_factory=DescriptorEmbedder)
    tree: TreeSettings = field(default_factory=TreeSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    uniqueness: UniquenessSettings = field(default_factory=UniquenessSettings)
    verifier: Annotator | None = None
    listener: Listener | None = None
    listening: ListeningSettings = field(default_factory=ListeningSettings)
    stages: StageSettings = field(default_factory=StageSettings)


async def curate_regions(
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
    tree = tree or MaskTree.build(masks, curator.tree.containment)
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
