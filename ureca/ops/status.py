"""A status as lines for people.

[from] Spans of time for people.
[from] How far a run is, from what it has written: any machine that sees its folder can tell.
[from] How far a batch verb is: its manifest says what there is to do, its parts what is done and when.
[from] How far a training is: the lines that its workers add after each step.
[from] How far an evaluation is: the captions of all its models, of which each has an output of its own."""

import datetime
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, TypeVar

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict

from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import OutputError
from ureca.io import Location, below, locate
from ureca.schema import BENCHMARK_DATASET, CAPTIONS_DATASET, DATASETS


def duration(seconds: float) -> str:
    """Seconds for people: ``1h02m``, ``3m05s``, ``9s``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


SILENCE_S = 60.0
"""A running session renews its claim every few seconds: one that has not for so long is taken for lost."""


class Status(BaseModel):
    """How far a run is.

    Attributes:
        output: folder or URI of the run, without options of the URI.
        verb: that writes it.
        state: ``lost`` is a run that says it is running although nothing has shown that for ``SILENCE_S``.
        counted: what is counted; of an evaluation, each image once a model.
        num_total: to be done; None: it is not known yet.
        num_done: whatever became of them.
        num_failed: of those that are done, images with an error or bad samples of a training; None: not looked up.
        failures: how often each kind occurred, over images and regions; None: not looked up.
        rate_per_s: of the session that came last; None: it has not done enough.
        left_s: at that rate, where it runs; None: unknown.
        silent_s: since it last wrote a result; None: it has written none.
        session_started: of the session that came last, as ISO 8601.
        num_sessions: that there were.
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
    rate_per_s: float | None = None
    left_s: float | None = None
    silent_s: float | None = None
    session_started: str
    num_sessions: int


def status_of(path: str, *, quick: bool = False, clock: Callable[[], float] = time.time) -> Status:
    """Tell how far a run is.

    Args:
        path: folder or URI of the run: of a batch verb, an evaluation, or a training.
        quick: look at names and times only, not into every file: failures stay unknown.
        clock: seconds since 1970, as file systems have them.

    Raises:
        InputError: the URI's scheme or place is unknown.
        OutputError: there is no run, its record cannot be read, or it is of another kind.
    """

    output = Output(path)
    run = output.run()
    dataset = DATASETS.get(run.get("dataset", ""))
    try:
        if run.get("command") == "train":
            return training_status(locate(path), run, clock())
        if run.get("command") == "evaluate":
            return evaluation_status(output, run, quick, clock())
        if dataset is not None:
            return batch_status(Output(path, dataset), run, quick, clock())
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise OutputError(f"{path}: its record is incomplete or damaged ({type(error).__name__}: {error})") from error
    raise OutputError(f"{path} is the output of {run.get('command')!r}, whose progress cannot be told from its folder")


Unit = TypeVar("Unit")

_LEASE = "lease.json"


def batch_status(output: Output, run: Mapping[str, Any], quick: bool, now_s: float) -> Status:
    """The status of the output of a batch verb; ``run`` is its record."""
    sizes, written = output.partition_sizes(), written_at(output)
    report = None if quick else output.report()
    num_total = sum(sizes.values())
    return status_of_partitions(output, run, sizes, written=written, num_total=num_total, report=report, now_s=now_s)


def status_of_partitions(
    output: Output,
    run: Mapping[str, Any],
    sizes: Mapping[Unit, int],
    *,
    written: Mapping[Unit, float],
    num_total: int | None,
    report: PartitionReport | None,
    now_s: float,
) -> Status:
    """The status of a run that writes units.

    Args:
        output: of the run.
        run: its record.
        sizes: images of each unit.
        written: when each unit that is done was, in seconds since 1970.
        num_total: images to be done; None: it is not known yet.
        report: of all that is done; None: not looked up.
        now_s: seconds since 1970.
    """
    session = run["sessions"][-1]
    began_s = datetime.datetime.fromisoformat(session["started"]).timestamp()
    num_done = sum(sizes[partition] for partition in written)
    rate = rate_of(sizes, {partition: at for partition, at in written.items() if at >= began_s})
    state = run["state"]
    if state == "running" and now_s - max(began_s, lease_renewed_at(output), *written.values()) > SILENCE_S:
        state = "lost"
    return Status(
        output=output.path.partition("?")[0],
        command=run["command"],
        state=state,
        counted="images",
        num_total=num_total,
        num_done=num_done,
        num_failed=None if report is None else report.num_failed,
        failures=None if report is None else report.failures,
        rate_per_s=rate,
        left_s=(num_total - num_done) / rate if rate and num_total and state == "running" else None,
        silent_s=max(0.0, now_s - max(written.values())) if written else None,
        session_started=session["started"],
        num_sessions=len(run["sessions"]),
    )


def written_at(output: Output) -> dict[int, float]:
    """When each unit's file was written, in seconds since 1970: one listing, whatever the number of files."""
    partitions = {path: _unit(path) for path in output.part_files()}
    if not partitions:
        return {}
    folder = next(iter(partitions)).rpartition("/")[0]
    infos = output.filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return {partitions[info.path]: info.mtime_ns / 1e9 for info in infos if info.path in partitions}


def _unit(path: str) -> int:
    return int(path.rpartition("part-")[2].removesuffix(".parquet"))


