"""The Parquet file of one unit, and what its footer says about the work that made it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ureca.dataset import storage
from ureca.schema import REGIONS_DATASET, Dataset, conform

_FOOTER_KEY = b"ureca.unit"
_ROW_GROUP_ROWS = 64


class UnitReport(BaseModel):
    """What became of the images of some units, and what it took.

    Attributes:
        num_images: rows, with and without error.
        num_failed: rows with an error.
        failures: how often each ``<stage>:<kind>`` occurred, over error rows and failed regions.
        num_regions: captioned regions.
        num_failed_regions: regions of good rows that have a failure.
        num_calls: answers of chat models; the captioner's own are not calls.
        num_prompt_tokens: of those calls.
        num_new_tokens: of those calls, or written by the captioner.
        rejected_answers: those that could not be used and were asked for again, by kind.
        retries: attempts at a call that failed and were followed by another, by kind.
        latency_ms: calls by the upper bound of the time they took, in milliseconds.
        seconds: time spent by stage, added over the images, some of which are worked on together.
    """

    model_config = ConfigDict(extra="forbid")

    num_images: int = 0
    num_failed: int = 0
    failures: dict[str, int] = {}
    num_regions: int = 0
    num_failed_regions: int = 0
    num_calls: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    rejected_answers: dict[str, int] = {}
    retries: dict[str, int] = {}
    latency_ms: dict[str, int] = {}
    seconds: dict[str, float] = {}

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]], dataset: Dataset = REGIONS_DATASET) -> Self:
        """Count rows of a dataset; calls, tokens and seconds are not in them."""
        report = cls()
        failures: Counter[str] = Counter()
        for row in rows:
            report.num_images += 1
            if row["error"] is not None:
                report.num_failed += 1
                failures[f"{row['error']['stage']}:{row['error']['kind']}"] += 1
            statuses = [region["status"] for region in row[dataset.name]]
            failed = [status.removeprefix("failed:") for status in statuses if status.startswith("failed:")]
            report.num_regions += statuses.count("ok")
            report.num_failed_regions += len(failed)
            failures.update(failed)
        report.failures = dict(failures)
        return report

    def __add__(self, other: "UnitReport") -> "UnitReport":
        """Both together."""
        mine, theirs = self.model_dump(), other.model_dump()
        return UnitReport(**{name: _added(mine[name], theirs[name]) for name in mine})


def _added(first: Any, second: Any) -> Any:
    if isinstance(first, dict):
        return {key: first.get(key, 0) + second.get(key, 0) for key in first.keys() | second.keys()}
    return first + second


def write_part(
    filesystem: pafs.FileSystem,
    path: str,
    rows: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    work: UnitReport,
) -> None:
    """Write the rows of a unit, or put them into its file in the place of the rows of the same images.

    Args:
        filesystem: of the output.
        path: of the unit's file within it.
        rows: of distinct images.
        dataset: that they are rows of.
        work: calls, tokens and seconds that the rows took.
    """
    made = {row["image_id"]: row for row in rows}
    if filesystem.get_file_info(path).is_file:
        existing = storage.read_table(filesystem, path).to_pylist()
        rows = [made.pop(row["image_id"], row) for row in existing] + list(made.values())
        earlier = read_report(filesystem, path)
        work = work + UnitReport(**earlier.model_dump(include=_WORK))
    report = UnitReport.of_rows(rows, dataset) + UnitReport(**work.model_dump(include=_WORK))
    table = conform(rows, dataset.schema).replace_schema_metadata({_FOOTER_KEY: report.model_dump_json().encode()})
    storage.write_table(filesystem, path, table, _ROW_GROUP_ROWS)


def write_pieces(
    filesystem: pafs.FileSystem, path: str, pieces: Sequence[pa.Table], dataset: Dataset, report: UnitReport
) -> None:
    """Write a unit of which the rows came in pieces, as ``write_part`` does.

    Args:
        filesystem: of the output.
        path: of the unit's file within it.
        pieces: in order, of the dataset's schema.
        dataset: that they are rows of.
        report: of all of them, with the work that they took.
    """
    table = pa.concat_tables(pieces)
    if filesystem.get_file_info(path).is_file:
        write_part(filesystem, path, table.to_pylist(), dataset, report)
        return
    table = table.combine_chunks().replace_schema_metadata({_FOOTER_KEY: report.model_dump_json().encode()})
    storage.write_table(filesystem, path, table, _ROW_GROUP_ROWS)


_WORK = {
    *("num_calls", "num_prompt_tokens", "num_new_tokens", "rejected_answers", "retries", "latency_ms", "seconds"),
}


def read_report(filesystem: pafs.FileSystem, path: str) -> UnitReport:
    """Read the report in the footer of a unit's file."""
    metadata = pq.read_schema(path, filesystem=filesystem).metadata or {}
    return UnitReport.model_validate_json(metadata[_FOOTER_KEY])
