"""Export to a folder in the layout of the Hugging Face Hub: images, masks and captions in Parquet, and a dataset card.

``datasets.load_dataset(folder)`` loads it, and the Hub shows it, without any code of its own.
"""

import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ureca import __version__
from ureca.data.card import size_category
from ureca.data.corrections import Corrections
from ureca.data.export import ExportReport
from ureca.data.output import Output
from ureca.data.reading import fetch
from ureca.errors import DataError, ImageError, OutputError, SettingsError
from ureca.extras import not_installed
from ureca.image_limits import ImageLimits
from ureca.images import Pixels, decode_image
from ureca.io import replacing_folder
from ureca.masks.mask import Mask
from ureca.masks.rle import area_px, box_xywh
from ureca.masks.views import Views

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - the name of the variable
MAX_SAMPLE_REGIONS = 100
"""Largest number of regions in the sample that the Hub's viewer shows with their contours."""

_BYTES_PER_FILE = 400_000_000
_ROWS_PER_GROUP = 32
_SAMPLE_SIDE_PX = 640
_PLAIN_FORMATS = ("JPEG", "PNG", "WEBP")
_EXIF_ORIENTATION = 0x0112
_MAX_JPEG_QUALITY = 90

_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_REGION = pa.struct(
    [
        ("region_id", pa.int64()),
        ("caption", pa.string()),
        ("short_caption", pa.string()),
        ("detailed_caption", pa.string()),
        ("mask", _FILE),
        ("bbox_xywh", pa.list_(pa.float64())),
        ("area_px", pa.int64()),
        ("parent_id", pa.int64()),
        ("depth", pa.int64()),
        ("lookalike_ids", pa.list_(pa.int64())),
        ("verdict", pa.string()),
    ]
)
_TRAIN = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", _FILE),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("regions", pa.list_(_REGION)),
    ]
)
_SAMPLE = pa.schema([("image", _FILE), ("caption", pa.string()), ("image_id", pa.string()), ("region_id", pa.int64())])


def export_hub(
    output: Output,
    to: Path,
    report: ExportReport,
    *,
    overwrite: bool = False,
    corrections: Corrections | None = None,
) -> None:
    """Write a folder that ``datasets.load_dataset`` loads: one row per image, with its regions.

    Columns are ``image_id``, ``image``, ``height``, ``width`` and ``regions``, of which each has its captions, a mask
    as an image (white inside), ``bbox_xywh`` and ``area_px`` in pixels, and its place in the mask tree. The
    configuration ``sample`` has a row for each of up to 100 regions, with its contour drawn into the image. The card
    README.md has the figures of the run and leaves the licences to the publisher. Images are read from their source:
    upright JPEG, PNG and WebP files are kept as they are, others become PNG.

    Args:
        output: output of the run.
        to: folder to write.
        report: selects the regions and counts them; images that can no longer be read, or have another size than
            their masks, are counted as failed.
        overwrite: replace an existing folder.
        corrections: corrections by people to merge; None: there are none.

    Raises:
        OutputError: ``to`` exists and ``overwrite`` is not set, it cannot be written, or no caption can be exported.
    """
    if not to.parent.is_dir():
        raise OutputError(f"the folder {to.parent} does not exist; make it first")
    with replacing_folder(to, overwrite=overwrite) as folder:
        (folder / "data").mkdir()
        figures = _Figures()
        sample: list[dict[str, Any]] = []
        writer = _ShardWriter(folder / "data")
        for row, regions, data in images_to_export(output, report, corrections or Corrections({})):
            try:
                pixels = decode_image(data, ImageLimits())
                if pixels.shape[:2] != (row["height"], row["width"]):
                    raise ImageError("size_mismatch", "the image has another size than its masks")
            except ImageError as error:
                report.drop(f"export: {error.kind}", len(regions))
                continue
            masks = {region["region_id"]: Mask.from_region(region, row["height"], row["width"]) for region in regions}
            writer.write(
                {
                    "image_id": row["image_id"],
                    "image": image_file(data, pixels, row["image_id"]),
                    "height": row["height"],
                    "width": row["width"],
                    "regions": [_region(region, masks[region["region_id"]], row["image_id"]) for region in regions],
                }
            )
            figures.add(row, regions)
            if len(sample) < MAX_SAMPLE_REGIONS:
                sample += _sample_rows(pixels, row["image_id"], regions, masks)
        writer.close()
        if not figures.num_images:
            raise OutputError(f"{output.path} has no caption to export:\n{report.summary()}")
        table = pa.Table.from_pylist(sample[:MAX_SAMPLE_REGIONS], _with_features(_SAMPLE))
        pq.write_table(table, folder / "data" / "sample.parquet", row_group_size=_ROWS_PER_GROUP)
        (folder / "README.md").write_text(figures.card(output, report), encoding="utf-8")


