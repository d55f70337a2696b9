"""Opening a benchmark of any kind; regions datasets and URECA's JSONL as benchmarks."""

import heapq
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from ureca.data.manifest import ManifestEntry
from ureca.data.output import Output
from ureca.data.samples import CAPTION_COLUMNS, BadSample, JsonlFile, TrainingImage
from ureca.data.settings import JSONL_SUFFIXES, JsonlOptions, JsonlSource
from ureca.errors import DataError, InputError
from ureca.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkImage,
    BenchmarkRegion,
    Exclusion,
    ImageSample,
    checked_counts,
    clean_references,
)
from ureca.evaluation.benchmarks.refcoco import RefCocoReader, refs_files
from ureca.evaluation.benchmarks.visual_genome import REGION_DESCRIPTIONS, VisualGenomeReader
from ureca.evaluation.settings import BenchmarkSettings, RegionsBenchmarkSettings
from ureca.io import has_suffix, parent
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle, area_px, inclusive_box_xywh
from ureca.masks.tree import MaskTree
from ureca.schema import REGIONS_DATASET


def open_benchmark(path: str, settings: BenchmarkSettings) -> Benchmark:
    """Open the benchmark at a path or URI, without reading its regions yet.

    Raises:
        InputError: there is no benchmark at the path, or files that belong to it are missing.
    """
    if has_suffix(path, JSONL_SUFFIXES):
        return JsonlReader(path, settings.jsonl)
    if Output(path).exists():
        return RegionsReader(path, settings.regions)
    folder = Path(path)
    if refs_files(folder):
        return RefCocoReader(folder, settings.refcoco)
    if (folder / REGION_DESCRIPTIONS).is_file():
        return VisualGenomeReader(folder, settings.visual_genome)
    raise InputError(
        f"{path} is no benchmark: name a file of URECA's .jsonl; the output of `ureca curate` or `ureca scenes` (with "
        f"run.json); the folder of RefCOCO+ or RefCOCOg (with refs(unc).p or refs(umd).p); or of Visual Genome (with "
        f"{REGION_DESCRIPTIONS})"
    )


class RegionsReader:
    """Reads the output of ``ureca curate`` or ``ureca scenes``, with one partition in memory at a time.

    Args:
        path: folder or URI of the output.
        settings: choice of the references.

    Raises:
        InputError: the output is of another command.
    """

    def __init__(self, path: str, settings: RegionsBenchmarkSettings) -> None:
        self._column = CAPTION_COLUMNS[settings.references]
        self._include_rejected = settings.include_rejected
        self._output = Output.of_run(path)
        command = self._output.run().get("command")
        if self._output.dataset is not REGIONS_DATASET or command in {"evaluate", "train"}:
            raise InputError(
                f"{path} is the output of `ureca {command}`, which is no benchmark; name a regions dataset as the "
                "benchmark, and captions of it among the models"
            )
        self._has_scenes = command == "scenes"
        name = path.partition("?")[0].rstrip("/").rpartition("/")[2]
        self.description = f"{name} ({settings.references} captions)"

    def files(self) -> list[str]:
        """The files of the partitions."""
        return list(self._output.part_paths().values())

    def images(self, sample: ImageSample) -> Iterator[BenchmarkImage | Exclusion]:
        """Iterate over images with captions; regions that failed, were skipped or were rejected are exclusions."""
        done = self._output.done_partitions()
        entries = {
            image["image_id"]: ManifestEntry.from_row(image)
            for path in self._output.manifest_files()
            for partition in self._output.read_manifest(path).to_pylist()
            if partition["partition"] in set(done)
            for image in partition["images"]
        }
        chosen = sample.choose(entries)
        for partition in done:
            for row in self._output.partition_rows(partition):
                if row["image_id"] in chosen:
                    yield from self._image(row, entries[row["image_id"]])

    def _image(self, row: Mapping[str, Any], entry: ManifestEntry) -> Iterator[BenchmarkImage | Exclusion]:
        if (error := row["error"]) is not None:
            yield Exclusion(entry.image_id, f"{error['stage']}:{error['kind']}", error["message"], num_regions=0)
            return
        regions = []
        for region in row["regions"]:
            try:
                regions.append(self._region(region, row["height"], row["width"]))
            except DataError as reason:
                yield Exclusion(entry.image_id, reason.kind, f"region {region['region_id']}: {reason.message}")
        if regions:
            yield BenchmarkImage(entry, row["height"], row["width"], tuple(regions), self._has_scenes)

    def _region(self, region: Mapping[str, Any], height: int, width: int) -> BenchmarkRegion:
        if region["status"] != "ok":
            raise DataError(region["status"], "it has no reference caption")
        if region["verdict"] == "rejected" and not self._include_rejected:
            raise DataError("rejected", "verification rejected its caption; see regions.include_rejected")
        return BenchmarkRegion(
            region["region_id"],
            checked_counts({"size": [height, width], "counts": region["rle"]}, height, width),
            clean_references([region[self._column] or ""]),
            region["parent_id"],
            region["depth"],
            tuple(region["lookalike_ids"]),
        )


class JsonlReader:
    """Reads URECA's JSONL, in which every line is one reference of a region, as training does.

    Depths are those in the tree of the masks that the file names.

    Args:
        path: path or URI of the file.
        settings: locations of images and annotations; images are by default beside the file.
    """

    def __init__(self, path: str, settings: JsonlOptions) -> None:
        options = settings.model_dump() | {"images": settings.images or parent(path)}
        self._source = JsonlFile(JsonlSource(path=path, **options))
        self.description = "/".join(path.partition("?")[0].split("/")[-2:])

    def files(self) -> list[str]:
        """The JSONL file."""
        return self._source.files()

    def images(self, sample: ImageSample) -> Iterator[BenchmarkImage | Exclusion]:
        """Iterate over images with the regions of their lines; bad lines are exclusions."""
        found = self._source.samples()
        if sample.limit is not None:
            numbered = (
                (number, item) for number, item in zip(count(), found, strict=False) if isinstance(item, TrainingImage)
            )
            chosen = heapq.nsmallest(sample.limit, numbered, key=lambda pair: sample.rank(pair[1].image_id))
            found = (item for _, item in sorted(chosen, key=lambda pair: pair[0]))
        for item in found:
            if isinstance(item, BadSample):
                yield Exclusion(item.image_id, item.kind, item.message)
            else:
                yield from _jsonl_image(item)


def _jsonl_image(image: TrainingImage) -> Iterator[BenchmarkImage | Exclusion]:
    texts: dict[int, list[str]] = {}
    counts: dict[int, str] = {}
    for region in image.regions:
        texts.setdefault(region.region_id, []).append(region.caption)
        counts[region.region_id] = region.counts
    size = [image.height, image.width]
    masks = []
    for id, references in texts.items():
        try:
            checked = checked_counts({"size": size, "counts": counts[id]}, image.height, image.width)
        except DataError as error:
            yield Exclusion(image.image_id, error.kind, f"mask {id}: {error.message}", len(references))
            continue
        rle = Rle(size=size, counts=checked)
        masks.append(Mask(id, rle, inclusive_box_xywh(rle), area_px(rle)))
    if masks:
        tree = MaskTree.build(masks)
        regions = [
            BenchmarkRegion(
                mask.id,
                mask.rle["counts"],
                clean_references(texts[mask.id]),
                tree.parents[mask.id],
                tree.depth(mask.id),
            )
            for mask in masks
        ]
        yield BenchmarkImage(image.entry, image.height, image.width, tuple(regions))
