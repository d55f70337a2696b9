"""One session of a batch command: plan the unfinished work, run the operators, keep the record."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from ureca import __version__
from ureca.config import with_absolute_paths
from ureca.data.card import write_card
from ureca.data.coco_annotations import attach_coco_file
from ureca.data.listing import named_counts
from ureca.data.manifest import left_out_names_of, left_out_of
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.run_record import RunRecord
from ureca.errors import OutputError
from ureca.llm.load import process_load
from ureca.pipelines.batch.actors import Session, write_chunked_partitions
from ureca.pipelines.batch.arrow import manifest_items, pending_partitions
from ureca.pipelines.batch.executor import TableFunction, check_packages, choose_executor, run_locally
from ureca.pipelines.batch.graph import BatchCommand, build_graph, build_operators, manifest_dataset
from ureca.pipelines.batch.interrupts import noted_interrupts
from ureca.pipelines.batch.progress import Progress
from ureca.pipelines.batch.resources import Work, local_pools, missing_resources
from ureca.pipelines.settings import BatchSettings
from ureca.wording import quantity

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=BatchSettings)

_PACKAGES = ("ray", "pyarrow", "numpy", "pillow")


def log_plan(num_images: int, num_to_do: int) -> None:
    """Log how many images there are, and how many of them earlier sessions have done."""
    logger.info("%s, %d done before, %d to do", quantity(num_images, "image"), num_images - num_to_do, num_to_do)


def run_batch(
    command: BatchCommand[Settings],
    settings: Settings,
    on_plan: Callable[[int, int], None] = log_plan,
    progress_of: Callable[[int], Progress] = Progress,
    identity: Mapping[str, str] | None = None,
) -> PartitionReport:
    """Process the partitions that the output lacks and, if ``retry_errors`` is set, the images that failed.

    Args:
        command: command to run.
        settings: settings of the command.
        on_plan: callback that gets the number of images in the output's manifest, and of those to process now.
        progress_of: function that makes the progress display for a number of images.
        identity: content of what the settings only name, such as the fingerprint of a checkpoint. All sessions of an
            output must agree in it.

    Returns:
        The report of the whole output, including earlier sessions.

    Raises:
        InputError: there is nothing to read, or ids are not unique.
        OutputError: the folder belongs to another run, was started with other settings, or cannot be written to.
        SettingsError: a package that a component needs is missing.
    """
    check_packages(settings)
    output = Output(settings.output, command.dataset)
    _checked_record(command, output, settings, identity)  # before listing, which may take long
    manifest = command.list_input(settings)
    with output.lease(on_wait=logger.info) as lease:
        if settings.overwrite:
            output.remove()
        record = _checked_record(command, output, settings, identity)
        output.remove_temporary()
        for name in output.remove_damaged_parts():
            logger.warning("%s was damaged and is removed; its images are processed again", name)
        manifest = attach_coco_file(manifest, output.annotation_folder, settings.listing.only_below)
        left_out, names = left_out_of(manifest), left_out_names_of(manifest)
        listed: dict[str, Any] = {"left_out": left_out, "left_out_names": names}
        if left_out:
            # The user's own masks would otherwise be passed over unnoticed.
            unread = ".json" in left_out and settings.listing.annotations is None
            hint = "; masks of the images? --masks.kind annotations --listing.annotations beside reads them"
            logger.warning("left out: %s%s", named_counts(left_out, names), hint if unread else "")
        accept = settings.accept_changes
        output.add_images(manifest, settings.images_per_partition, settings.selection, accept_changes=accept)
        done = output.done_partitions()
        failed = output.failed_images() if settings.retry_errors else {}
        sizes = output.partition_sizes()
        missing = sizes.keys() - set(done)
        num_images = sum(sizes[partition] for partition in missing) + sum(map(len, failed.values()))
        on_plan(sum(sizes.values()), num_images)
        record.write("running", **listed)
        progress = progress_of(num_images)
        try:
            if num_images:
                work = Work(
                    num_partitions=len(missing) + len(failed),
                    num_images=num_images,
                    are_read_together=manifest["row"].null_count < manifest.num_rows,
                )
                session = Session(lease, record.config_hash)
                keep = pending_partitions(failed, done)
                executor = choose_executor(settings, settings.resources, num_images)
                run = _run_locally if executor == "local" else _run_on_ray
                with noted_interrupts() as raise_if_interrupted:
                    for _ in run(command, output, settings, keep, work, session=session, progress=progress):
                        raise_if_interrupted()
                progress.close()
        except BaseException:
            progress.close()
            with contextlib.suppress(OutputError):  # a disk too full for results is too full for the record
                record.write("stopped", **listed, session=progress.figures())
            raise
        output.remove_temporary()  # files of workers that died while they wrote
        report = output.report()
        write_card(output, command.name, report)
        record.write("finished", totals=report.model_dump(), **listed, session=progress.figures())
        return report


def _run_locally(
    command: BatchCommand[Settings],
    output: Output,
    settings: Settings,
    keep: TableFunction,
    work: Work,
    *,
    session: Session,
    progress: Progress,
) -> Iterator[PartitionReport]:
    """Yield the report of each partition that this process has written; ``progress`` gets it when it is written."""
    settings = with_absolute_paths(settings)
    if command.check_engine is not None:
        command.check_engine(settings)
    process_load.cache_clear()  # the load of earlier runs of this process is not that of this one
    pools = local_pools(settings.resources, command.engine_concurrency(settings))
    session = replace(session, logs_events=False)
    operators = build_operators(command, keep, settings, pools=pools, work=work, session=session)
    chunks = (pa.Table.from_pylist([item]) for item in manifest_items(output))
    with progress.watching(process_load().report):
        yield from write_chunked_partitions(run_locally(operators, chunks), output, session.lease, progress.add)


def _run_on_ray(
    command: BatchCommand[Settings],
    output: Output,
    settings: Settings,
    keep: TableFunction,
    work: Work,
    *,
    session: Session,
    progress: Progress,
) -> Iterator[PartitionReport]:
    """Yield the report of each partition that is written by the workers of a cluster, or here from their chunks."""
    import ray

    from ureca.pipelines.batch.metrics import metrics_actor
    from ureca.pipelines.batch.session import ray_session

    with (
        ray_session() as cluster,
        command.running(with_absolute_paths(settings)) as cluster_settings,
        metrics_actor(session.metrics_actor_name, command.engine_concurrency(cluster_settings)) as engines,
        progress.watching(engines),
    ):
        if message := missing_resources(cluster_settings.resources, cluster):
            logger.warning(message)
        if command.check_engine is not None:
            num_cpus = getattr(cluster_settings.resources, command.row_actor.name).num_cpus
            ray.get(ray.remote(num_cpus=num_cpus, max_retries=2)(command.check_engine).remote(cluster_settings))
        reported = build_graph(
            command,
            manifest_dataset(output),
            keep,
            cluster_settings,
            work=work,
            cluster=cluster,
            session=session,
        )
        yield from write_chunked_partitions(reported.iter_rows(), output, session.lease, progress.add)


def _checked_record(
    command: BatchCommand[Settings], output: Output, settings: Settings, identity: Mapping[str, str] | None
) -> RunRecord:
    """Make the record of this session.

    Raises:
        OutputError: the output holds results of another command or config, which the settings do not allow to keep.
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
