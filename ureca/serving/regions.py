"""Regions as answers have them: their place in the tree, and what they could be taken for."""

from collections.abc import Mapping, Sequence

from ureca.images import Pixels
from ureca.regions import rle as rle_codec
from ureca.regions.mask import Mask
from ureca.regions.tree import ROOT, MaskTree
from ureca.regions.views import Views
from ureca.serving.answers import Caption, Region
from ureca.serving.engine import Written
from ureca.serving.requests import RunLengths


def describe(masks: Sequence[Mask]) -> list[Region]:
    """Regions of one image, in order, each with its place among the others."""
    tree = MaskTree.plant(masks)
    return [
        Region(
            region_id=mask.id,
            rle=RunLengths(size=(mask.height_px, mask.width_px), counts=mask.rle["counts"]),
            bbox_xywh=rle_codec.box_xywh(mask.rle),
            area_px=rle_codec.area_px(mask.rle),
            parent_id=tree.parents[mask.id],
            depth=tree.depth(mask.id),
            predicted_iou=mask.predicted_iou,
            stability_score=mask.stability_score,
        )
        for mask in masks
    ]


def compared(region: Region, lookalikes: Mapping[int, list[int]] | None) -> Region:
    """A region with its look-alikes; ``lookalikes`` are those of all regions, None where nobody asked."""
    return region.model_copy(
        update={"lookalike_ids": None if lookalikes is None else lookalikes.get(region.region_id, [])}
    )


def captioned(region: Region, written: Written) -> Caption:
    """A region with its caption."""
    return Caption(
        **dict(region),
        caption=written.text or None,
        num_tokens=written.num_tokens,
        finish_reason="stop" if written.finish_reason == "stop" else "length",
    )


def lookalikes(pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
    """Look-alikes of each region by id, most alike first, by colour, texture and shape; a region is not its own part's.

    Args:
        pixels: uint8 RGB [H, W, 3].
        masks: of the image, each with at least one pixel.
    """
    from ureca.curation.embedders.descriptor import DescriptorEmbedder
    from ureca.curation.image import CurationImage
    from ureca.curation.lookalikes import UniquenessSettings, find_lookalikes

    by_id = {mask.id: mask for mask in masks}
    tree = MaskTree.plant(masks)
    ids = tuple(tree.parents)
    image = CurationImage(pixels, by_id, tree, tuple(tree.children[ROOT]), ids, Views(pixels, by_id))
    return find_lookalikes(image, ids, DescriptorEmbedder(), UniquenessSettings())
