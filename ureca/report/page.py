"""The report of a run: one self-contained HTML file."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ureca.data.partitions import PartitionReport
from ureca.errors import DataError
from ureca.html import read_asset, render_page
from ureca.io import replacing
from ureca.report.panels import EvenSample, image_panel
from ureca.wording import duration

ReadPixels: TypeAlias = Callable[[Sequence[str]], Iterable[tuple[str, npt.NDArray[np.uint8] | DataError]]]
"""Reader of images: from ids to the pixels of each (uint8 RGB [H, W, 3]) or the reason for none, in any order."""

_NAMES_OF_COLUMNS = {"proposer": "mask generator", "recipe": "config hash"}
_MAX_FAILURES_LISTED = 200  # the counts cover all of them


def write_report(
    rows: Iterable[Mapping[str, Any]],
    read_pixels: ReadPixels,
    to: Path,
    *,
    title: str,
    work: PartitionReport,
    max_images: int = 60,
) -> "RunStatistics":
    """Write the report of a run, replacing the file where it exists.

    The rows are read once and never held together: memory grows with ``max_images``, not with the run.

    Args:
        rows: rows of the schema ``REGIONS``.
        read_pixels: reader of the shown images' pixels, called once.
        to: path of the HTML file.
        title: title of the page, as plain text.
        work: calls, tokens and seconds of the run.
        max_images: largest number of images shown, at least 1, spread evenly over all images that have regions.

    Returns:
        The statistics over all rows.

    Raises:
        OutputError: ``to`` cannot be written.
    """
    statistics = RunStatistics()
    shown: EvenSample[Mapping[str, Any]] = EvenSample(max_images)
    for row in rows:
        statistics.add(row)
        if row["error"] is None and row["regions"]:
            shown.offer(row)
    values = {
        "title": title,
        "statistics": statistics,
        "work": work,
        "stages": _stage_shares(work.seconds),
        "num_shown": len(shown),
        "num_showable": shown.num_offered,
        "panels": _panels(list(shown), read_pixels),
    }
    # The viewer of an image with its regions is shared with the service's page, whose browsers fetch it as files.
    page = render_page(
        "ureca.report",
        "page.html",
        values,
        style=read_asset("ureca.serving", "page", "viewer.css") + read_asset("ureca.report", "page.css"),
        script=read_asset("ureca.serving", "page", "viewer.js")
        + read_asset("ureca.report", "panels.js")
        + read_asset("ureca.report", "page.js"),
        allow_data_images=True,
    )
    with replacing(to, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(page)
    return statistics


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """An image without captions, with the reason."""

    image_id: str
    uri: str
    stage: str
    kind: str
    message: str


@dataclass(slots=True)
class RunStatistics:
    """Counts over the rows of a ``regions`` dataset, in memory that does not grow with the number of rows.

    Attributes:
        num_images: rows, failed ones included.
        num_regions: masks of all images, captioned or not.
        num_captioned: regions whose status is ok.
        num_with_lookalikes: captioned regions that had look-alikes.
        verdicts: captioned regions by verdict (unchecked, accepted, self_checked, rejected).
        failures_by_reason: failed images by "stage: kind".
        left_out_by_status: regions that were skipped or failed, by status.
        failures: the first 200 failed images.
        provenance: distinct values of each field of the rows' provenance (annotator, embedder, ...).
    """

    num_images: int = 0
    num_regions: int = 0
    num_captioned: int = 0
    num_with_lookalikes: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    failures_by_reason: Counter[str] = field(default_factory=Counter)
    left_out_by_status: Counter[str] = field(default_factory=Counter)
    failures: list[ImageFailure] = field(default_factory=list)
    provenance: dict[str, set[str]] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        """Images without captions."""
        return self.failures_by_reason.total()

    @property
    def num_failed_regions(self) -> int:
        """Regions whose captioning failed; skipped regions do not count."""
        return sum(count for status, count in self.left_out_by_status.items() if status.startswith("failed"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row of the schema ``REGIONS``."""
        self.num_images += 1
        if (error := row["error"]) is not None:
            self.failures_by_reason[f"{error['stage']}: {error['kind']}"] += 1
            if len(self.failures) < _MAX_FAILURES_LISTED:
                self.failures.append(ImageFailure(image_id=row["image_id"], uri=row["uri"], **error))
        for name, value in (row["provenance"] or {}).items():
            if value is not None:
                self.provenance.setdefault(_NAMES_OF_COLUMNS.get(name, name), set()).add(value)
        self.num_regions += len(row["regions"])
        for region in row["regions"]:
            if region["status"] != "ok":
                self.left_out_by_status[region["status"]] += 1
                continue
            self.num_captioned += 1
            self.num_with_lookalikes += bool(region["lookalike_ids"])
            self.verdicts[region["verdict"]] += 1


def _panels(rows: Sequence[Mapping[str, Any]], read_pixels: ReadPixels) -> Iterator[tuple[dict[str, Any], str]]:
    """The data of each panel without its picture, and the picture as a data URI ("" for none)."""
    by_id = {row["image_id"]: row for row in rows}
    for image_id, pixels in read_pixels(list(by_id)):
        panel = image_panel(by_id.pop(image_id), pixels)
        jpeg = panel.pop("src") or ""
        yield panel, jpeg
    if by_id:
        raise RuntimeError(f"no pixels and no error came back for the images {sorted(by_id)[:5]}")


def _stage_shares(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The stages' shares of the run's work in per cent, longest first; empty where no time was recorded."""
    total_s = sum(seconds.values())
    shares: list[dict[str, Any]] = []
    start_percent = 0.0
    for stage, stage_s in sorted(seconds.items(), key=lambda item: -item[1]) if total_s > 0 else []:
        share_percent = 100 * stage_s / total_s
        shares.append(
            {
                "name": stage,
                "duration": duration(stage_s, decimals=1),
                "start_percent": start_percent,
                "share_percent": share_percent,
            }
        )
        start_percent += share_percent
    return shares
