"""How far a training is: the lines that its workers add after each step."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pyarrow.fs as pafs

from ureca.corpus.storage import Location
from ureca.operations.status import SILENCE_S, Status

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
        verb=run["verb"],
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
