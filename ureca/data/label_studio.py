"""Label Studio: tasks with masks and captions for its import, and the decisions of people in its JSON export.

Formats: https://labelstud.io/guide/task_format and https://labelstud.io/tags/brushlabels. A mask is a *brush*,
whose run lengths are those of the library rle-pack over the four channels of an image.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

from ureca.data.decisions import Decision, decision_time
from ureca.data.export import ExportReport, image_file_name
from ureca.data.manifest import ManifestEntry
from ureca.io import local_name, replacing
from ureca.masks.json_stream import iter_elements
from ureca.masks.mask import Mask

_REGION_ID = re.compile(r"region-(\d{1,18})")
_NUM_CHANNELS = 4
_WORD_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
_INSIDE = 255
_CHUNK_BYTES = 2**20
_MAX_TASK_CHARACTERS = 2**28  # people's results repeat the run lengths of a mask for each of its fields

_CONFIGURATION = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="mask" toName="image">
{labels}
  </BrushLabels>
  <TextArea name="caption" toName="image" perRegion="true" editable="true" maxSubmissions="1" rows="3"
            placeholder="caption of this region"/>
  <Choices name="decision" toName="image" perRegion="true" choice="single" showInline="true">
    <Choice value="accept"/>
    <Choice value="reject"/>
  </Choices>
  <TextArea name="reason" toName="image" perRegion="true" maxSubmissions="1" placeholder="reason of a rejection"/>
</View>
"""


