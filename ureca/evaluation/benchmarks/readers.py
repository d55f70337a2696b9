"""Which kind of benchmark a path is.

[from] A regions dataset as a benchmark: its captions are the references.
[from] URECA's JSONL as a benchmark: one line a reference of a region."""

import heapq
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from ureca.data.manifest import ManifestEntry
from ureca.data.output import Output
from ureca.data.samples import BadSample, JsonlFile, JsonlOptions, JsonlSource, TrainingImage
from ureca.errors import DataError, InputError
from ureca.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkImage,
    BenchmarkRegion,
    BenchmarkSettings,
    LeftOut,
    RegionsBenchmark,
    Sample,
    checked_counts,
    sentences,
)
from ureca.evaluation.benchmarks.refcoco import RefCocoReader, refs_files
from ureca.evaluation.benchmarks.visual_genome import REGION_DESCRIPTIONS, VisualGenomeReader
from ureca.io import has_suffix, parent
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle, area_px, inclusive_box_xywh
from ureca.masks.tree import MaskTree
from ureca.schema import REGIONS_DATASET

_COLUMNS = {"unique": "caption", "short": "short_caption", "detailed": "detailed_caption"}


class RegionsReader:
    """Reads the output of ``ureca curate`` or ``ureca scenes``, one unit in memory at a time.

    Raises:
        InputError: it holds something else.
    """

    def __init__(self, path: str, settings: RegionsBenchmark) -> None:
        self._column = _COLUMNS[settings.references]
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
        """The units' files."""
        return list(self._output.part_paths().values())

    def images(self, sample: Sample) -> Iterator[BenchmarkImage | LeftOut]:
        """Images that have rows; regions that failed, were skipped or rejected are left out."""
        entries = self._entries()
        taken = sample.of(entries)
        for partition in self._output.done_partitions():
            for row in self._output.partition_rows(partition):
                if row["image_id"] in taken:
                    yield from self._image(row, entries[row["image_id"]])

    def _entries(self) -> dict[str, ManifestEntry]:
        done = set(self._output.done_partitions())
        return {
            image["image_id"]: ManifestEntry.from_row(image)
            for path in self._output.manifest_files()
            for partition in self._output.read_manifest(path).to_pylist()
            if partition["partition"] in done
            for image in partition["images"]
        }

    def _image(self, row: Mapping[str, Any], entry: ManifestEntry) -> Iterator[BenchmarkImage | LeftOut]:
        if (error := row["error"]) is not None:
            yield LeftOut(entry.image_id, f"{error['stage']}:{error['kind']}", error["message"], num_regions=0)
            return
        regions = []
        for region in row["regions"]:
            try:
                regions.append(self._region(region, row["height"], row["width"]))
            except DataError as reason:
                yield LeftOut(entry.image_id, reason.kind, f"region {region['region_id']}: {reason.message}")
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
            sentences([region[self._column] or ""]),
            region["parent_id"],
            region["depth"],
            tuple(region["lookalike_ids"]),
        )


class JsonlReader:
    """Reads lines as training does. Depths are those in the tree of the masks that the file names.

    Images are looked for beside the file, unless settings say where else.
    """

    def __init__(self, path: str, settings: JsonlOptions) -> None:
        folder = parent(path)
        options = settings.model_dump() | {"images": settings.images or folder}
        self._source = JsonlFile(JsonlSource(path=path, **options))
        self.description = "/".join(path.partition("?")[0].split("/")[-2:])

    def files(self) -> list[str]:
        """The JSONL file."""
        return self._source.files()

    def images(self, sample: Sample) -> Iterator[BenchmarkImage | LeftOut]:
        """Images with the regions that lines name; bad lines are left out."""
        found = self._source.samples()
        if sample.limit is not None:
            numbered = ((number, item) for number, item in zip(count(), found, strict=False) if _is_good(item))
            taken = heapq.nsmallest(sample.limit, numbered, key=lambda pair: sample.rank(pair[1].image_id))
            found = (item for _, item in sorted(taken, key=lambda pair: pair[0]))
        for item in found:
            yield from _converted(item)


def _is_good(found: TrainingImage | BadSample) -> bool:
    return isinstance(found, TrainingImage)


def _converted(found: TrainingImage | BadSample) -> Iterator[BenchmarkImage | LeftOut]:
    if isinstance(found, BadSample):
        yield LeftOut(found.image_id, found.kind, found.message)
        return
    texts: dict[int, list[str]] = {}
    counts: dict[int, str] = {}
    for region in found.regions:
        texts.setdefault(region.region_id, []).append(region.caption)
        counts[region.region_id] = region.counts
    masks = []
    for id, said in texts.items():
        try:
            checked = checked_counts(
                {"size": [found.height, found.width], "counts": counts[id]}, found.height, found.width
            )
        except DataError as error:
            yield LeftOut(found.image_id, error.kind, f"mask {id}: {error.message}", len(said))
            continue
        rle = Rle(size=[found.height, found.width], counts=checked)
        masks.append(Mask(id, rle, inclusive_box_xywh(rle), area_px(rle)))
    if masks:
        tree = MaskTree.build(masks)
        regions = [
            BenchmarkRegion(
                mask.id, mask.rle["counts"], sentences(texts[mask.id]), tree.parents[mask.id], tree.depth(mask.id)
            )
            for mask in masks
        ]
        yield BenchmarkImage(found.entry, found.height, found.width, tuple(regions))


def open_benchmark(path: str, settings: BenchmarkSettings) -> Benchmark:
    """The benchmark that a path or URI names; little of it is read yet.

    Raises:
        InputError: it is none, or files that belong to it are missing.
    """
    if has_suffix(path, ".jsonl"):
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
