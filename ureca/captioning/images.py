"""Captions of images and their masks by a loaded captioner.

``caption_image`` captions one image. Its two parts serve many images: ``prepare_regions`` needs only the processor and
may run in other threads, ``caption_prepared`` runs the model on several images in common batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.model.settings import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaption, RegionCaptioner
    from ureca.model.prepared import PreparedImage

_STAGE = "caption"


@dataclass(frozen=True, eq=False)
class PreparedRegions:
    """An image prepared for the model, and its masks.

    Attributes:
        masks: all masks, in order.
        parents: parent id by mask id, -1 at the top level; empty without a tree.
        failures: reasons for which masks cannot be captioned, by id.
        prepared: tiles of the image and of the masks without failure, in order.
    """

    masks: tuple[Mask, ...]
    parents: Mapping[int, int]
    failures: Mapping[int, str]
    prepared: PreparedImage


def caption_image(
    captioner: RegionCaptioner,
    pixels: Pixels,
    masks: Sequence[Mask],
    settings: CaptionSettings,
    parents: Mapping[int, int] | None = None,
) -> list[dict[str, Any]]:
    """Caption the regions of one image.

    Args:
        captioner: loaded captioner.
        pixels: uint8 RGB [H, W, 3].
        masks: masks with distinct ids. One that cannot be captioned (empty, or of another size) becomes a region with
            a failure.
        settings: generation of captions.
        parents: parent id by mask id, -1 at the top level; None without a tree.

    Returns:
        Rows of the struct ``ureca.schema.CAPTION``, in the order of the masks.
    """
    (regions,) = caption_prepared(captioner, [prepare_regions(captioner, pixels, masks, parents)], settings)
    return regions


def prepare_regions(
    captioner: RegionCaptioner, pixels: Pixels, masks: Sequence[Mask], parents: Mapping[int, int] | None = None
) -> PreparedRegions:
    """Cut an image and its masks, one mask in memory at a time, without the model; arguments as ``caption_image``."""
    failures = mask_failures(masks, pixels.shape[:2])
    good = (mask.decode() for mask in masks if mask.id not in failures)
    return PreparedRegions(tuple(masks), parents or {}, failures, captioner.prepare(pixels, good))


def caption_prepared(
    captioner: RegionCaptioner,
    images: Sequence[PreparedRegions],
    settings: CaptionSettings,
    on_finished: Callable[[int, list[dict[str, Any]]], None] | None = None,
) -> list[list[dict[str, Any]]]:
    """Caption several images in common batches.

    Args:
        captioner: loaded captioner.
        images: prepared images, preferably of similar sizes, since the prompts of a batch are padded to the longest.
        settings: generation of captions.
        on_finished: called with the index and the rows of each image as soon as its last region has its caption.

    Returns:
        For each image, rows of the struct ``ureca.schema.CAPTION``, in the order of its masks.
    """
    captions: list[dict[int, RegionCaption]] = [{} for _ in images]
    rows: dict[int, list[dict[str, Any]]] = {}

    def finish(index: int) -> None:
        image, in_order = images[index], iter(captions[index][number] for number in sorted(captions[index]))
        results: dict[int, dict[str, Any]] = {}
        for mask in image.masks:
            if mask.id in image.failures:
                results[mask.id] = failed_caption(image.failures[mask.id])
            else:
                caption = next(in_order)
                results[mask.id] = finished_caption(caption.text, caption.num_tokens, caption.finish_reason)
        rows[index] = caption_rows(image.masks, image.parents, results)
        if on_finished is not None:
            on_finished(index, rows[index])

    for index, image in enumerate(images):
        if not image.prepared.num_regions:
            finish(index)
    for caption in captioner.stream_prepared((image.prepared for image in images), settings):
        of_image = captions[caption.image_index]
        of_image[caption.mask_index] = caption
        if len(of_image) == images[caption.image_index].prepared.num_regions:
            finish(caption.image_index)
    return [rows[index] for index in range(len(images))]


def mask_failures(masks: Sequence[Mask], size: tuple[int, ...]) -> dict[int, str]:
    """Return the reasons for which masks cannot be captioned in an image of a size (height, width), by id."""
    failures = {}
    for mask in masks:
        if tuple(mask.rle["size"]) != size:
            failures[mask.id] = "size_mismatch"
        elif not rle_codec.area_px(mask.rle):
            failures[mask.id] = "empty_mask"
    return failures


def caption_rows(
    masks: Sequence[Mask], parents: Mapping[int, int], results: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Build rows of the struct ``ureca.schema.CAPTION``.

    Args:
        masks: masks in the order of the rows.
        parents: parent id by mask id, -1 at the top level; empty without a tree.
        results: for each mask id, the result of ``finished_caption`` or ``failed_caption``.
    """
    return [
        {
            "region_id": mask.id,
            "rle": mask.rle["counts"],
            "bbox_xywh": list(mask.bbox_xywh),
            "area_px": mask.area_px,
            "parent_id": parents.get(mask.id),
            "depth": _depth(mask.id, parents),
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
            **results[mask.id],
        }
        for mask in masks
    ]


def finished_caption(text: str, num_tokens: int, finish_reason: str | None) -> dict[str, Any]:
    """Build the columns of a caption; an empty one, which the model ended before its first word, is a failure."""
    result = {"caption": text, "num_tokens": num_tokens, "finish_reason": finish_reason}
    if not text:
        return {**result, "caption": None, "status": f"failed:{_STAGE}:no_text"}
    return {**result, "status": "ok"}


def failed_caption(reason: str) -> dict[str, Any]:
    """Build the columns of a region without caption, with a reason in snake_case letters."""
    return {"caption": None, "num_tokens": None, "finish_reason": None, "status": f"failed:{_STAGE}:{reason}"}


def _depth(id: int, parents: Mapping[int, int]) -> int | None:
    if id not in parents:
        return None
    depth = 0
    while (id := parents[id]) in parents:
        depth += 1
    return depth
