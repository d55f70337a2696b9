"""Images and their masks to captioned regions, given a loaded captioner.

``caption_image`` is the whole of it for one image. Its two halves are for who has many: ``make_ready`` needs the
processor only and may run in other threads, ``caption_ready`` runs the model on several images in common batches.
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
class ReadyImage:
    """An image cut for the model, and what is known of its masks.

    Attributes:
        masks: all of them, in their order.
        parents: parent id by mask id, -1 at the top level; empty where no tree is known.
        failures: why a mask cannot be captioned, by id.
        prepared: the image and the masks without failure, in their order.
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
        captioner: loaded.
        pixels: uint8 RGB [H, W, 3].
        masks: with distinct ids. One that cannot be captioned (no pixel, another size) is a region with a failure.
        settings: how captions are written.
        parents: parent id by mask id, -1 at the top level; None: no tree is known.

    Returns:
        rows of the struct ``ureca.schema.CAPTION``, in the order of the masks.
    """
    (regions,) = caption_ready(captioner, [make_ready(captioner, pixels, masks, parents)], settings)
    return regions


def make_ready(
    captioner: RegionCaptioner, pixels: Pixels, masks: Sequence[Mask], parents: Mapping[int, int] | None = None
) -> ReadyImage:
    """Cut an image and its masks, one mask in memory at a time, without the model; arguments as ``caption_image``."""
    failures = failures_of(masks, pixels.shape[:2])
    good = (mask.decode() for mask in masks if mask.id not in failures)
    return ReadyImage(tuple(masks), parents or {}, failures, captioner.prepare(pixels, good))


def caption_ready(
    captioner: RegionCaptioner,
    images: Sequence[ReadyImage],
    settings: CaptionSettings,
    on_finished: Callable[[int, list[dict[str, Any]]], None] | None = None,
) -> list[list[dict[str, Any]]]:
    """Caption several images in common batches.

    Args:
        captioner: loaded.
        images: of like sizes, where there is a choice: the prompts of a batch are padded to the longest.
        settings: how captions are written.
        on_finished: told the place and the rows of each image as soon as its last region has its caption.

    Returns:
        of each image the rows of the struct ``ureca.schema.CAPTION``, in the order of its masks.
    """
    captions: list[dict[int, RegionCaption]] = [{} for _ in images]
    rows: dict[int, list[dict[str, Any]]] = {}

    def finish(index: int) -> None:
        rows[index] = _rows(images[index], captions[index])
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


def failures_of(masks: Sequence[Mask], size: tuple[int, ...]) -> dict[int, str]:
    """Why masks cannot be captioned in an image of that size (height, width), by id; the others are not in it."""
    return {mask.id: why for mask in masks if (why := _why_not(mask, size)) is not None}


def caption_rows(
    masks: Sequence[Mask], parents: Mapping[int, int], said: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of the struct ``ureca.schema.CAPTION``.

    Args:
        masks: in the order of the rows.
        parents: parent id by mask id, -1 at the top level; empty where no tree is known.
        said: of each mask, by id, what ``answered`` or ``failed`` gave.
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
            **said[mask.id],
        }
        for mask in masks
    ]


def answered(text: str, num_tokens: int, finish_reason: str | None) -> dict[str, Any]:
    """What a model said of a region; a failure where that is nothing."""
    said = {"caption": text, "num_tokens": num_tokens, "finish_reason": finish_reason}
    # A model may end a caption before its first word.
    return {**said, "status": "ok"} if text else {**said, "caption": None, "status": f"failed:{_STAGE}:no_text"}


def failed(why: str) -> dict[str, Any]:
    """A region without caption, and why in snake_case letters."""
    return {"caption": None, "num_tokens": None, "finish_reason": None, "status": f"failed:{_STAGE}:{why}"}


def _why_not(mask: Mask, size: tuple[int, ...]) -> str | None:
    if tuple(mask.rle["size"]) != size:
        return "size_mismatch"
    return None if rle_codec.area_px(mask.rle) else "empty_mask"


def _rows(image: ReadyImage, captions: Mapping[int, RegionCaption]) -> list[dict[str, Any]]:
    in_order = iter(captions[index] for index in sorted(captions))
    said: dict[int, dict[str, Any]] = {}
    for mask in image.masks:
        if mask.id in image.failures:
            said[mask.id] = failed(image.failures[mask.id])
        else:
            caption = next(in_order)
            said[mask.id] = answered(caption.text, caption.num_tokens, caption.finish_reason)
    return caption_rows(image.masks, image.parents, said)


def _depth(id: int, parents: Mapping[int, int]) -> int | None:
    if id not in parents:
        return None
    depth = 0
    while (id := parents[id]) in parents:
        depth += 1
    return depth
