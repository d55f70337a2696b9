"""Exports of captioned regions: URECA's training set (JSONL), Parquet with one row per region, COCO and others."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ureca import __version__
from ureca.data.corrections import Corrections, counted_actions
from ureca.data.output import Output
from ureca.data.questions import paraphrase
from ureca.errors import OutputError
from ureca.io import naming_unwritable, replacing
from ureca.masks.annotations import Annotations, write_annotations
from ureca.masks.mask import Mask
from ureca.masks.rle import area_px, box_xywh
from ureca.schema import PROVENANCE, REGION, REGIONS, conform
from ureca.wording import quantity


def export(
    output: str | PathLike[str],
    format: Literal["jsonl", "parquet", "coco", "coco-captions", "hf", "label-studio", "fiftyone"],
    to: str | PathLike[str],
    *,
    masks: str | PathLike[str] | None = None,
    image_prefix: str | None = None,
    include_rejected: bool = False,
    overwrite: bool = False,
) -> "ExportReport":
    """Write the captions of a run for other tools, with the corrections of its journal.

    Args:
        output: path or URI of the output folder of ``ureca curate`` or ``ureca caption``.
        format: "jsonl" (training set of URECA, one region a line), "parquet" (one row a region), "coco" (COCO
            instances of one category, with captions), "coco-captions" (COCO captions, without masks), "hf" (a folder
            with images, masks and captions that ``datasets.load_dataset`` loads), "label-studio" (tasks, and a
            labelling configuration beside them) or "fiftyone" (a folder in the layout FiftyOneDataset).
            ``import_corrections`` reads the decisions of people who worked with one of the last two.
        to: local path of the file to write; of the folder with "hf" and "fiftyone".
        masks: with "jsonl", folder for the masks, one SA-1B JSON file an image; None: no masks are written.
        image_prefix: with "label-studio", text before the name of an image's file in its address; None: the address
            where the image was read, that of Label Studio's local storage for a file on this machine.
        include_rejected: export captions that the verification rejected, too.
        overwrite: replace existing files.

    Returns:
        The numbers of images and regions that were written, and the reasons why others were not.

    Raises:
        OutputError: ``output`` is not the output of a run, or ``to`` exists or cannot be written.
        ValueError: the format is unknown, or ``masks`` or ``image_prefix`` are given with another one than theirs.

    Example:
        >>> import ureca
        >>> report = ureca.export("captions", "coco", "captions.json")
        >>> report.num_images
        1
    """
    if masks is not None and format != "jsonl":
        raise ValueError("masks go with the format jsonl; the other formats hold the masks themselves")
    if image_prefix is not None and format != "label-studio":
        raise ValueError("image_prefix goes with the format label-studio")
    run = Output.of_run(fspath(output))
    corrections = Corrections.of_output(run.path)
    rows = map(corrections.apply, run.region_rows())
    report = ExportReport(include_rejected=include_rejected)
    if format == "jsonl":
        folder = None if masks is None else Path(masks)
        export_jsonl(rows, Path(to), report, masks=folder, overwrite=overwrite)
    elif format == "parquet":
        export_parquet(rows, Path(to), report, overwrite=overwrite)
    elif format == "coco":
        export_coco(rows, Path(to), report, overwrite=overwrite)
    elif format == "coco-captions":
        export_coco(rows, Path(to), report, masks=False, overwrite=overwrite)
    elif format == "hf":
        from ureca.data.hub_export import export_hub

        export_hub(run, Path(to), report, overwrite=overwrite, corrections=corrections)
    elif format == "label-studio":
        from ureca.data.label_studio import export_tasks

        placed = ((corrections.apply(row), entry) for partition in run.placed_partitions() for row, entry in partition)
        export_tasks(placed, Path(to), report, image_prefix=image_prefix, overwrite=overwrite)
    elif format == "fiftyone":
        from ureca.data.fiftyone import export_samples

        export_samples(run, Path(to), report, overwrite=overwrite, corrections=corrections)
    else:
        raise ValueError(
            f"there is no format {format!r}; the formats are jsonl, parquet, coco, coco-captions, hf, label-studio and "
            "fiftyone"
        )
    report.corrections = corrections.num_applied
    corrections.warn_of_outdated()
    return report


@dataclass(slots=True)
class ExportReport:
    """Numbers of regions that an export writes and leaves out, counted while it selects them.

    Attributes:
        include_rejected: select captions that the verification rejected, too.
        num_images: number of rows with at least one selected region.
        num_regions: number of selected regions.
        left_out: number of other regions, by reason: "rejected", or their status.
        failed_images: number of rows with an error, by "stage: kind".
        corrections: number of corrections by people that were merged, by action.
    """

    include_rejected: bool = False
    num_images: int = 0
    num_regions: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    failed_images: Counter[str] = field(default_factory=Counter)
    corrections: Counter[str] = field(default_factory=Counter)

    def select(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
        """Yield the rows (schema ``REGIONS``) that have regions to export, each with those regions."""
        for row in rows:
            if (error := row["error"]) is not None:
                self.failed_images[f"{error['stage']}: {error['kind']}"] += 1
            regions = [region for region in row["regions"] if self._takes(region)]
            if regions:
                self.num_images += 1
                self.num_regions += len(regions)
                yield row, regions

    def drop(self, reason: str, num_regions: int) -> None:
        """Count an image that was selected, with so many regions, as one that failed."""
        self.num_images -= 1
        self.num_regions -= num_regions
        self.failed_images[reason] += 1

    def summary(self) -> str:
        """Return a readable summary of the regions that were written and left out."""

        lines = [f"{quantity(self.num_regions, 'region')} of {quantity(self.num_images, 'image')} written"]
        if self.corrections:
            lines.append(f"corrections by people: {counted_actions(self.corrections)}")
        for reason, count in self.left_out.most_common():
            lines.append(f"{quantity(count, 'region')} left out: {reason}")
        for reason, count in self.failed_images.most_common():
            lines.append(f"{quantity(count, 'image')} left out: {reason}")
        return "\n".join(lines)

    def _takes(self, region: Mapping[str, Any]) -> bool:
        if region["status"] != "ok":
            self.left_out[region["status"]] += 1
            return False
        if region["verdict"] == "rejected" and not self.include_rejected:
            self.left_out["rejected"] += 1
            return False
        return True


def export_coco(
    rows: Iterable[Mapping[str, Any]],
    to: Path,
    report: ExportReport,
    *,
    masks: bool = True,
    overwrite: bool = False,
) -> None:
    """Write COCO instances with captions, or COCO captions, which ``pycocotools.coco.COCO`` loads.

    Images and annotations are numbered from 1. An image keeps its own id as ``image_id`` beside COCO's ``id``, and
    an annotation its region's id as ``region_id``. ``file_name`` is the path below INPUT where ids are paths, else the
    name of the file. All instances have the one category "region"; ``segmentation`` is compressed RLE; ``bbox`` (x, y,
    width, height) and ``area`` are the mask's, in pixels.

    Args:
        rows: rows of the schema ``REGIONS``.
        to: JSON file to write.
        report: selects the regions and counts them.
        masks: write instances; False: captions only, as in captions_val2017.json.
        overwrite: replace an existing file.

    Raises:
        OutputError: ``to`` exists and ``overwrite`` is not set, or cannot be written there.
    """
    # The two lists of a COCO file follow each other: the second one is collected in a file of its own.
    with (
        replacing(to, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=to.parent) as annotations,
    ):
        info = {"description": "Unique captions of image regions", "version": f"ureca {__version__}"}
        categories = [{"id": _CATEGORY, "name": "region", "supercategory": "region"}] if masks else []
        head = {"info": info, "licenses": [], **({"categories": categories} if masks else {})}
        file.write(f'{json.dumps(head)[:-1]},\n"images": [')
        separator = "\n"
        number = 0
        for image_number, (row, regions) in enumerate(report.select(rows), start=1):
            file.write(separator + json.dumps(_image(image_number, row), ensure_ascii=False))
            for region in regions:
                annotation = {"id": number + 1, "image_id": image_number, "region_id": region["region_id"]}
                annotation["caption"] = region["caption"]
                if masks:
                    annotation |= _instance(row, region)
                annotations.write((",\n" if number else "\n") + json.dumps(annotation, ensure_ascii=False))
                number += 1
            separator = ",\n"
        file.write('],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write("]}\n")


_CATEGORY = 1


def image_file_name(row: Mapping[str, Any]) -> str:
    """Return the path below INPUT of a row's image where ids are paths, else the name of its file."""
    name: str = row["uri"].rpartition("/")[2]
    return f"{row['image_id']}.{name.rpartition('.')[2]}" if "/" in row["image_id"] else name


