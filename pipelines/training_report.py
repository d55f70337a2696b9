"""What a training run came to, from the lines of its steps."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_COUNTS = ("regions", "images", "bad_samples", "answer_tokens", "tokens", "padding_tokens")


@dataclass(frozen=True)
class EpochReport:
    """Sums and means over steps.

    Attributes:
        epoch: from 0; None: all.
        num_steps: that were done.
        loss: mean over answer tokens, each as it was when its step was done.
        counts: of regions, images, bad samples and tokens.
        padding_fraction: of all tokens, those that do not count.
        seconds: by part, of a worker on average.
        data_wait_fraction: of the time of steps.
        regions_per_s: of the time of steps.
    """

    epoch: int | None
    num_steps: int
    loss: float
    counts: dict[str, int]
    padding_fraction: float
    seconds: dict[str, float]
    data_wait_fraction: float
    regions_per_s: float

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def report_steps(lines: Sequence[dict[str, Any]], epoch: int | None = None) -> EpochReport:
    """The report of the lines of an epoch, or of all."""
    lines = [line for line in lines if epoch is None or line["epoch"] == epoch]
    counts = {name: sum(line[name] for line in lines) for name in _COUNTS}
    seconds: Counter[str] = Counter()
    for line in lines:
        seconds.update(line["seconds"])
    steps_s = max(sum(seconds[part] for part in ("data_wait", "forward_backward", "optimizer")), 1e-9)
    return EpochReport(
        epoch=epoch,
        num_steps=len(lines),
        loss=sum(line["loss"] * line["answer_tokens"] for line in lines) / max(1, counts["answer_tokens"]),
        counts=counts,
        padding_fraction=round(counts["padding_tokens"] / max(1, counts["tokens"] + counts["padding_tokens"]), 4),
        seconds={part: round(value, 2) for part, value in seconds.items()},
        data_wait_fraction=round(seconds["data_wait"] / steps_s, 4),
        regions_per_s=round(counts["regions"] / steps_s, 2),
    )


def report_epochs(lines: Sequence[dict[str, Any]]) -> list[EpochReport]:
    """The reports of all epochs, in order."""
    return [report_steps(lines, epoch) for epoch in sorted({line["epoch"] for line in lines})]
