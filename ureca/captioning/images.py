"""Captions of images and their masks by a loaded captioner, and the columns of captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.mask import Mask
from ureca.model.settings import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaptioner

_STAGE = "caption"


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
    failures = mask_failures(masks, pixels.shape[:2])
    results = {id: failed_caption(reason) for id, reason in failures.items()}
    good = [mask for mask in masks if mask.id not in failures]
    prepared = captioner.prepare(pixels, (mask.decode() for mask in good))
    for caption in captioner.stream_prepared([prepared], settings):
        results[good[caption.mask_index].id] = (
            finished_caption(caption.text, caption.num_tokens, caption.finish_reason)
            if caption.error is None
            else failed_caption(caption.error.kind)
        )
    return caption_rows(masks, parents or {}, results)


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
            "category": mask.category,
            "annotation_notes": mask.notes_column(),
            **results[mask.id],
            **({} if (reason := _skip_reason(mask)) is None else {"status": f"skipped:{reason}"}),
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


def _skip_reason(mask: Mask) -> str | None:
    """Return the reason for which a mask is left out, as a curation would; None: it is captioned."""
    return "empty" if mask.fault is None and not rle_codec.area_px(mask.rle) else mask.fault


def _depth(id: int, parents: Mapping[int, int]) -> int | None:
    if id not in parents:
        return None
    depth = 0
    while (id := parents[id]) in parents:
        depth += 1
    return depth