def _image(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": row["image_id"],
        "file_name": image_file_name(row),
        "uri": row["uri"],
        "height": row["height"],
        "width": row["width"],
    }


def _instance(row: Mapping[str, Any], region: Mapping[str, Any]) -> dict[str, Any]:
    mask = Mask.from_region(region, row["height"], row["width"])
    rle = mask.rle
    return {
        "category_id": _CATEGORY,
        **({} if mask.category is None else {"category": mask.category}),
        # Rows have SA-1B's boxes, which are one pixel smaller than COCO's.
        "bbox": list(box_xywh(rle)),
        "area": area_px(rle),
        "segmentation": dict(rle),
        "iscrowd": 0,
    }


_IMAGE_COLUMNS = ("image_id", "uri", "height", "width")

FLAT = pa.schema([*(REGIONS.field(name) for name in _IMAGE_COLUMNS), *REGION, pa.field("provenance", PROVENANCE)])
"""Schema of the Parquet export: columns of the image, repeated, then those of the region, as in ``REGIONS``."""


def export_parquet(
    rows: Iterable[Mapping[str, Any]],
    to: Path,
    report: ExportReport,
    *,
    overwrite: bool = False,
    rows_per_group: int = 8192,
) -> None:
    """Write a Parquet file of the schema ``FLAT``.

    Args:
        rows: rows of the schema ``REGIONS``.
        to: Parquet file to write.
        report: selects the regions and counts them.
        overwrite: replace an existing file.
        rows_per_group: number of regions from which a row group is written; an image's regions stay together.

    Raises:
        OutputError: ``to`` exists and ``overwrite`` is not set, or cannot be written there.
    """
    with (
        replacing(to, overwrite=overwrite) as temporary,
        pq.ParquetWriter(temporary, FLAT, compression="zstd") as writer,
    ):
        group: list[dict[str, Any]] = []
        for row, regions in report.select(rows):
            image = {name: row[name] for name in (*_IMAGE_COLUMNS, "provenance")}
            group += [{**image, **region} for region in regions]
            if len(group) >= rows_per_group:
                writer.write_table(conform(group, FLAT))
                group = []
        if group:
            writer.write_table(conform(group, FLAT))


