"""A status as lines for people."""

from ureca.durations import duration
from ureca.operations.status import Status

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
    return f"{status.output} ({status.verb})\n" + "\n".join(f"{name:<12} {value}" for name, value in rows)


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
