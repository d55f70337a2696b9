"""The figures of a run, counted from its rows in one pass."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_FAILURES_LISTED = 200  # the counts cover all of them


@dataclass(frozen=True, slots=True)
class Failure:
    """An image without captions, and why."""

    image_id: str
    uri: str
    stage: str
    kind: str
    message: str


@dataclass(slots=True)
class Figures:
    """What the rows of a ``regions`` dataset add up to; it stays small however many there are.

    Attributes:
        num_images: rows, failed ones included.
        num_regions: masks of all images, whatever became of them.
        num_captioned: regions whose status is ok.
        num_with_lookalikes: captioned regions that had look-alikes.
        verdicts: captioned regions by verdict (unchecked, accepted, rejected).
        failures_by_reason: failed images by "stage: kind".
        left_out_by_status: regions that were skipped or failed, by status.
        failures: the first failed images.
        provenance: distinct values of each field of the rows' provenance (annotator, embedder, ...).
    """

    num_images: int = 0
    num_regions: int = 0
    num_captioned: int = 0
    num_with_lookalikes: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    failures_by_reason: Counter[str] = field(default_factory=Counter)
    left_out_by_status: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    provenance: dict[str, set[str]] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        """Images without captions."""
        return self.failures_by_reason.total()

    @property
    def num_failed_regions(self) -> int:
        """Regions that should have got a caption and did not."""
        return sum(count for status, count in self.left_out_by_status.items() if status.startswith("failed"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row of the schema ``REGIONS``."""
        self.num_images += 1
        if (error := row["error"]) is not None:
            self.failures_by_reason[f"{error['stage']}: {error['kind']}"] += 1
            if len(self.failures) < _MAX_FAILURES_LISTED:
                self.failures.append(Failure(image_id=row["image_id"], uri=row["uri"], **error))
        for name, value in (row["provenance"] or {}).items():
            if value is not None:
                self.provenance.setdefault(name, set()).add(value)
        self.num_regions += len(row["regions"])
        for region in row["regions"]:
            if region["status"] != "ok":
                self.left_out_by_status[region["status"]] += 1
                continue
            self.num_captioned += 1
            self.num_with_lookalikes += bool(region["lookalike_ids"])
            self.verdicts[region["verdict"]] += 1
