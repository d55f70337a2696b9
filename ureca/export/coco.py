"""COCO captions JSON, with the box and the mask of each caption's region."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ureca
from ureca.atomic import replacing
from ureca.export.selection import Selection
from ureca.regions.rle import Rle, area_px, box_xywh


def export_coco(rows: Iterable[Mapping[str, Any]], to: Path, selection: Selection, *, overwrite: bool = False) -> None:
    """Write COCO captions, which ``pycocotools.coco.COCO`` loads.

    Images and annotations are numbered from 1. An image keeps its own id as ``image_id`` beside COCO's ``id``, and
    an annotation its region's id as ``region_id``. ``segmentation`` is compressed RLE; ``bbox`` (x, y, width, height)
    and ``area`` are the mask's, in pixels.

    Args:
        rows: of the schema ``REGIONS``.
        to: the JSON file.
        selection: which regions; it counts them.
        overwrite: replace what exists.

    Raises:
        OutputError: ``to`` exists and ``overwrite`` is not set, or cannot be written there.
    """
    # The two lists of a COCO file stand one after the other: the second waits in a file of its own.
    with (
        replacing(to, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=to.parent) as annotations,
    ):
        info = {"description": "Unique captions of image regions", "version": f"ureca {ureca.__version__}"}
        file.write(f'{{"info": {json.dumps(info)},\n"images": [')
        separator = "\n"
        number = 0
        for image_number, (row, regions) in enumerate(selection.of(rows), start=1):
            file.write(separator + json.dumps(_image(image_number, row), ensure_ascii=False))
            for region in regions:
                annotation = _annotation(number + 1, image_number, row, region)
                annotations.write((",\n" if number else "\n") + json.dumps(annotation, ensure_ascii=False))
                number += 1
            separator = ",\n"
        file.write('],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write("]}\n")


def _image(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": row["image_id"],
        "file_name": row["uri"].rpartition("/")[2],
        "uri": row["uri"],
        "height": row["height"],
        "width": row["width"],
    }


def _annotation(number: int, image_number: int, row: Mapping[str, Any], region: Mapping[str, Any]) -> dict[str, Any]:
    rle = Rle(size=[row["height"], row["width"]], counts=region["rle"])
    return {
        "id": number,
        "image_id": image_number,
        "region_id": region["region_id"],
        "caption": region["caption"],
        # Rows keep the boxes of the masks' source, and SA-1B's are one pixel short of COCO's.
        "bbox": list(box_xywh(rle)),
        "area": area_px(rle),
        "segmentation": dict(rle),
        "iscrowd": 0,
    }
