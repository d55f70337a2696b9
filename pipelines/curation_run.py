"""One session of a curation: plan what is missing, run the graph, keep the record."""

import datetime
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version

import ray

from pipelines.blocks import manifest_items, pending_units
from pipelines.curate import graph
from pipelines.progress import Progress
from pipelines.session import ray_session
from ureca import __version__
from ureca.corpus.listing import list_images
from ureca.curation.prompts import VERSION as PROMPTS_VERSION
from ureca.dataset import Output, UnitReport
from ureca.errors import OutputError
from ureca.settings.curate import CurateSettings
from ureca.settings.loading import differences

# A later session may name its input otherwise, add images, and run elsewhere; it must not caption otherwise.
_MAY_CHANGE = {
    *("input", "output", "listing", "resources"),
    *("images_per_unit", "max_error_fraction", "retry_errors", "overwrite"),
    *("mllm.base_urls", "mllm.api_key_variable", "mllm.api_key_file", "mllm.max_concurrency", "mllm.max_attempts"),
    *("mllm.connect_timeout_s", "mllm.answer_timeout_s", "mllm.first_wait_s", "mllm.max_wait_s", "mllm.max_outage_s"),
    *("mllm.max_answer_bytes", "mllm.seconds_per_answer"),
}

_MAX_READ_TASKS = 256


def curate(
    settings: CurateSettings, on_plan: Callable[[int, int], None], progress_of: Callable[[int], Progress] = Progress
) -> UnitReport:
    """Curate what is missing in the output, and, if asked for, again what failed.

    Args:
        settings: of the verb.
        on_plan: told the number of images in the output's manifest and how many of them this session does.
        progress_of: makes the progress display for so many images.

    Returns:
        the report of the whole output, with what earlier sessions did.

    Raises:
        InputError: there is nothing to read, or ids are not unique.
        OutputError: the folder is another run's.
    """
    output = Output(settings.output)
    if settings.overwrite:
        output.remove()
    _check_same_run(output, settings)
    manifest = list_images(
        settings.input,
        annotations=settings.listing.annotations,
        image_column=settings.listing.image_column,
        id_column=settings.listing.id_column,
    )
    output.remove_temporary()
    output.add_images(manifest, settings.images_per_unit)
    done = output.done_units()
    failed = output.failed_images() if settings.retry_errors else {}
    sizes = output.unit_sizes()
    missing = sizes.keys() - set(done)
    num_images = sum(sizes[unit] for unit in missing) + sum(map(len, failed.values()))
    on_plan(sum(sizes.values()), num_images)
    record = _Record(output, settings)
    record.write("running")
    try:
        if num_images:
            progress = progress_of(num_images)
            for report in _run(output, settings, failed, done, len(missing) + len(failed)):
                progress.add(report)
            progress.close()
    except BaseException:
        record.write("stopped")
        raise
    report = output.report()
    record.write("finished", report)
    return report


def _run(
    output: Output, settings: CurateSettings, failed: dict[int, set[str]], done: list[int], num_units: int
) -> Iterator[UnitReport]:
    """Run the graph; yields the report of each unit as it is written."""
    with ray_session() as cluster:
        items = manifest_items(output)
        pieces = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_READ_TASKS))
        written = graph(pieces, pending_units(failed, done), settings, num_units, cluster)
        for row in written.iter_rows():
            yield UnitReport.model_validate_json(row["report"])


def _check_same_run(output: Output, settings: CurateSettings) -> None:
    if not output.exists() or not output.done_units():
        return
    before = output.run()
    if before.get("verb") != "curate":
        raise OutputError(f"{output.path} is the output of {before.get('verb')!r}, not of curate; name another folder")
    changed = differences(before["settings"], settings.model_dump(mode="json"), ignore=_MAY_CHANGE)
    if changed:
        raise OutputError(
            f"{output.path} was begun with other settings:\n  "
            + "\n  ".join(changed)
            + "\nGive the same ones to go on, name another folder, or start anew with --overwrite"
        )


class _Record:
    """run.json: what this session adds to it."""

    def __init__(self, output: Output, settings: CurateSettings) -> None:
        self._output = output
        self._earlier = output.run()["sessions"] if output.exists() else []
        self._settings = settings.model_dump(mode="json")
        self._started = _now()

    def write(self, state: str, report: UnitReport | None = None) -> None:
        """Write the state (running, stopped, finished) and, once finished, the totals of the output."""
        ended = None if state == "running" else _now()
        self._output.write_run(
            {
                "verb": "curate",
                "state": state,
                "settings": self._settings,
                "versions": _versions(),
                "totals": None if report is None else report.model_dump(),
                "sessions": [*self._earlier, {"started": self._started, "ended": ended, "state": state}],
            }
        )


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("ray", "pyarrow", "numpy", "pillow", "scikit-image")}
    return {"ureca": __version__, "prompts": PROMPTS_VERSION, "python": platform.python_version(), **packages}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
