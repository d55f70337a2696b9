"""What a batch verb tells before and after its run.

[from] One session of a batch verb: plan what is missing, run the graph, keep the record."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import pyarrow as pa
import ray
from ray.data import Dataset as RayDataset

from ureca import __version__
from ureca.config import with_absolute_paths
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.run_record import RunRecord
from ureca.errors import OutputError
from ureca.pipelines.batch.actors import Session, assembled
from ureca.pipelines.batch.arrow import TablesToTables, manifest_items, pending_partitions
from ureca.pipelines.batch.metrics import metrics_actor
from ureca.pipelines.batch.progress import Progress
from ureca.pipelines.batch.resources import Work, missing_resources
from ureca.pipelines.batch.session import Cluster, noted_interrupts, ray_session
from ureca.pipelines.settings import BatchSettings
from ureca.schema import Dataset

Settings = TypeVar("Settings", bound=BatchSettings)

_MAX_READ_TASKS = 256
_PACKAGES = ("ray", "pyarrow", "numpy", "pillow")


@dataclass(frozen=True)
class BatchCommand(Generic[Settings]):
    """What sets one batch verb apart from another.

    Attributes:
        name: of the verb.
        dataset: that it writes.
        list_input: the manifest of what the settings name.
        graph: the stages over a dataset of stored manifests: pieces, filter of units, settings, work and cluster to a
            lazy dataset of the schema ``REPORTED``.
        within: what runs on the cluster beside the graph, and the settings that the graph is then given.
        packages: of which the versions are kept, beside those that every verb uses.
    """

    name: str
    dataset: Dataset
    list_input: Callable[[Settings], pa.Table]
    graph: Callable[[RayDataset, TablesToTables, Settings, Work, Cluster], RayDataset]
    within: Callable[[Settings], AbstractContextManager[Settings]] = nullcontext
    packages: tuple[str, ...] = ()


def run_batch(
    command: BatchCommand[Settings],
    settings: Settings,
    on_plan: Callable[[int, int], None],
    progress_of: Callable[[int], Progress] = Progress,
    identity: Mapping[str, str] | None = None,
) -> PartitionReport:
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
        OutputError: the folder is another run's, was begun with another recipe, or cannot be written to.
    """
    output = Output(settings.output, command.dataset)
    _record(command, output, settings, identity)  # before what may take long
    manifest = command.list_input(settings)
    with output.lease(on_wait=lambda text: print(text, file=sys.stderr)) as lease:
        if settings.overwrite:
            output.remove()
        record = _record(command, output, settings, identity)
        output.remove_temporary()
        output.add_images(manifest, settings.images_per_partition, settings.selection)
        done = output.done_partitions()
        failed = output.failed_images() if settings.retry_errors else {}
        sizes = output.partition_sizes()
        missing = sizes.keys() - set(done)
        num_images = sum(sizes[partition] for partition in missing) + sum(map(len, failed.values()))
        on_plan(sum(sizes.values()), num_images)
        record.write("running")
        progress = progress_of(num_images)
        try:
            if num_images:
                keep = pending_partitions(failed, done)
                session = Session(lease, record.config_hash)
                together = manifest["row"].null_count < manifest.num_rows
                work = Work(len(missing) + len(failed), num_images, session, are_read_together=together)
                with noted_interrupts() as raise_if_interrupted:
                    for report in _run(command, output, settings, keep, work, progress=progress):
                        progress.add(report)
                        raise_if_interrupted()
                progress.close()
        except BaseException:
            progress.close()
            with contextlib.suppress(OutputError):  # the disk that has no room for results has none for the record
                record.write("stopped", session=progress.figures())
            raise
        output.remove_temporary()  # of workers that died in the middle of a file
        report = output.report()
        record.write("finished", totals=report.model_dump(), session=progress.figures())
        return report


def _run(
    command: BatchCommand[Settings],
    output: Output,
    settings: Settings,
    keep: TablesToTables,
    work: Work,
    *,
    progress: Progress,
) -> Iterator[PartitionReport]:
    """Run the graph; yields the report of each unit as it is written."""
    with (
        ray_session() as cluster,
        command.within(with_absolute_paths(settings)) as graph_settings,
        metrics_actor(work.session.metrics_actor_name) as engines,
        progress.watching(engines),
    ):
        if waits_for := missing_resources(graph_settings.resources, cluster):
            print(waits_for, file=sys.stderr)
        items = manifest_items(output)
        chunks = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_READ_TASKS))
        # Every row is a block: a stage hands on what it has made while it makes the next.
        chunks.context.target_max_block_size = 1
        made = command.graph(chunks, keep, graph_settings, work, cluster)
        yield from assembled(made.iter_rows(), output, work.session.lease)


def _record(
    command: BatchCommand[Settings], output: Output, settings: Settings, identity: Mapping[str, str] | None
) -> RunRecord:
    """The record of a session that may go on with the output, or overwrite it.

    Raises:
        OutputError: it may not.
    """
    record = RunRecord(
        output,
        command.name,
        settings,
        identity={**(identity or {}), "ureca": __version__},
        packages=(*_PACKAGES, *command.packages),
        dataset=command.dataset,
    )
    if not (settings.overwrite or settings.accept_changes) and record.before and output.done_partitions():
        record.check_unchanged(
            "Use the same settings to resume, name another folder, start anew with --overwrite, or keep rows of both "
            "in one dataset with --accept-changes"
        )
    return record


def print_plan(num_images: int, num_to_do: int) -> None:
    """Tell on standard error what there is to do."""
    print(f"{num_images} images, {num_images - num_to_do} done before, {num_to_do} to do", file=sys.stderr)


def print_summary(report: PartitionReport, settings: BatchSettings, dataset_name: str) -> int:
    """Print what became of the images of an output; returns 1 if too many rows failed, with what to do, else 0."""
    print(summary(report, settings.output, dataset_name))
    too_many = report.num_failed > settings.max_error_fraction * report.num_images
    if too_many:
        print(
            f"more than {settings.max_error_fraction:.0%} of the rows failed; mend their causes and run the same "
            "command with --retry-errors, or allow more with --max-error-fraction",
            file=sys.stderr,
        )
    return int(too_many)


def summary(report: PartitionReport, output: str, dataset_name: str) -> str:
    """The report of an output as lines for people."""
    seconds = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    rows = [
        ("images", f"{report.num_images}, of which {report.num_failed} failed"),
        ("captioned regions", f"{report.num_regions}, and {report.num_failed_regions} that failed"),
    ]
    if dataset_name == "captions":
        rows += [("tokens written", f"{report.num_new_tokens}")]
    else:
        rows += [("model calls", f"{report.num_calls} ({report.num_prompt_tokens} + {report.num_new_tokens} tokens)")]
    rows += [("seconds by stage", seconds or "none")]
    commonest = sorted(report.failures.items(), key=lambda item: (-item[1], item[0]))[:5]
    rows += [("failures" if index == 0 else "", f"{count} x {kind}") for index, (kind, count) in enumerate(commonest)]
    folder = output.partition("?")[0].rstrip("/")  # without the options of a URI
    rows += [("results", f"{folder}/{dataset_name} (Parquet), {folder}/run.json")]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)
