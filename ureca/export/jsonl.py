"""URECA's training set: one JSON object a line, one line a region (the layout of the paper's released set)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ureca.atomic import replacing
from ureca.errors import OutputError
from ureca.export.selection import Selection
from ureca.regions import Annotations, Mask, write_annotations
from ureca.regions.rle import Rle
from ureca.training.questions import paraphrase


def export_jsonl(
    rows: Iterable[Mapping[str, Any]],
    to: Path,
    selection: Selection,
    *,
    masks: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write the captions, as they are after uniqueness refinement, with a question each.

    A line is ``{"id", "image", "mask_id", "conversations": [{"from": "human", "value": "<image>\\n<question>"},
    {"from": "gpt", "value": <caption>}]}``; ``image`` is the image's id and ``mask_id`` the region's, as text.

    Args:
        rows: of the schema ``REGIONS``.
        to: the JSONL file.
        selection: which regions; it counts them.
        masks: a folder for the masks of the exported regions, ``<image>.json`` in SA-1B's layout; None: no masks.
        overwrite: replace what exists.

    Raises:
        OutputError: ``to`` or a file of masks exists and ``overwrite`` is not set, or cannot be written there.
    """
    with replacing(to, overwrite=overwrite) as temporary, temporary.open("w", encoding="utf-8") as file:
        if masks is not None:
            _make_empty_folder(masks, overwrite=overwrite)
        number = 0
        for row, regions in selection.of(rows):
            for region in regions:
                file.write(json.dumps(_line(number, row["image_id"], region), ensure_ascii=False) + "\n")
                number += 1
            if masks is not None:
                _write_masks(masks, row, regions)


def _line(number: int, image_id: str, region: Mapping[str, Any]) -> dict[str, Any]:
    # A region without parts keeps its short caption as its detailed one.
    detailed = region["detailed_caption"] != region["short_caption"]
    asked = paraphrase(image_id, region["region_id"], detailed=detailed)
    return {
        "id": number,
        "image": image_id,
        "mask_id": str(region["region_id"]),
        "conversations": [
            {"from": "human", "value": f"<image>\n{asked}"},
            {"from": "gpt", "value": region["caption"]},
        ],
    }


def _make_empty_folder(masks: Path, *, overwrite: bool) -> None:
    masks.mkdir(parents=True, exist_ok=True)
    if not overwrite and any(masks.iterdir()):
        raise OutputError(f"the folder {masks} is not empty; name another one, or add to it with --overwrite")


def _write_masks(folder: Path, row: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]) -> None:
    image_id, size = row["image_id"], [row["height"], row["width"]]
    path = folder / f"{image_id}.json"
    if path.parent != folder:
        raise OutputError(f"the masks of image {image_id!r} cannot be written: its id is no file name")
    masks = tuple(
        Mask(
            id=region["region_id"],
            rle=Rle(size=size, counts=region["rle"]),
            bbox_xywh=tuple(region["bbox_xywh"]),
            area_px=region["area_px"],
            predicted_iou=region["predicted_iou"],
            stability_score=region["stability_score"],
        )
        for region in regions
    )
    with replacing(path, overwrite=True) as temporary:
        write_annotations(temporary, Annotations(masks, row["height"], row["width"], image_id))