def rate_of(sizes: Mapping[Unit, int], written: Mapping[Unit, float]) -> float | None:
    """Images a second, from the first unit of the session to the last; the first has waited for actors to start."""
    if len(written) < 2:
        return None
    first = min(written, key=written.__getitem__)
    seconds = max(written.values()) - written[first]
    return sum(sizes[partition] for partition in written if partition != first) / seconds if seconds > 0 else None


def lease_renewed_at(output: Output) -> float:
    """When a session last renewed its claim, in seconds since 1970; 0: none has the folder."""
    lease = output.filesystem.get_file_info(f"{locate(output.path).name}/{_LEASE}")
    return float(lease.mtime_ns / 1e9) if lease.is_file else 0.0


_RECENT_STEPS = 50  # the rate is theirs: images, and so steps, are of different length over an epoch
_LONGEST_STEPS = 10  # a step may take this many times the usual before the run counts as lost


def training_status(location: Location, run: Mapping[str, Any], now_s: float) -> Status:
    """The status of a training; ``run`` is its record, ``location`` the folder of the run."""
    steps = list(_lines(location, "metrics.jsonl"))
    num_done = steps[-1]["step"] + 1 if steps else 0
    rate = _rate(steps[-_RECENT_STEPS:])
    silent_s = _silent_s(location, now_s)
    state, num_total = run["state"], run.get("num_steps")
    if state == "running" and silent_s is not None and rate is not None:
        state = "lost" if silent_s > max(SILENCE_S, _LONGEST_STEPS / rate) else state
    failures = Counter(line["kind"] for line in _lines(location, "errors.jsonl"))
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


def _lines(location: Location, name: str) -> Iterator[dict[str, Any]]:
    """The complete lines of a file of JSON objects; none if there is no file."""
    path = f"{location.name}/{name}"
    if not location.filesystem.get_file_info(path).is_file:
        return
    with location.filesystem.open_input_stream(path) as stream:
        text = stream.read().decode()
    lines = text.split("\n")
    for line in islice(lines, len(lines) - 1):
        yield json.loads(line)


def _rate(steps: list[dict[str, Any]]) -> float | None:
    seconds = sum(sum(step["seconds"].values()) for step in steps)
    return len(steps) / seconds if seconds > 0 else None


def _silent_s(location: Location, now_s: float) -> float | None:
    info: pafs.FileInfo = location.filesystem.get_file_info(f"{location.name}/metrics.jsonl")
    return max(0.0, now_s - info.mtime_ns / 1e9) if info.is_file else None


def evaluation_status(output: Output, run: Mapping[str, Any], quick: bool, now_s: float) -> Status:
    """The status of an evaluation; ``run`` is its record.

    An image counts once for each model. When all are captioned the run goes on: captions are judged and measured.
    """
    captions = [Output(below(output.path, model["captions"]), CAPTIONS_DATASET) for model in run["models"]]
    benchmark = Output(below(output.path, run["benchmark"]), BENCHMARK_DATASET)
    of_benchmark = benchmark.partition_sizes()
    sizes = {
        (place, partition): size
        for place, each in enumerate(captions)
        for partition, size in (
            each.partition_sizes() or of_benchmark
        ).items()  # captions that were given have its units
    }
    written = {
        (place, partition): at for place, each in enumerate(captions) for partition, at in written_at(each).items()
    }
    is_stored = benchmark.exists() and benchmark.run().get("state") == "finished"
    num_total = len(captions) * sum(of_benchmark.values()) if is_stored else None
    report = None if quick else sum((each.report() for each in captions), PartitionReport())
    return status_of_partitions(output, run, sizes, written=written, num_total=num_total, report=report, now_s=now_s)


_KINDS_SHOWN = 10


def status_text(status: Status) -> str:
    """The lines."""
    rows = [("state", _state(status)), (status.counted, _progress(status))]
    if status.num_failed is not None:
        what = "images" if status.counted == "images" else "samples"
        rows.append(("failed", f"{status.num_failed} {what}"))
        commonest = sorted((status.failures or {}).items(), key=lambda item: (-item[1], item[0]))
        rows += [("failures" if not index else "", f"{n} x {kind}") for index, (kind, n) in enumerate(commonest)][
            :_KINDS_SHOWN
        ]
        if len(commonest) > _KINDS_SHOWN:
            rows.append(("", f"and {len(commonest) - _KINDS_SHOWN} other kinds (--json has all)"))
    if status.rate_per_s is not None:
        rows.append(("rate", f"{status.rate_per_s:.2f} {status.counted}/s in the last session"))
    if status.state == "running":
        rows.append(("ETA", "unknown" if status.left_s is None else duration(status.left_s)))
    if status.silent_s is not None:
        rows.append(("last result", f"{duration(status.silent_s)} ago"))
    rows.append(("sessions", f"{status.num_sessions}, the last one since {status.session_started}"))
    return f"{status.output} ({status.command})\n" + "\n".join(f"{name:<12} {value}" for name, value in rows)


def _state(status: Status) -> str:
    remedies = {
        "lost": "lost: it was running, and nothing has shown that for a while; the same command goes on from here",
        "stopped": "stopped: the same command goes on from here",
    }
    return remedies.get(status.state, status.state)


def _progress(status: Status) -> str:
    if not status.num_total:
        return f"{status.num_done} done"
    return f"{status.num_done} of {status.num_total} done ({status.num_done / status.num_total:.1%})"
