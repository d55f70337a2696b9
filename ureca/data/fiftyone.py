"""FiftyOne: folders in the layout FiftyOneDataset with masks and captions, and the decisions of people in them.

Format: https://docs.voxel51.com/user_guide/import_datasets.html. A folder has ``metadata.json``, ``samples.json`` and
the images. Samples are documents of MongoDB in extended JSON; masks are NumPy arrays, compressed with zlib.
"""

import base64
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca import __version__
from ureca.data.corrections import Corrections
from ureca.data.decisions import Decision, decision_time
from ureca.data.export import ExportReport
from ureca.data.hub_export import image_file, images_to_export
from ureca.data.output import Output
from ureca.errors import ImageError, OutputError
from ureca.hashing import digest
from ureca.image_limits import ImageLimits
from ureca.images import decode_image
from ureca.io import replacing_folder
from ureca.masks.json_stream import iter_elements
from ureca.masks.mask import Mask
from ureca.masks.rle import box_xywh

FIELD = "regions"
"""Field of a sample that holds its regions."""

_ACCEPTED, _REJECTED = {"accept", "accepted"}, {"reject", "rejected"}
_CHUNK_BYTES = 2**20
_MAX_SAMPLE_CHARACTERS = 2**28
_MAX_NAME_BYTES = 200


def export_samples(
    output: Output,
    to: Path,
    report: ExportReport,
    *,
    overwrite: bool = False,
    corrections: Corrections | None = None,
) -> None:
    """Write a folder that ``fiftyone.Dataset.from_dir(dataset_type=fiftyone.types.FiftyOneDataset)`` loads.

    Each image is a sample with ``image_id`` and the detections ``regions``. A detection has the class of its
    annotation, or "region", as label, its mask within its box, and ``region_id``, ``caption``, ``short_caption``,
    ``detailed_caption``, ``verdict``, ``depth`` and ``parent_id``. ``exported_caption`` is to stay as it is:
    corrections are told by it. Upright JPEG, PNG and WebP files are copied as they are, others become PNG.

    Args:
        output: output of the run.
        to: folder to write.
        report: selects the regions and counts them; images that can no longer be read, or have another size than
            their masks, are counted as failed.
        overwrite: replace an existing folder.
        corrections: corrections by people to merge; None: there are none.

    Raises:
        OutputError: ``to`` exists and ``overwrite`` is not set, or it cannot be written.
    """
    if not to.parent.is_dir():
        raise OutputError(f"the folder {to.parent} does not exist; make it first")
    with replacing_folder(to, overwrite=overwrite) as folder:
        with (folder / "samples.json").open("w", encoding="utf-8") as file:
            separator = '{"samples": [\n'
            for row, regions, data in images_to_export(output, report, corrections or Corrections({})):
                try:
                    pixels = decode_image(data, ImageLimits())
                    if pixels.shape[:2] != (row["height"], row["width"]):
                        raise ImageError("size_mismatch", "the image has another size than its masks")
                except ImageError as error:
                    report.drop(f"export: {error.kind}", len(regions))
                    continue
                image = image_file(data, pixels, row["image_id"])
                name = f"data/{_file_name(row['image_id'])}.{image['path'].rpartition('.')[2]}"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(image["bytes"])
                file.write(separator + json.dumps(_sample(row, regions, name), ensure_ascii=False))
                separator = ",\n"
            file.write('{"samples": []}\n' if separator.startswith("{") else "]}\n")
        # Without a version of FiftyOne the fields are those that the samples have.
        metadata = {"name": to.name, "media_type": "image", "info": {"written_by": f"ureca {__version__}"}}
        (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


def read_decisions(path: Path) -> Iterator[Decision]:
    """Yield the decisions of people in a folder that FiftyOne has exported as FiftyOneDataset, region by region.

    A region is accepted or rejected by a tag of its detection: "accept" or "accepted", "reject" or "rejected".

    Args:
        path: the folder, or its file samples.json.

    Raises:
        JsonStreamError: it is no JSON.
        OSError: it cannot be read.
    """
    path = path / "samples.json" if path.is_dir() else path
    modified = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    with path.open("rb") as file:
        chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
        for _, sample, _ in iter_elements(chunks, {"samples"}, max_characters=_MAX_SAMPLE_CHARACTERS):
            if not isinstance(sample, dict) or not isinstance(sample.get("image_id"), str):
                yield Decision(None, problem="a sample that no export of ureca has made")
                continue
            stated = sample.get("last_modified_at")
            stated = stated.get("$date") if isinstance(stated, dict) else stated
            decided_at = decision_time(stated, default=modified)
            for field in sample.values():
                detections = field.get("detections") if isinstance(field, dict) else None
                for each in detections if isinstance(detections, list) else ():
                    if isinstance(each, dict):
                        yield _decision(sample["image_id"], each, decided_at)


def encode_mask(pixels: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask [H, W] as a binary value of MongoDB's extended JSON."""
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return {"$binary": {"base64": base64.b64encode(zlib.compress(file.getvalue())).decode(), "subType": "00"}}


def _file_name(image_id: str) -> str:
    """Return the name of an image's file without its suffix, below the folder of the images."""
    is_safe = set(image_id.split("/")).isdisjoint(("", ".", "..")) and "\0" not in image_id
    return image_id if is_safe and len(image_id.encode()) <= _MAX_NAME_BYTES else digest([image_id]).hex()


def _sample(row: Mapping[str, Any], regions: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    height, width = row["height"], row["width"]
    detections = []
    for region in regions:
        mask = Mask.from_region(region, height, width)
        left, top, box_width, box_height = (int(side) for side in box_xywh(mask.rle))
        copied = ("region_id", "caption", "short_caption", "detailed_caption", "verdict", "depth", "parent_id")
        detections.append(
            {
                "_id": {"$oid": digest([row["image_id"], f"\0{region['region_id']}"], num_bytes=12).hex()},
                "_cls": "Detection",
                "attributes": {},
                "tags": [],
                "label": mask.category or "region",
                "bounding_box": [left / width, top / height, box_width / width, box_height / height],
                "mask": encode_mask(mask.decode()[top : top + box_height, left : left + box_width]),
                **{key: region[key] for key in copied},
                "exported_caption": region["caption"],
            }
        )
    return {
        "_id": {"$oid": digest([row["image_id"]], num_bytes=12).hex()},
        "filepath": name,
        "tags": [],
        "_media_type": "image",
        "image_id": row["image_id"],
        FIELD: {"_cls": "Detections", "detections": detections},
    }


def _decision(image_id: str, detection: Mapping[str, Any], decided_at: datetime) -> Decision:
    region_id = detection.get("region_id")
    if not isinstance(region_id, int) or isinstance(region_id, bool):
        return Decision(image_id, problem="a region that was drawn there, and is not in the dataset")
    exported, caption = detection.get("exported_caption"), detection.get("caption")
    tags = detection.get("tags")
    given = {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set()
    return Decision(
        image_id,
        region_id,
        exported=exported if isinstance(exported, str) else None,
        caption=caption if isinstance(caption, str) else None,
        action="reject" if given & _REJECTED else "accept" if given & _ACCEPTED else None,
        decided_at=decided_at,
    )
