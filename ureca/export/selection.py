"""Which regions leave in an export, and why the others do not."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Selection:
    """Passes on the captioned regions of each row, and counts.

    Attributes:
        include_rejected: also those whose caption verification has rejected.
        num_images: rows of which at least one region was passed on.
        num_regions: regions passed on.
        left_out: regions that were not, by reason: "rejected", or their status.
        failed_images: rows with an error, by "stage: kind".
    """

    include_rejected: bool = False
    num_images: int = 0
    num_regions: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    failed_images: Counter[str] = field(default_factory=Counter)

    def of(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
        """Rows of the schema ``REGIONS`` that have regions to export, each with those regions."""
        for row in rows:
            if (error := row["error"]) is not None:
                self.failed_images[f"{error['stage']}: {error['kind']}"] += 1
            regions = [region for region in row["regions"] if self._takes(region)]
            if regions:
                self.num_images += 1
                self.num_regions += len(regions)
                yield row, regions

    def summary(self) -> str:
        """What was written and what was left out, for people."""
        lines = [f"{_counted(self.num_regions, 'region')} of {_counted(self.num_images, 'image')} written"]
        for reason, count in self.left_out.most_common():
            lines.append(f"{_counted(count, 'region')} left out: {reason}")
        for reason, count in self.failed_images.most_common():
            lines.append(f"{_counted(count, 'image')} left out: {reason}")
        return "\n".join(lines)

    def _takes(self, region: Mapping[str, Any]) -> bool:
        if region["status"] != "ok":
            self.left_out[region["status"]] += 1
            return False
        if region["verdict"] == "rejected" and not self.include_rejected:
            self.left_out["rejected"] += 1
            return False
        return True


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
