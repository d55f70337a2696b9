"""run.json of a batch verb: by which recipe rows were made, in which sessions, and what came of it."""

import datetime
import json
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

from ureca import __version__
from ureca.config import differences
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import OutputError
from ureca.hashing import digest

_PACKAGES = ("ray", "pyarrow", "numpy", "pillow")


class RunRecord:
    """What earlier sessions left in run.json, and what this one adds.

    The *recipe* is a hash of all that decides what rows say: the settings, but for those that may change, and the
    content of what they only name, the identity (prompts, checkpoints, the library's version).

    Args:
        output: that has the record.
        verb: name of the verb.
        settings: of the verb, as JSON has them.
        may_change: dotted keys of settings that make no other rows.
        identity: what settings only name, by what it is.
        versions: of what makes the rows, beside Ray's and the library's.
        packages: of which the versions are kept, beside those that every verb uses.
    """

    def __init__(
        self,
        output: Output,
        command: str,
        settings: Mapping[str, Any],
        *,
        may_change: Collection[str],
        identity: Mapping[str, str],
        versions: Mapping[str, str],
        packages: Collection[str],
    ) -> None:
        self._output = output
        self._before: dict[str, Any] = output.run() if output.exists() else {}
        if self._before and self._before.get("command") != command:
            raise OutputError(
                f"{output.path} is the output of {self._before.get('command')!r}, not of {command}; name another folder"
            )
        self._command = command
        self._settings = dict(settings)
        self._may_change = may_change
        self._identity = {**identity, "ureca": __version__}
        self._versions = {**versions, **{name: version(name) for name in (*_PACKAGES, *packages)}}
        self._started = now()
        self.config_hash = config_hash_of(self._settings, may_change, self._identity)

    def check_same(self) -> None:
        """Refuse another recipe than that of the rows that are there.

        Raises:
            OutputError: settings or what they name differ; it says which.
        """
        if not self._before or not self._output.done_partitions():
            return
        changed = differences(self._before["settings"], self._settings, ignore=self._may_change)
        changed += differences(self._before.get("identity", {}), self._identity)
        if changed:
            raise OutputError(
                f"{self._output.path} was begun with another recipe:\n  "
                + "\n  ".join(changed)
                + "\nGive the same one to go on, name another folder, start anew with --overwrite, or have rows of "
                "both in one dataset with --accept-changes"
            )

    def write(
        self, state: str, report: PartitionReport | None = None, figures: Mapping[str, Any] | None = None
    ) -> None:
        """Write the state (running, stopped, finished) and, once finished, the totals of the output.

        Args:
            state: of the session.
            report: of the output.
            figures: rates of this session, kept with it.
        """
        ended = None if state == "running" else now()
        session = {
            "started": self._started,
            "ended": ended,
            "state": state,
            "recipe": self.config_hash,
            **(figures or {}),
        }
        this = {"settings": self._settings, "identity": self._identity}
        self._output.write_run(
            {
                "command": self._command,
                "dataset": self._output.dataset.name,
                "state": state,
                **this,
                "versions": {"ureca": __version__, "python": platform.python_version(), **self._versions},
                "totals": None if report is None else report.model_dump(),
                "sessions": [*self._before.get("sessions", []), session],
                "recipes": {**self._before.get("recipes", {}), self.config_hash: this},
            }
        )


def config_hash_of(settings: Mapping[str, Any], may_change: Collection[str], identity: Mapping[str, str]) -> str:
    """A hash of the settings that decide what rows say, and of what they name; 16 hexadecimal digits."""
    content = json.dumps([_without(settings, may_change), identity], sort_keys=True)
    return digest([content], num_bytes=8).hex()


def _without(settings: Mapping[str, Any], keys: Collection[str], prefix: str = "") -> dict[str, Any]:
    """The settings but for some dotted keys."""
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in settings.items()
        if f"{prefix}{name}" not in keys
    }


def now() -> str:
    """The time as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
