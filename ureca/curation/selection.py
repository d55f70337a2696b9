"""Which masks of an image become captioned regions (paper, stage 1)."""

from pydantic import BaseModel, ConfigDict, Field

from ureca.regions.tree import ROOT, MaskTree


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
