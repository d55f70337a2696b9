"""A regions dataset as a benchmark: its captions are the references."""

from collections.abc import Iterator, Mapping
from typing import Any

from ureca.corpus.manifest import ManifestEntry
from ureca.dataset import Output
from ureca.errors import DataError, InputError
from ureca.evaluation.benchmarks.benchmark import (
    BenchmarkImage,
    BenchmarkRegion,
    LeftOut,
    Sample,
    checked_counts,
    sentences,
)
from ureca.evaluation.benchmarks.settings import RegionsBenchmark
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
        verb = self._output.run().get("verb")
        if self._output.dataset is not REGIONS_DATASET or verb in {"evaluate", "train"}:
            raise InputError(
                f"{path} is the output of `ureca {verb}`, which is no benchmark; name a regions dataset as the "
                "benchmark, and captions of it among the models"
            )
        self._has_scenes = verb == "scenes"
        name = path.partition("?")[0].rstrip("/").rpartition("/")[2]
        self.description = f"{name} ({settings.references} captions)"

    def files(self) -> list[str]:
        """The units' files."""
        return list(self._output.part_paths().values())

    def images(self, sample: Sample) -> Iterator[BenchmarkImage | LeftOut]:
        """Images that have rows; regions that failed, were skipped or rejected are left out."""
        entries = self._entries()
        taken = sample.of(entries)
        for unit in self._output.done_units():
            for row in self._output.unit_rows(unit):
                if row["image_id"] in taken:
                    yield from self._image(row, entries[row["image_id"]])

    def _entries(self) -> dict[str, ManifestEntry]:
        done = set(self._output.done_units())
        return {
            image["image_id"]: ManifestEntry.from_row(image)
            for path in self._output.manifest_files()
            for unit in self._output.read_manifest(path).to_pylist()
            if unit["unit"] in done
            for image in unit["images"]
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
