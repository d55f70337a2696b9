"""The summary that batch commands print at their end."""

import sys
from collections.abc import Mapping

from ureca.data.listing import named_counts
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.pipelines.settings import BatchSettings
from ureca.wording import quantity

_MAX_KINDS_SHOWN = 5


def print_summary(report: PartitionReport, settings: BatchSettings, dataset_name: str) -> int:
    """Print the report of an output; returns 1 and prints a remedy if too many images or regions failed, else 0."""
    run = Output(settings.output).run()
    left_out = named_counts(run.get("left_out") or {}, run.get("left_out_names"))
    print(summary(report, settings.output, dataset_name, left_out))
    too_many = report.has_too_many_failures(settings.max_error_fraction)
    if too_many:
        print(
            f"more than {settings.max_error_fraction:.0%} of the images or regions failed; fix their causes and run "
            "the same command with --retry-errors, or allow more with --max-error-fraction",
            file=sys.stderr,
        )
    return int(too_many)


def summary(report: PartitionReport, output: str, dataset_name: str, left_out: str = "") -> str:
    """Return the report of an output, and the files of its input that were left out, as lines of text."""
    seconds = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    rows = [
        ("images", f"{report.num_images}, of which {report.num_failed} failed"),
        ("captioned regions", f"{report.num_regions}, and {report.num_failed_regions} that failed"),
    ]
    if report.num_plain:
        rows.insert(
            1, ("without regions", f"{quantity(report.num_plain, 'image')}, in which no mask was found (not failures)")
        )
    if left_out:
        rows.insert(1, ("files left out", left_out))
    if dataset_name == "captions":
        rows += [("tokens written", f"{report.num_new_tokens}")]
    else:
        rows += [("model calls", f"{report.num_calls} ({report.num_prompt_tokens} + {report.num_new_tokens} tokens)")]
    rows += [("seconds by stage", seconds or "none")]
    kinds = sorted(report.failures.items(), key=lambda item: (-item[1], item[0]))[:_MAX_KINDS_SHOWN]
    for index, (kind, count) in enumerate(kinds):
        message = f": {report.messages[kind]}" if kind in report.messages else ""
        rows.append(("" if index else "failures", f"{count} x {kind}{message}"))
    for name, counts in (("skipped", report.skipped), ("annotations", report.annotation_notes)):
        for index, (kind, count) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0]))):
            first = report.messages.get(f"{name}:{kind}")
            rows.append(("" if index else name, f"{count} x {kind}" + (f": {first}" if first else "")))
    notes = sorted(report.notes.items(), key=lambda item: (-item[1], item[0]))[:_MAX_KINDS_SHOWN]
    for index, (step, count) in enumerate(notes):
        message = f": {report.messages[step]}" if step in report.messages else ""
        rows.append(("" if index else "kept as before", f"{count} x {step}{message}"))
    if report.listener.get("regions"):
        rows += [("listener", _agreement(report.listener))]
    folder = output.partition("?")[0].rstrip("/")  # without the options of a URI
    rows += [("results", f"{folder}/{dataset_name} (Parquet), {folder}/run.json")]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def _agreement(listener: Mapping[str, float]) -> str:
    """Compare the listener's choices with guesses; kappa is 1 if it chose all regions, 0 if it did no better."""
    chosen, by_chance = (listener[name] / listener["regions"] for name in ("chosen", "chosen_by_chance"))
    kappa = (chosen - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0
    regions, questions, captions = (
        quantity(round(listener[name]), noun)
        for name, noun in (("regions", "region"), ("questions", "question"), ("captions", "caption"))
    )
    return f"{chosen:.1%} of {regions} chosen, a guess {by_chance:.1%}, kappa {kappa:.2f}; {questions} about {captions}"