def push(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload an exported folder to a dataset repository of the Hugging Face Hub, which is created if need be.

    Args:
        folder: folder that ``export_hub`` has written.
        repository: name as USER/NAME.
        private: only you, or your organization, can see a repository that is created.

    Returns:
        Address of the repository.

    Raises:
        SettingsError: the environment has no token, or huggingface_hub is not installed.
        OutputError: the Hub refuses the upload.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise SettingsError(f"--push: set {TOKEN_VARIABLE} to a token with the right to write")
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise not_installed("--push", error, "hub") from error
    api = HfApi(token=token)
    try:
        address = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=str(folder))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise OutputError(f"{repository}: the upload failed: {error}. {folder} is complete") from error
    return str(address)


def images_to_export(
    output: Output, report: ExportReport, corrections: Corrections
) -> Iterator[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]], bytes]]:
    """Yield the rows that have regions to export, with these regions and the content of the image's file."""
    for partition in output.placed_partitions():
        merged = (corrections.apply(row) for row, _ in partition)
        selected = {row["image_id"]: (row, regions) for row, regions in report.select(merged)}
        entries = [entry for row, entry in partition if row["image_id"] in selected]
        for fetched in fetch(entries, ImageLimits()):
            row, regions = selected[fetched.entry.image_id]
            if isinstance(fetched.image, DataError):
                report.drop(f"export: {fetched.image.kind}", len(regions))
            else:
                yield row, regions, fetched.image


