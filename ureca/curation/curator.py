"""Curation of an image and its masks: the components, selection of the regions (paper, stage 1), captions, and rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.curation.embedders import DescriptorEmbedder
from ureca.curation.protocols import Annotator, CurationImage, Embedder, Listener
from ureca.curation.results import region_row
from ureca.curation.rule_based.captioner import RuleBasedCaptioner
from ureca.curation.settings import ListeningSettings, StageSettings, TreeSettings, UniquenessSettings, ViewSettings
from ureca.curation.walk import caption_regions
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views


def select_regions(tree: MaskTree, settings: TreeSettings) -> tuple[list[int], list[int], dict[int, str]]:
    """Select the main objects and their parts.

    Returns:
        Ids of the main objects; ids of all regions, parents before children; and for every other mask the reason why it
        is skipped: ``empty`` (no pixels), ``small``, ``large``, ``shallow`` (its subtree has too few levels) or
        ``parent`` (its parent is skipped).
    """
    main_objects = tree.main_objects(
        min_levels=settings.main_object_min_levels,
        min_area_fraction=settings.min_area_fraction,
        max_area_fraction=settings.max_area_fraction,
    )
    # Empty masks have no parent: with a bound of 0 they would be main objects that no view can show.
    main_objects = [id for id in main_objects if tree.area_fractions[id] > 0]
    regions: list[int] = []
    for id in main_objects:
        regions += [id, *tree.parts(id, min_area_fraction=settings.min_area_fraction)]
    kept = set(regions)
    skipped: dict[int, str] = {}
    for id in tree.walk():
        if id in kept:
            continue
        if tree.area_fractions[id] == 0:
            skipped[id] = "empty"
        elif tree.area_fractions[id] < settings.min_area_fraction:
            skipped[id] = "small"
        elif tree.parents[id] != ROOT:
            skipped[id] = "parent"
        else:
            skipped[id] = "large" if tree.area_fractions[id] > settings.max_area_fraction else "shallow"
    return main_objects, regions, skipped


@dataclass(frozen=True)
class Curator:
    """Components and settings of a curation; built once and used for many images, also concurrently.

    The defaults need neither a GPU nor weights: captions follow rules over measured colours, shapes and locations.

    Attributes:
        annotator: writes the captions.
        embedder: compares the looks of regions.
        tree: selection of the masks that are captioned.
        views: rendering of the views that chat models see.
        uniqueness: search for look-alikes.
        verifier: judges the final captions that the listener has not rejected; None: they have the verdict of the
            listener, if any.
        listener: chooses a region by a caption, which tests its uniqueness; None: captions are not tested.
        listening: number of rounds and candidates of the listener.
        stages: stages to run; all of them unless an ablation leaves some out.

    Example:
        >>> import ureca
        >>> from ureca.curation.settings import TreeSettings
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
        masks: masks of this image, with distinct ids.
        curator: components and settings of the curation.
        tree: mask tree of all masks; None: it is built.

    Returns:
        One row per mask with the fields of ``ureca.schema.REGION``, parents before children. Masks that are not
        captioned have the status ``skipped:<reason>``.

    Raises:
        ValueError: a mask does not have the size of the image, or two masks have the same id.
    """
    for mask in masks:
        if mask.rle["size"] != list(pixels.shape[:2]):
            raise ValueError(f"mask {mask.id} has the size {mask.rle['size']}, the image {list(pixels.shape[:2])}")
    tree = tree or MaskTree.build(masks, curator.tree.containment)
    main_objects, regions, skipped = select_regions(tree, curator.tree)
    by_id = {mask.id: mask for mask in masks}
    skipped |= {mask.id: mask.fault for mask in masks if mask.fault is not None}
    image = CurationImage(
        pixels=pixels,
        masks=by_id,
        tree=tree,
        main_objects=tuple(main_objects),
        regions=tuple(regions),
        views=Views(pixels, by_id, max_side_px=curator.views.max_side_px, min_crop_px=curator.views.min_crop_px),
    )
    results = await caption_regions(
        image,
        curator.annotator,
        curator.embedder,
        curator.uniqueness,
        curator.verifier,
        listener=curator.listener,
        listening=curator.listening,
        stages=curator.stages,
    )
    return [region_row(by_id[id], tree, results.get(id), skipped.get(id)) for id in tree.walk()]
