"""The record of an output folder, ``run.json``: settings, versions, sessions and totals."""

import datetime
import json
import platform
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel

from ureca import __version__
from ureca.config import differences, may_change_keys
from ureca.data.output import Output
from ureca.errors import OutputError
from ureca.hashing import digest
from ureca.schema import Dataset

State = Literal["running", "stopped", "finished"]


class RunRecord:
    """The ``run.json`` of one output folder, as earlier sessions left it and as this session continues it.

    Results depend on the *config*: the settings, except for fields marked ``MAY_CHANGE``, and the ``identity`` of
    whatever the settings only name, such as prompts and checkpoints. ``config_hash`` is its hash.

    Args:
        output: output folder that holds the record.
        command: name of the command that writes the folder.
        settings: settings of the command. A mapping is taken as a dump, of which every key decides the results.
        identity: content of what the settings only name, by name.
        versions: versions to record besides those of Python, this library and ``packages``.
        packages: installed distributions whose versions are recorded.
        dataset: dataset that the folder holds; None if it holds none.
        has_sessions: record when each session started and ended. False makes the file a function of the arguments.

    Attributes:
        before: content of ``run.json`` when this object was made; empty if there was none.
        config_hash: 16 hexadecimal digits.

    Raises:
        OutputError: the folder belongs to another command, or its record cannot be read.
    """

    def __init__(
        self,
        output: Output,
        command: str,
        settings: BaseModel | Mapping[str, Any],
        *,
        identity: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        packages: Iterable[str] = (),
        dataset: Dataset | None = None,
        has_sessions: bool = True,
    ) -> None:
        self.before: dict[str, Any] = output.run() if output.exists() else {}
        if self.before and (other := self.before.get("command")) != command:
            raise OutputError(f"{output.path} is the output of {other!r}, not of {command}; name another folder")
        self._output = output
        self._command = command
        self._settings, self._may_change = _dumped(settings)
        self._identity = dict(identity or {})
        self._versions = {"ureca": __version__, "python": platform.python_version(), **(versions or {})}
        self._versions |= {name: version(name) for name in packages}
        self._dataset = {} if dataset is None else {"dataset": dataset.name}
        self._started = now()
        self._has_sessions = has_sessions
        self.config_hash = config_hash_of(settings, self._identity)

    @property
    def is_finished(self) -> bool:
        """True if the previous session finished the run."""
        return self.before.get("state") == "finished"

    def check_unchanged(self, remedy: str) -> None:
        """Refuse a config that differs from the recorded one.

        Args:
            remedy: sentence that tells the user what to do about it.

        Raises:
            OutputError: settings or identities differ; the message lists each of them with both values.
        """
        if not self.before:
            return
        changed = differences(self.before.get("settings", {}), self._settings, ignore=self._may_change)
        changed += differences(self.before.get("identity", {}), self._identity)
        if changed:
            listed = "\n  ".join(changed)
            raise OutputError(f"{self._output.path} was started with other settings:\n  {listed}\n{remedy}")

    def write(
        self,
        state: State,
        *,
        totals: Mapping[str, Any] | None = None,
        session: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Replace ``run.json``.

        Args:
            state: state of the run.
            totals: counts over the whole output, from all sessions.
            session: figures of this session, such as its throughput.
            **fields: further top-level keys.
        """
        config = {"settings": self._settings, "identity": self._identity}
        run: dict[str, Any] = {
            "command": self._command,
            **self._dataset,
            "state": state,
            **config,
            "versions": self._versions,
            "totals": totals,
            **fields,
        }
        if self._has_sessions:
            this = {
                "started": self._started,
                "ended": None if state == "running" else now(),
                "state": state,
                "config_hash": self.config_hash,
                **(session or {}),
            }
            run["sessions"] = [*self.before.get("sessions", []), this]
            run["configs"] = {**self.before.get("configs", {}), self.config_hash: config}
        self._output.write_run(run)


def config_hash_of(settings: BaseModel | Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Hash a config into 16 hexadecimal digits; arguments as for ``RunRecord``."""
    content = json.dumps([config_of(settings), identity], sort_keys=True)
    return digest([content], num_bytes=8).hex()


def config_of(settings: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """Return the dump of settings without the fields marked ``MAY_CHANGE``."""
    return _without(*_dumped(settings))


def now() -> str:
    """Return the current UTC time in ISO 8601 format."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _dumped(settings: BaseModel | Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    if isinstance(settings, BaseModel):
        return settings.model_dump(mode="json"), may_change_keys(settings)
    return dict(settings), frozenset()


def _without(settings: Mapping[str, Any], keys: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Drop dotted keys from a dump of settings."""
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in settings.items()
        if f"{prefix}{name}" not in keys
    }
