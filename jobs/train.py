"""``ureca train``: train a checkpoint on captioned regions, with Ray Train and DeepSpeed."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ureca.pipelines.train_settings import TrainSettings

if TYPE_CHECKING:
    from ureca.pipelines.train import TrainReport


def main(argv: Sequence[str]) -> int:
    """Train the model; returns 0, or raises an error if the run cannot reach its last step."""
    settings = TrainSettings.load(argv)
    from ureca.pipelines.train import train

    print(_summary(train(settings, on_plan=_print_plan)))
    return 0


def _print_plan(text: str) -> None:
    print(text, file=sys.stderr)


def _summary(report: "TrainReport") -> str:
    totals = report.totals
    seconds = ", ".join(f"{part} {value:.1f}" for part, value in totals.seconds.items())
    rows = [
        ("steps", f"{totals.num_steps}"),
        ("loss", f"{totals.loss:.4f} (mean of all steps)"),
        ("regions", f"{totals.counts['regions']} ({totals.regions_per_s:.1f}/s), {totals.counts['bad_samples']} bad"),
        ("tokens", f"{totals.counts['tokens']}, {totals.padding_fraction:.1%} padding"),
        ("seconds by part", f"{seconds} (waiting for data: {totals.data_wait_fraction:.1%} of the steps)"),
    ]
    if report.validation is not None:
        figures = {name: value for name, value in report.validation.items() if isinstance(value, float)}
        rows.append(("validation", ", ".join(f"{name} {value:.4f}" for name, value in figures.items())))
    rows.append(("results", f"{report.run}/model, {report.run}/run.json, {report.run}/metrics.jsonl"))
    return "\n".join(f"{name:<16} {value}" for name, value in rows)


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