def export_jsonl(
    rows: Iterable[Mapping[str, Any]],
    to: Path,
    report: ExportReport,
    *,
    masks: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write the captions after uniqueness refinement, each with a question.

    A line is ``{"id", "image", "mask_id", "conversations": [{"from": "human", "value": "<image>\\n<question>"},
    {"from": "gpt", "value": <caption>}]}``; ``image`` is the image's id and ``mask_id`` the region's, as text.

    Args:
        rows: rows of the schema ``REGIONS``.
        to: JSONL file to write.
        report: selects the regions and counts them.
        masks: folder for the masks of the exported regions, ``<image>.json`` in SA-1B's layout; None: no masks.
        overwrite: replace existing files.

    Raises:
        OutputError: ``to`` or a file of masks exists and ``overwrite`` is not set, or cannot be written there.
    """
    with replacing(to, overwrite=overwrite) as temporary, temporary.open("w", encoding="utf-8") as file:
        if masks is not None:
            with naming_unwritable(masks):
                masks.mkdir(parents=True, exist_ok=True)
            if not overwrite and any(masks.iterdir()):
                raise OutputError(f"the folder {masks} is not empty; name another one, or add to it with --overwrite")
        number = 0
        for row, regions in report.select(rows):
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


def _write_masks(folder: Path, row: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]) -> None:
    image_id = row["image_id"]
    path = folder / f"{image_id}.json"
    if not set(image_id.split("/")).isdisjoint(("", ".", "..")):
        raise OutputError(
            f"the masks of image {image_id!r} cannot be written: its id is no file name; export without --masks"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    masks = tuple(Mask.from_region(region, row["height"], row["width"]) for region in regions)
    with replacing(path, overwrite=True) as temporary:
        write_annotations(temporary, Annotations(masks, row["height"], row["width"], image_id))
