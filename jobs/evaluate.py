"""``ureca evaluate``: compare models on a benchmark, in one table."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ureca.pipelines.evaluate_settings import EvaluateSettings
from ureca.wording import quantity

if TYPE_CHECKING:
    from ureca.pipelines.evaluate import Evaluation


def main(argv: Sequence[str]) -> int:
    """Compare the models; returns 1 if more images or regions of a model failed than ``max_error_fraction`` allows."""
    settings = EvaluateSettings.load(argv)
    from ureca.pipelines.evaluate import evaluate

    evaluation = evaluate(settings, tell=lambda text: print(text, file=sys.stderr))
    return _print(evaluation, settings)


def _print(evaluation: "Evaluation", settings: EvaluateSettings) -> int:
    from ureca.evaluation.tables.formats import to_text

    print(to_text(evaluation.table))
    folder = settings.output.partition("?")[0].rstrip("/")
    print(f"{folder}/table.html, {folder}/table.md, {folder}/table.json")
    for model in evaluation.table.models:
        for remark in model.remarks:
            print(f"{model.model}: {remark}")
    status = 0
    for name, report in evaluation.reports.items():
        if report.has_too_many_failures(settings.max_error_fraction):
            status = 1
            reasons = ", ".join(f"{count} x {kind}" for kind, count in report.failures.items())
            failed = f"{report.num_failed} of {quantity(report.num_images, 'image')}"
            failed_regions = quantity(report.num_failed_regions, "region")
            print(
                f"{name}: {failed} and {failed_regions} failed ({reasons}); fix the causes and run the same command "
                "with --retry-errors, or allow more with --max-error-fraction",
                file=sys.stderr,
            )
    return status


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
