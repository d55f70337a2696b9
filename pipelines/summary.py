"""What a batch verb tells before and after its run."""

import sys

from ureca.dataset import UnitReport
from ureca.settings.batch import BatchSettings


def print_plan(num_images: int, num_to_do: int) -> None:
    """Tell on standard error what there is to do."""
    print(f"{num_images} images, {num_images - num_to_do} done before, {num_to_do} to do", file=sys.stderr)


def print_summary(report: UnitReport, settings: BatchSettings, dataset_name: str) -> int:
    """Print what became of the images of an output; returns 1 if too many rows failed, with what to do, else 0."""
    print(summary(report, settings.output, dataset_name))
    too_many = report.num_failed > settings.max_error_fraction * report.num_images
    if too_many:
        print(
            f"more than {settings.max_error_fraction:.0%} of the rows failed; mend their causes and run the same "
            "command with --retry-errors, or allow more with --max-error-fraction",
            file=sys.stderr,
        )
    return int(too_many)


def summary(report: UnitReport, output: str, dataset_name: str) -> str:
    """The report of an output as lines for people."""
    seconds = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    rows = [
        ("images", f"{report.num_images}, of which {report.num_failed} failed"),
        ("captioned regions", f"{report.num_regions}, and {report.num_failed_regions} that failed"),
    ]
    if dataset_name == "captions":
        rows += [("tokens written", f"{report.num_new_tokens}")]
    else:
        rows += [("model calls", f"{report.num_calls} ({report.num_prompt_tokens} + {report.num_new_tokens} tokens)")]
    rows += [("seconds by stage", seconds or "none")]
    commonest = sorted(report.failures.items(), key=lambda item: (-item[1], item[0]))[:5]
    rows += [("failures" if index == 0 else "", f"{count} x {kind}") for index, (kind, count) in enumerate(commonest)]
    folder = output.partition("?")[0].rstrip("/")  # without the options of a URI
    rows += [("results", f"{folder}/{dataset_name} (Parquet), {folder}/run.json")]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)