def export_tasks(
    rows: Iterable[tuple[Mapping[str, Any], ManifestEntry]],
    to: Path,
    report: ExportReport,
    *,
    image_prefix: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a JSON file of tasks, one an image, and its labelling configuration: the file's name with ``.xml``.

    The masks and captions of a task are a prediction, which annotators begin with. ``data`` keeps the captions, by
    region, so that corrections are told from what was exported.

    Args:
        rows: rows of the schema ``REGIONS``, each with the place of its image.
        to: JSON file to write.
        report: selects the regions and counts them. An image that has no address is counted as failed.
        image_prefix: text before the name of an image's file in its address; None: an image has the address where it
            was read, a file on this machine that of Label Studio's local storage (``/data/local-files/?d=...``).
        overwrite: replace existing files.

    Raises:
        OutputError: a file exists and ``overwrite`` is not set, or cannot be written there.
    """
    labels: set[str] = set()
    with (
        replacing(to, overwrite=overwrite) as temporary,
        replacing(to.with_suffix(".xml"), overwrite=overwrite) as configuration,
    ):
        with temporary.open("w", encoding="utf-8") as file:
            separator = "[\n"
            for row, entry in rows:
                for _, regions in report.select([row]):
                    address = _address(row, entry, image_prefix)
                    if address is None:
                        report.drop("its image is inside of another file; give --image-prefix", len(regions))
                        continue
                    labels.update(_label(region) for region in regions)
                    task = _task(row, regions, address)
                    file.write(separator + json.dumps(task, ensure_ascii=False, separators=(",", ":")))
                    separator = ",\n"
            file.write("[]\n" if separator == "[\n" else "]\n")
        lines = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in sorted(labels) or ["region"])
        configuration.write_text(_CONFIGURATION.format(labels=lines), encoding="utf-8")


def read_decisions(path: Path) -> Iterator[Decision]:
    """Yield the decisions of people in an export of Label Studio in the format JSON, region by region.

    Of several annotations of a task, the last one that was submitted counts.

    Args:
        path: the JSON file.

    Raises:
        JsonStreamError: it is no JSON, or no list of tasks.
        OSError: it cannot be read.
    """
    modified = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    with path.open("rb") as file:
        chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
        for _, task, _ in iter_elements(chunks, None, max_characters=_MAX_TASK_CHARACTERS):
            data = task.get("data") if isinstance(task, dict) else None
            annotations = task.get("annotations") if isinstance(task, dict) else None
            if not isinstance(data, dict) or not isinstance(data.get("image_id"), str):
                yield Decision(None, problem="a task that no export of ureca has made")
                continue
            submitted = [
                (decision_time(each.get("updated_at"), each.get("created_at"), default=modified), each)
                for each in (annotations if isinstance(annotations, list) else [])
                if isinstance(each, dict) and isinstance(each.get("result"), list) and not each.get("was_cancelled")
            ]
            if submitted:
                decided_at, annotation = max(submitted, key=lambda pair: pair[0])
                yield from _decisions(data, annotation["result"], decided_at)


def encode_brush(pixels: npt.NDArray[np.bool_]) -> list[int]:
    """Encode a mask [H, W] as the ``rle`` of a brush: bytes, each as a number.

    A header of 32 bits for the number of values, 5 for the bits of a value and 4 x 4 for the sizes of run lengths is
    followed by blocks: a bit that tells a run, 2 bits for the size of its length, the length less one, and the value.
    """
    # Values are in row order, each pixel once for each channel.
    flat = pixels.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    starts = np.concatenate([[0], ends[:-1]])
    bits = [f"{flat.size * _NUM_CHANNELS:032b}{_WORD_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _LENGTH_BITS)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        value = f"{_INSIDE if flat[start] else 0:0{_WORD_BITS}b}"
        left = (end - start) * _NUM_CHANNELS
        while left:
            length = min(left, 2 ** _LENGTH_BITS[-1])
            size = next(index for index, size in enumerate(_LENGTH_BITS) if length <= 2**size)
            bits.append(f"1{size:02b}{length - 1:0{_LENGTH_BITS[size]}b}{value}")
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _address(row: Mapping[str, Any], entry: ManifestEntry, image_prefix: str | None) -> str | None:
    if image_prefix is not None:
        return image_prefix + quote(image_file_name(row))
    if entry.offset is not None or entry.size is not None or entry.column is not None:
        return None
    name = local_name(entry.path)
    return entry.path if name is None else f"/data/local-files/?d={quote(name.lstrip('/'))}"


def _label(region: Mapping[str, Any]) -> str:
    return region.get("category") or "region"


def _task(row: Mapping[str, Any], regions: Sequence[Mapping[str, Any]], address: str) -> dict[str, Any]:
    size = {"original_width": row["width"], "original_height": row["height"], "image_rotation": 0}
    result: list[dict[str, Any]] = []
    for region in regions:
        pixels = Mask.from_region(region, row["height"], row["width"]).decode()
        common = {"id": f"region-{region['region_id']}", "to_name": "image", **size}
        brush = {"format": "rle", "rle": encode_brush(pixels), "brushlabels": [_label(region)]}
        result.append({**common, "from_name": "mask", "type": "brushlabels", "value": brush})
        result.append(
            {**common, "from_name": "caption", "type": "textarea", "value": {"text": [region["caption"]]}},
        )
    model = str((row["provenance"] or {}).get("annotator") or "ureca")
    captions = {str(region["region_id"]): region["caption"] for region in regions}
    return {
        "data": {"image": address, "image_id": row["image_id"], "captions": captions},
        "predictions": [{"model_version": model, "result": result}],
    }


def _decisions(data: Mapping[str, Any], result: Sequence[Any], decided_at: datetime) -> Iterator[Decision]:
    exported = data.get("captions")
    found: dict[str, dict[str, str]] = {}
    for each in result:
        value = each.get("value") if isinstance(each, dict) else None
        if not isinstance(value, dict) or not isinstance(each.get("id"), str):
            continue
        fields = found.setdefault(each["id"], {})
        content = value.get("text") if each.get("type") == "textarea" else value.get("choices")
        texts = [content] if isinstance(content, str) else content
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            fields[str(each.get("from_name"))] = " ".join(texts)
    for id, fields in found.items():
        match = _REGION_ID.fullmatch(id)
        if match is None:
            yield Decision(data["image_id"], problem="a region that was drawn there, and is not in the dataset")
            continue
        decision = fields.get("decision")
        before = exported.get(match[1]) if isinstance(exported, dict) else None
        yield Decision(
            data["image_id"],
            int(match[1]),
            exported=before if isinstance(before, str) else None,
            caption=fields.get("caption"),
            action="reject" if decision == "reject" else "accept" if decision == "accept" else None,
            reason=fields.get("reason"),
            decided_at=decided_at,
        )