def _region(region: Mapping[str, Any], mask: Mask, image_id: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(mask.decode()).save(file, "PNG")
    copied = ("region_id", "caption", "short_caption", "detailed_caption", "parent_id", "depth", "lookalike_ids")
    return {
        **{name: region[name] for name in (*copied, "verdict")},
        "mask": {"bytes": file.getvalue(), "path": f"{_flat(image_id)}-{mask.id}.png"},
        "bbox_xywh": list(box_xywh(mask.rle)),
        "area_px": area_px(mask.rle),
    }


def _flat(image_id: str) -> str:
    return image_id.replace("/", "_")


def image_file(data: bytes, pixels: Pixels, image_id: str) -> dict[str, Any]:
    """Return the file of an image that has been decoded: as it is where every reader gets the same pixels."""
    with Image.open(io.BytesIO(data)) if _is_plain(data) else Image.fromarray(pixels) as image:
        if (
            image.format in _PLAIN_FORMATS
            and image.mode in ("L", "RGB")
            and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        ):
            return {"bytes": data, "path": f"{_flat(image_id)}.{image.format.lower().replace('jpeg', 'jpg')}"}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{_flat(image_id)}.png"}


def _is_plain(data: bytes) -> bool:
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or data[8:12] == b"WEBP"


def _sample_rows(
    pixels: Pixels, image_id: str, regions: Sequence[Mapping[str, Any]], masks: Mapping[int, Mask]
) -> list[dict[str, Any]]:
    views = Views(pixels, masks, max_side_px=_SAMPLE_SIDE_PX)
    rows = []
    for region in regions:
        file = io.BytesIO()
        Image.fromarray(views.whole_with_contour(region["region_id"])).save(file, "JPEG", quality=_MAX_JPEG_QUALITY)
        name = f"{_flat(image_id)}-{region['region_id']}.jpg"
        rows.append(
            {
                "image": {"bytes": file.getvalue(), "path": name},
                "caption": region["caption"],
                "image_id": image_id,
                "region_id": region["region_id"],
            }
        )
    return rows


def _with_features(schema: pa.Schema) -> pa.Schema:
    """Add the description of the columns by which ``datasets`` takes files for images."""

    def feature(type: pa.DataType) -> Any:
        if type.equals(_FILE):
            return {"_type": "Image"}
        if pa.types.is_struct(type):
            return {type.field(index).name: feature(type.field(index).type) for index in range(type.num_fields)}
        if pa.types.is_list(type):
            inner = feature(type.value_type)
            return (
                [inner] if isinstance(inner, dict) and "_type" not in inner else {"_type": "Sequence", "feature": inner}
            )
        return {"_type": "Value", "dtype": {"double": "float64"}.get(str(type), str(type))}

    info = {"info": {"features": {field.name: feature(field.type) for field in schema}}}
    return schema.with_metadata({"huggingface": json.dumps(info)})


class _ShardWriter:
    """Writer of rows to ``train-00000.parquet`` and so on, each of about 400 MB at most."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._schema = _with_features(_TRAIN)
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._num_files = self._num_bytes = 0

    def write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._num_bytes += len(row["image"]["bytes"]) + sum(len(each["mask"]["bytes"]) for each in row["regions"])
        if len(self._rows) >= _ROWS_PER_GROUP:
            self._flush()
        if self._num_bytes >= _BYTES_PER_FILE:
            self.close()

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self._writer, self._num_bytes = None, 0

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._folder / f"train-{self._num_files:05d}.parquet", self._schema)
            self._num_files += 1
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []


class _Figures:
    """Figures of an export, for its card."""

    def __init__(self) -> None:
        self.num_images = self.num_regions = 0
        self._num_words: list[int] = []
        self._areas: list[float] = []
        self._sources: dict[str, Counter[str]] = {"proposer": Counter(), "annotator": Counter()}
        self._verdicts: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]) -> None:
        self.num_images += 1
        self.num_regions += len(regions)
        self._num_words += [len(region["caption"].split()) for region in regions]
        self._areas += [region["area_px"] / (row["height"] * row["width"]) for region in regions]
        self._verdicts.update(region["verdict"] for region in regions)
        for name, sources in self._sources.items():
            sources[str((row["provenance"] or {}).get(name) or "unknown")] += 1

    def card(self, output: Output, report: ExportReport) -> str:
        """Write the dataset card, README.md."""
        run = output.run()
        words, areas = np.array(self._num_words), np.array(self._areas)
        rows = {
            "images": f"{self.num_images}",
            "captioned regions": f"{self.num_regions}",
            "regions per image": f"{self.num_regions / self.num_images:.1f}",
            "words per caption": f"mean {words.mean():.1f}, median {np.median(words):.0f}",
            "area of a region": f"median {np.median(areas):.1%} of its image",
            "verdicts": ", ".join(f"{count} {name}" for name, count in self._verdicts.most_common()),
            "masks": ", ".join(self._sources["proposer"]),
            "captions": ", ".join(self._sources["annotator"]),
            "written by": f"ureca {run.get('command') or 'curate'}, version {__version__}",
        }
        table = "\n".join(f"| {name} | {value.replace('|', ' ')} |" for name, value in rows.items())
        left_out = "\n".join(f"- {line}" for line in report.summary().split("\n")[1:]) or "- nothing"
        return _CARD.format(size=size_category(self.num_images), table=table, left_out=left_out)


_CARD = """---
# license: to be filled in by the publisher; see the section on licences
task_categories:
- image-to-text
- image-segmentation
tags:
- region-captioning
size_categories:
- {size}
configs:
- config_name: default
  default: true
  data_files:
  - split: train
    path: data/train-*.parquet
- config_name: sample
  data_files:
  - split: train
    path: data/sample.parquet
---

# Captions of image regions

Each row is an image with its regions: masks, and captions that tell each region from all others of its image.

```python
from datasets import load_dataset

rows = load_dataset("FOLDER OR USER/NAME", split="train")
region = rows[0]["regions"][0]
region["mask"], region["caption"]
```

The configuration `sample` shows some regions with their contours.

| column | content |
|---|---|
| `image_id`, `image`, `height`, `width` | the image, upright, and its size in pixels |
| `regions[].caption` | the unique caption; `short_caption` and `detailed_caption` are those of the first stages |
| `regions[].mask` | image of the same size, white inside the region |
| `regions[].bbox_xywh`, `regions[].area_px` | x, y, width, height and area of the mask in pixels |
| `regions[].parent_id`, `regions[].depth` | place in the mask tree; -1: top level |
| `regions[].lookalike_ids` | regions of the image that look alike |
| `regions[].verdict` | judgement by the listener and the verification |

## Figures

| | |
|---|---|
{table}

Left out:

{left_out}

## Licences

To be filled in by the publisher, also as `license` at the top of this file:

- licence and source of the images:
- terms of the model that wrote the captions, and licence of the captions:
- licence of the masks, where they come from another dataset:
- persons, private places and marks in the images:
"""
