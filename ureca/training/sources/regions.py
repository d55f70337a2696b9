"""Samples of a regions dataset."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ureca.corpus.manifest import ManifestEntry
from ureca.corpus.storage import locate
from ureca.dataset import Output
from ureca.export.selection import Selection
from ureca.training.samples import BadSample, TrainingImage, TrainingRegion
from ureca.training.sources.settings import RegionsSource
from ureca.training.sources.source import Sample, checked

_COLUMNS = {"unique": "caption", "short": "short_caption", "detailed": "detailed_caption"}


class RegionsDataset:
    """Reads the output of ``ureca curate`` or ``ureca scenes``, one unit in memory at a time.

    Args:
        settings: which output, and which of its captions.
    """

    def __init__(self, settings: RegionsSource) -> None:
        self.selection = Selection(include_rejected=settings.include_rejected)
        self._output = Output(settings.path)
        self._column = _COLUMNS[settings.caption]

    def files(self) -> list[str]:
        """The stored manifests and the units' files."""
        names = pa.array([*self._output.manifest_files(), *self._output.part_files()], pa.string())
        paths: list[str] = locate(self._output.path).paths(names).to_pylist()
        return paths

    def samples(self) -> Iterator[Sample]:
        """All images that have captioned regions, in the manifest's order.

        Raises:
            OutputError: the folder holds no run.
        """
        self._output.run()
        done = set(self._output.done_units())
        for path, row_group in self._output.manifest_pieces():
            for unit in self._output.read_manifest_piece(path, row_group).to_pylist():
                if unit["unit"] in done:
                    yield from self._unit(unit)
                else:
                    self.selection.failed_images["not curated yet"] += len(unit["images"])

    def _unit(self, unit: Mapping[str, Any]) -> Iterator[Sample]:
        entries = {image["image_id"]: ManifestEntry.from_row(image) for image in unit["images"]}
        for row, regions in self.selection.of(self._output.unit_rows(unit["unit"])):
            image_id = row["image_id"]
            if (wrong := _wrong_with(row, entries)) is not None:
                yield from (BadSample(image_id, region["region_id"], *wrong) for region in regions)
                continue
            found = [self._region(image_id, region) for region in regions]
            yield from (sample for sample in found if isinstance(sample, BadSample))
            if good := tuple(sample for sample in found if isinstance(sample, TrainingRegion)):
                entry = replace(entries[image_id], annotation_path=None, annotation_offset=None, annotation_size=None)
                yield TrainingImage(entry, row["height"], row["width"], good)

    def _region(self, image_id: str, region: Mapping[str, Any]) -> TrainingRegion | BadSample:
        # A region without parts keeps its short caption as its detailed one.
        detailed = self._column != "short_caption" and region["detailed_caption"] != region["short_caption"]
        # Checking the runs takes longer than all else here; whoever decodes them checks them.
        made = TrainingRegion(region["region_id"], region["rle"], region[self._column] or "", detailed)
        return checked(image_id, made, area_px=region["area_px"])


def _wrong_with(row: Mapping[str, Any], entries: Mapping[str, ManifestEntry]) -> tuple[str, str] | None:
    """Kind and message of what keeps all regions of a row from being learned."""
    if row["image_id"] not in entries:
        return "unknown_image", "the manifest has no image of this id in the row's unit"
    if row["height"] is None or row["width"] is None:
        return "no_size", "the row has regions, but neither height nor width"
    return None
