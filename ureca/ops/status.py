"""Status of a run, from the files that it has written: any machine that can read its output can tell.

The manifest of a batch command lists the partitions to do, and its parts show which are done and since when. A training
appends a line to its metrics after each step. An evaluation has an output of captions for each of its models.
"""

import datetime
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, TypeVar

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict

from ureca.data.listing import named_counts
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import OutputError
from ureca.io import Location, below, locate, read_parsed
from ureca.schema import BENCHMARK_DATASET, CAPTIONS_DATASET, DATASETS
from ureca.wording import duration, quantity

SILENCE_S = 60.0
"""Seconds without a heartbeat or result after which a running session counts as lost."""

_RECENT_STEPS = 50
"""Steps of a training that its rate is taken from: their durations vary over an epoch."""
_LOST_AFTER_STEPS = 10
"""Usual durations of a step without a result after which a training counts as lost, if longer than ``SILENCE_S``."""
_KINDS_SHOWN = 10

Key = TypeVar("Key")


class Status(BaseModel):
    """Progress of a run.

    Attributes:
        output: folder or URI of the run, without options of the URI.
        command: command that writes it.
        state: state of the run; ``lost``: its record says running, but nothing has shown that for ``SILENCE_S``.
        counted: things that are counted; an evaluation counts each image once per model.
        num_total: number of things to do; None: not known yet.
        num_done: number of finished things, including failed ones.
        num_failed: images with an error, or bad samples of a training; None: not looked up.
        failures: count of each kind of failure, over images and regions; None: not looked up.
        messages: first message of each kind of failure, where one is known.
        damaged: names of parts that are damaged, whose images count as not done; None: not looked up.
        skipped: count of the regions that are skipped, by reason; None: not looked up.
        annotation_notes: count of the regions with a remark on their annotation, by kind; None: not looked up.
        left_out: count of the files of the input that are not used, by reason.
        num_plain: images in which no mask was found, which are no failures; None: not looked up.
        rate_per_s: things per second in the last session; None: too few are done to tell.
        left_s: seconds left at that rate; None: unknown, or the run is not running.
        silent_s: seconds since the last result; None: there is none.
        session_started: start of the last session, in ISO 8601.
        num_sessions: number of sessions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str
    command: str
    state: Literal["running", "stopped", "finished", "lost"]
    counted: Literal["images", "steps"]
    num_total: int | None
    num_done: int
    num_failed: int | None = None
    failures: dict[str, int] | None = None
    messages: dict[str, str] = {}
    damaged: list[str] | None = None
    skipped: dict[str, int] | None = None
    annotation_notes: dict[str, int] | None = None
    left_out: dict[str, int] = {}
    num_plain: int | None = None
    rate_per_s: float | None = None
    left_s: float | None = None
    silent_s: float | None = None
    session_started: str
    num_sessions: int


def status_of(path: str, *, quick: bool = False, clock: Callable[[], float] = time.time) -> Status:
    """Read the status of a run.

    Args:
        path: folder or URI of a run of a batch command, an evaluation, or a training.
        quick: read names and times of files only, not their contents, so that failures stay unknown.
        clock: seconds since 1970, comparable with the times of the file system.

    Raises:
        InputError: the URI's scheme or location is unknown.
        OutputError: there is no run, its record cannot be read, or it is of another command.
    """
    output = Output(path)
    run = output.run()
    dataset = DATASETS.get(run.get("dataset", ""))
    try:
        if run.get("command") == "train":
            return _training_status(locate(path), run, clock())
        if run.get("command") == "evaluate":
            return _evaluation_status(output, run, quick, clock())
        if dataset is not None:
            return _batch_status(Output(path, dataset), run, quick, clock())
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise OutputError(f"{path}: its record is incomplete or damaged ({type(error).__name__}: {error})") from error
    raise OutputError(
        f"{path} is the output of {run.get('command')!r}, which keeps no progress; `ureca status` shows that of "
        "curate, caption, evaluate and train"
    )


def status_text(status: Status) -> str:
    """Render a status as lines of text."""
    states = {
        "lost": "lost: its record says running, but nothing has shown that for a while; run the same command to resume",
        "stopped": "stopped: run the same command again to resume",
    }
    progress = f"{status.num_done} done"
    if status.num_total:
        progress = f"{status.num_done} of {status.num_total} done ({status.num_done / status.num_total:.1%})"
    rows = [("state", states.get(status.state, status.state)), (status.counted, progress)]
    if status.num_failed is not None:
        rows.append(("failed", quantity(status.num_failed, "image" if status.counted == "images" else "sample")))
        failures = sorted((status.failures or {}).items(), key=lambda item: (-item[1], item[0]))
        for index, (kind, number) in enumerate(failures[:_KINDS_SHOWN]):
            message = f": {status.messages[kind]}" if kind in status.messages else ""
            rows.append(("" if index else "failures", f"{number} x {kind}{message}"))
        if len(failures) > _KINDS_SHOWN:
            rows.append(("", f"and {len(failures) - _KINDS_SHOWN} other kinds (--json has all)"))
    for index, name in enumerate((status.damaged or [])[:_KINDS_SHOWN]):
        remedy = "" if index else "; the same command processes its images again"
        rows.append(("" if index else "damaged", f"{name}{remedy}"))
    if status.left_out:
        rows.append(("left out", named_counts(status.left_out)))
    if status.num_plain:
        rows.append(("no regions", f"{quantity(status.num_plain, 'image')}, in which no mask was found (not failures)"))
    for name, counts in (("skipped", status.skipped), ("annotations", status.annotation_notes)):
        listed = sorted((counts or {}).items(), key=lambda item: (-item[1], item[0]))
        rows += [("" if index else name, f"{number} x {kind}") for index, (kind, number) in enumerate(listed)]
    if status.rate_per_s:  # 0 for a session that found nothing to do
        rows.append(("rate", f"{status.rate_per_s:.2f} {status.counted}/s in the last session"))
    if status.state == "running":
        rows.append(("ETA", "unknown" if status.left_s is None else duration(status.left_s)))
    if status.silent_s is not None:
        rows.append(("last result", f"{duration(status.silent_s)} ago"))
    rows.append(("sessions", f"{status.num_sessions}, the last one since {status.session_started}"))
    return f"{status.output} ({status.command})\n" + "\n".join(f"{name:<12} {value}" for name, value in rows)


def _batch_status(output: Output, run: Mapping[str, Any], quick: bool, now_s: float) -> Status:
    damaged = {} if quick else output.damaged_parts()
    written = {partition: at for partition, at in _written_at(output).items() if partition not in damaged}
    sizes = output.partition_sizes()  # after the parts, which a run writes after their manifest
    report = None if quick else output.report(written)
    status = _status_of_partitions(
        output, run, sizes, written=written, num_total=sum(sizes.values()), report=report, now_s=now_s
    )
    return status if quick else status.model_copy(update={"damaged": list(damaged.values())})


def _evaluation_status(output: Output, run: Mapping[str, Any], quick: bool, now_s: float) -> Status:
    """Add up the captions of all models; the run goes on after the last one, to score them."""
    captions = [Output(below(output.path, model["captions"]), CAPTIONS_DATASET) for model in run["models"]]
    benchmark = Output(below(output.path, run["benchmark"]), BENCHMARK_DATASET)
    # The parts before the sizes: a run writes them after their manifest.
    written = {(model, part): at for model, each in enumerate(captions) for part, at in _written_at(each).items()}
    benchmark_sizes = benchmark.partition_sizes()
    sizes: dict[tuple[int, int], int] = {}
    for model, each in enumerate(captions):
        # Captions that were given to the evaluation have the benchmark's partitions.
        partition_sizes = each.partition_sizes() or benchmark_sizes
        sizes |= {(model, partition): size for partition, size in partition_sizes.items()}
    is_stored = benchmark.exists() and benchmark.run().get("state") == "finished"
    num_total = len(captions) * sum(benchmark_sizes.values()) if is_stored else None
    report = None
    if not quick:
        damaged = [each.damaged_parts() for each in captions]
        written = {(model, part): at for (model, part), at in written.items() if part not in damaged[model]}
        whole = ([part for model, part in written if model == index] for index in range(len(captions)))
        reports = (each.report(parts) for each, parts in zip(captions, whole, strict=True))
        report = sum(reports, PartitionReport())
    return _status_of_partitions(output, run, sizes, written=written, num_total=num_total, report=report, now_s=now_s)


def _status_of_partitions(
    output: Output,
    run: Mapping[str, Any],
    sizes: Mapping[Key, int],
    *,
    written: Mapping[Key, float],
    num_total: int | None,
    report: PartitionReport | None,
    now_s: float,
) -> Status:
    """Derive the status of a run that writes partitions.

    Args:
        output: output of the run.
        run: record of the run.
        sizes: number of images of each partition.
        written: time at which each finished partition was written, in seconds since 1970.
        num_total: number of images to do; None: not known yet.
        report: report of all finished images; None: not looked up.
        now_s: seconds since 1970.
    """
    session = run["sessions"][-1]
    began_s = datetime.datetime.fromisoformat(session["started"]).timestamp()
    num_done = sum(sizes[partition] for partition in written)
    state = run["state"]
    if state == "running" and now_s - max(began_s, output.heartbeat_s() or 0.0, *written.values()) > SILENCE_S:
        state = "lost"
    # A session that has ended has recorded its own rate. In one that runs, the first partition has waited for the
    # actors to start, so the rate counts from its end.
    rate = session.get("images_per_s") if state != "running" else None
    if rate is None and (in_session := {partition: at for partition, at in written.items() if at >= began_s}):
        first = min(in_session, key=in_session.__getitem__)
        seconds = max(in_session.values()) - in_session[first]
        if seconds > 0:
            rate = sum(sizes[partition] for partition in in_session if partition != first) / seconds
    return Status(
        output=output.path.partition("?")[0],
        command=run["command"],
        state=state,
        counted="images",
        num_total=num_total,
        num_done=num_done,
        num_failed=None if report is None else report.num_failed,
        failures=None if report is None else report.failures,
        messages={} if report is None else report.messages,
        skipped=None if report is None else report.skipped,
        annotation_notes=None if report is None else report.annotation_notes,
        left_out={} if run["command"] == "evaluate" else run.get("left_out") or {},
        num_plain=None if report is None else report.num_plain,
        rate_per_s=rate,
        left_s=(num_total - num_done) / rate if rate and num_total and state == "running" else None,
        silent_s=max(0.0, now_s - max(written.values())) if written else None,
        session_started=session["started"],
        num_sessions=len(run["sessions"]),
    )


def _written_at(output: Output) -> dict[int, float]:
    """Read the time at which each partition was written, in seconds since 1970, from one listing."""
    partitions = {path: int(path.rpartition("part-")[2].removesuffix(".parquet")) for path in output.part_files()}
    if not partitions:
        return {}
    folder = next(iter(partitions)).rpartition("/")[0]
    infos = output.filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return {partitions[info.path]: info.mtime_ns / 1e9 for info in infos if info.path in partitions}


def _training_status(location: Location, run: Mapping[str, Any], now_s: float) -> Status:
    steps = list(_json_lines(location, "metrics.jsonl"))
    num_done = steps[-1]["step"] + 1 if steps else 0
    recent = steps[-_RECENT_STEPS:]
    seconds = sum(sum(step["seconds"].values()) for step in recent)
    rate = len(recent) / seconds if seconds > 0 else None
    metrics = location.filesystem.get_file_info(f"{location.name}/metrics.jsonl")
    silent_s = max(0.0, now_s - metrics.mtime_ns / 1e9) if metrics.is_file else None
    state, num_total = run["state"], run.get("num_steps")
    if state == "running" and silent_s is not None and rate is not None:
        state = "lost" if silent_s > max(SILENCE_S, _LOST_AFTER_STEPS / rate) else state
    failures = Counter(line["kind"] for line in _json_lines(location, "errors.jsonl"))
    return Status(
        output=str(location.name),
        command=run["command"],
        state=state,
        counted="steps",
        num_total=num_total,
        num_done=num_done,
        num_failed=failures.total(),
        failures=dict(failures),
        rate_per_s=rate,
        left_s=(num_total - num_done) / rate if rate and num_total and state == "running" else None,
        silent_s=silent_s,
        session_started=run["sessions"][-1]["started"],
        num_sessions=len(run["sessions"]),
    )


def _json_lines(location: Location, name: str) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a JSONL file; none if there is no file."""
    path = f"{location.name}/{name}"
    try:
        text = read_parsed(location.filesystem, path, bytes.decode)
    except FileNotFoundError:
        return
    lines = text.split("\n")
    for line in islice(lines, len(lines) - 1):
        yield json.loads(line)
