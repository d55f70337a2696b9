"""One session of a batch verb: plan what is missing, run the graph, keep the record."""

import datetime
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray
from ray.data import Dataset as RayDataset

from pipelines.blocks import TablesToTables, manifest_items, pending_units
from pipelines.progress import Progress
from pipelines.session import Cluster, ray_session
from ureca import __version__
from ureca.dataset import Output, UnitReport
from ureca.errors import OutputError
from ureca.schema import Dataset
from ureca.settings.batch import BatchSettings
from ureca.settings.loading import differences

Settings = TypeVar("Settings", bound=BatchSettings)

MAY_CHANGE = frozenset(
    {
        *("input", "output", "listing", "resources"),
        *("images_per_unit", "max_error_fraction", "retry_errors", "overwrite"),
    }
)
"""A later session may name its input otherwise, add images, and run elsewhere; it must not make other rows."""

_MAX_READ_TASKS = 256
_PACKAGES = ("ray", "pyarrow", "numpy", "pillow")


@dataclass(frozen=True)
class BatchVerb(Generic[Settings]):
    """What sets one batch verb apart from another.

    Attributes:
        name: of the verb.
        dataset: that it writes.
        list_input: the manifest of what the settings name.
        graph: the stages over a dataset of stored manifests: pieces, filter of units, settings, number of units and
            cluster to a lazy dataset of the schema ``REPORTED``.
        within: what runs on the cluster beside the graph, and the settings that the graph is then given.
        may_change: keys of settings that a later session may change, dotted; beside ``MAY_CHANGE``.
        versions: of what makes the rows, beside Ray's and the library's.
        packages: of which the versions are kept, beside those that every verb uses.
    """

    name: str
    dataset: Dataset
    list_input: Callable[[Settings], pa.Table]
    graph: Callable[[RayDataset, TablesToTables, Settings, int, Cluster], RayDataset]
    within: Callable[[Settings], AbstractContextManager[Settings]] = nullcontext
    may_change: frozenset[str] = frozenset()
    versions: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


def run_batch(
    verb: BatchVerb[Settings],
    settings: Settings,
    on_plan: Callable[[int, int], None],
    progress_of: Callable[[int], Progress] = Progress,
    identity: Mapping[str, str] | None = None,
) -> UnitReport:
    """Do what is missing in the output, and, if asked for, again what failed.

    Args:
        verb: that is run.
        settings: of the verb.
        on_plan: told the number of images in the output's manifest and how many of them this session does.
        progress_of: makes the progress display for so many images.
        identity: what settings only name and must be the same in every session, by what it is: the fingerprint of a
            checkpoint. Kept in run.json.

    Returns:
        the report of the whole output, with what earlier sessions did.

    Raises:
        InputError: there is nothing to read, or ids are not unique.
        OutputError: the folder is another run's.
    """
    output = Output(settings.output, verb.dataset)
    _check_verb(output, verb.name)
    if settings.overwrite:
        output.remove()
    record = _Record(output, verb, settings, identity or {})
    record.check_same(verb.may_change)
    manifest = verb.list_input(settings)
    output.remove_temporary()
    output.add_images(manifest, settings.images_per_unit)
    done = output.done_units()
    failed = output.failed_images() if settings.retry_errors else {}
    sizes = output.unit_sizes()
    missing = sizes.keys() - set(done)
    num_images = sum(sizes[unit] for unit in missing) + sum(map(len, failed.values()))
    on_plan(sum(sizes.values()), num_images)
    record.write("running")
    try:
        if num_images:
            progress = progress_of(num_images)
            keep = pending_units(failed, done)
            for report in _run(verb, output, settings, keep, len(missing) + len(failed)):
                progress.add(report)
            progress.close()
    except BaseException:
        record.write("stopped")
        raise
    report = output.report()
    record.write("finished", report)
    return report


def _run(
    verb: BatchVerb[Settings], output: Output, settings: Settings, keep: TablesToTables, num_units: int
) -> Iterator[UnitReport]:
    """Run the graph; yields the report of each unit as it is written."""
    with ray_session() as cluster, verb.within(settings) as graph_settings:
        items = manifest_items(output)
        pieces = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_READ_TASKS))
        written = verb.graph(pieces, keep, graph_settings, num_units, cluster)
        for row in written.iter_rows():
            yield UnitReport.model_validate_json(row["report"])


def _check_verb(output: Output, verb: str) -> None:
    """Another verb's output is neither gone on with nor overwritten."""
    if output.exists() and (before := output.run().get("verb")) != verb:
        raise OutputError(f"{output.path} is the output of {before!r}, not of {verb}; name another folder")


class _Record:
    """run.json: what earlier sessions left there, and what this one adds."""

    def __init__(
        self, output: Output, verb: BatchVerb[Settings], settings: BatchSettings, identity: Mapping[str, str]
    ) -> None:
        self._output = output
        self._before: dict[str, Any] = output.run() if output.exists() else {}
        self._settings = settings.model_dump(mode="json")
        self._head = {"verb": verb.name, "dataset": verb.dataset.name}
        self._identity = dict(identity)
        self._versions = _versions(verb)
        self._started = _now()

    def check_same(self, may_change: frozenset[str]) -> None:
        """Refuse other settings than those of the rows that are there.

        Raises:
            OutputError: the settings differ; it names each that does.
        """
        if not self._before or not self._output.done_units():
            return
        changed = differences(self._before["settings"], self._settings, ignore=MAY_CHANGE | may_change)
        changed += differences(self._before.get("identity", {}), self._identity)
        if changed:
            raise OutputError(
                f"{self._output.path} was begun with other settings:\n  "
                + "\n  ".join(changed)
                + "\nGive the same ones to go on, name another folder, or start anew with --overwrite"
            )

    def write(self, state: str, report: UnitReport | None = None) -> None:
        """Write the state (running, stopped, finished) and, once finished, the totals of the output."""
        ended = None if state == "running" else _now()
        session = {"started": self._started, "ended": ended, "state": state}
        self._output.write_run(
            {
                **self._head,
                "state": state,
                "settings": self._settings,
                "identity": self._identity,
                "versions": self._versions,
                "totals": None if report is None else report.model_dump(),
                "sessions": [*self._before.get("sessions", []), session],
            }
        )


def _versions(verb: BatchVerb[Settings]) -> dict[str, str]:
    packages = {name: version(name) for name in (*_PACKAGES, *verb.packages)}
    return {"ureca": __version__, **verb.versions, "python": platform.python_version(), **packages}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
