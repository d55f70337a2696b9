"""How far a batch verb is: its manifest says what there is to do, its parts what is done and when."""

import datetime
from collections.abc import Mapping
from typing import Any, TypeVar

import pyarrow.fs as pafs

from ureca.corpus.storage import locate
from ureca.dataset import Output, UnitReport
from ureca.operations.status import SILENCE_S, Status

Unit = TypeVar("Unit")

_CLAIM = "claim.json"


def batch_status(output: Output, run: Mapping[str, Any], quick: bool, now_s: float) -> Status:
    """The status of the output of a batch verb; ``run`` is its record."""
    sizes, written = output.unit_sizes(), written_at(output)
    report = None if quick else output.report()
    num_total = sum(sizes.values())
    return status_of_units(output, run, sizes, written=written, num_total=num_total, report=report, now_s=now_s)


def status_of_units(
    output: Output,
    run: Mapping[str, Any],
    sizes: Mapping[Unit, int],
    *,
    written: Mapping[Unit, float],
    num_total: int | None,
    report: UnitReport | None,
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
    num_done = sum(sizes[unit] for unit in written)
    rate = rate_of(sizes, {unit: at for unit, at in written.items() if at >= began_s})
    state = run["state"]
    if state == "running" and now_s - max(began_s, claimed_at(output), *written.values()) > SILENCE_S:
        state = "lost"
    return Status(
        output=output.path.partition("?")[0],
        verb=run["verb"],
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
    units = {path: _unit(path) for path in output.part_files()}
    if not units:
        return {}
    folder = next(iter(units)).rpartition("/")[0]
    infos = output.filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return {units[info.path]: info.mtime_ns / 1e9 for info in infos if info.path in units}


def _unit(path: str) -> int:
    return int(path.rpartition("part-")[2].removesuffix(".parquet"))


def rate_of(sizes: Mapping[Unit, int], written: Mapping[Unit, float]) -> float | None:
    """Images a second, from the first unit of the session to the last; the first has waited for actors to start."""
    if len(written) < 2:
        return None
    first = min(written, key=written.__getitem__)
    seconds = max(written.values()) - written[first]
    return sum(sizes[unit] for unit in written if unit != first) / seconds if seconds > 0 else None


def claimed_at(output: Output) -> float:
    """When a session last renewed its claim, in seconds since 1970; 0: none has the folder."""
    claim = output.filesystem.get_file_info(f"{locate(output.path).name}/{_CLAIM}")
    return float(claim.mtime_ns / 1e9) if claim.is_file else 0.0
