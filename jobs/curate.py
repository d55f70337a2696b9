"""``ureca curate``: caption the regions of images into a Parquet dataset."""

import sys
from collections.abc import Sequence

from ureca.dataset import UnitReport
from ureca.settings.curate import CurateSettings


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns 1 when more rows failed than ``max_error_fraction`` allows."""
    settings = CurateSettings.load(argv)
    from pipelines.curation_run import curate

    report = curate(settings, on_plan=_print_plan)
    print(_summary(report, settings.output))
    too_many = report.num_failed > settings.max_error_fraction * report.num_images
    if too_many:
        print(
            f"more than {settings.max_error_fraction:.0%} of the rows failed; mend their causes and run the same "
            "command with --retry-errors, or allow more with --max-error-fraction",
            file=sys.stderr,
        )
    return int(too_many)


def _print_plan(num_images: int, num_to_do: int) -> None:
    print(f"{num_images} images, {num_images - num_to_do} done before, {num_to_do} to do", file=sys.stderr)


def _summary(report: UnitReport, output: str) -> str:
    seconds = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    rows = [
        ("images", f"{report.num_images}, of which {report.num_failed} failed"),
        ("captioned regions", f"{report.num_regions}, and {report.num_failed_regions} that failed"),
        ("model calls", f"{report.num_calls} ({report.num_prompt_tokens} + {report.num_new_tokens} tokens)"),
        ("seconds by stage", seconds or "none"),
    ]
    commonest = sorted(report.failures.items(), key=lambda item: (-item[1], item[0]))[:5]
    rows += [("failures" if index == 0 else "", f"{count} x {kind}") for index, (kind, count) in enumerate(commonest)]
    folder = output.partition("?")[0].rstrip("/")  # without the options of a URI
    rows += [("results", f"{folder}/regions (Parquet), {folder}/run.json")]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


if __name__ == "__main__":
    from jobs.cli import run_verb

    sys.exit(run_verb(main, sys.argv[1:]))
