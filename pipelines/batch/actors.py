"""Actors of the batch commands: masks, rows of partitions, and the writing of partitions."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pyarrow as pa

from ureca.data.crash_log import CrashLog
from ureca.data.in_flight import ImagesInFlight
from ureca.data.masked import MaskedPartition, MaskStage, generate_masks
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.quarantine import with_quarantine
from ureca.data.reading import Fetch, fetch
from ureca.errors import UrecaError
from ureca.llm.load import process_load
from ureca.logging import log_to_stderr
from ureca.masks.generators.base import MaskGenerator
from ureca.pipelines.batch.arrow import (
    REPORTED,
    masked_table,
    read_masked,
    read_partitions,
    read_rows_of_chunk,
    reported_table,
)
from ureca.pipelines.batch.executor import ray_is_running
from ureca.pipelines.batch.metrics import EventLog, Reporter
from ureca.pipelines.batch.resources import on_device
from ureca.pipelines.settings import BatchSettings
from ureca.registry import ComponentConfig, build_component
from ureca.schema import Dataset, conform

Component = TypeVar("Component")
Settings = TypeVar("Settings", bound=BatchSettings)

_NUM_WRITERS = 4
_MAX_QUEUED_WRITES = 16


@dataclass(frozen=True)
class Session:
    """The session that actors work for.

    Attributes:
        lease: session id in the lease of the output; None if no other session can write to it.
        config_hash: hash of all that decides the rows' content, for their provenance.
        logs_events: actors log partitions and failures on standard error, which Ray keeps in files. In the process of
            the user it is a terminal.
    """

    lease: str | None = None
    config_hash: str | None = None
    logs_events: bool = True

    @property
    def metrics_actor_name(self) -> str:
        """Name of the session's metrics actor; see ``ureca.pipelines.batch.metrics``."""
        return f"ureca-metrics-{self.lease}"


def open_crash_log(output: Output, stage: str, max_crashes: int) -> CrashLog:
    """Open the crash log of a stage for this worker; crashes of machines that have left the cluster do not count.

    Args:
        output: output folder.
        stage: name of the stage.
        max_crashes: number of crashes after which an image is quarantined.
    """
    if not ray_is_running():
        return output.crash_log(stage, max_crashes)
    import ray

    gone = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}  # type: ignore[no-untyped-call]
    node_id = ray.get_runtime_context().get_node_id()
    return output.crash_log(stage, max_crashes, node=node_id, has_left=gone.__contains__)


def build_fetch(settings: BatchSettings) -> Fetch:
    """Build the function that reads images and annotations, from nowhere but ``listing.only_below`` and OUTPUT."""
    only_below = settings.listing.only_below
    if only_below:  # the annotations of each image that are cut out of a COCO file
        only_below += (Output(settings.output).annotation_folder,)
    return partial(fetch, only_below=only_below)


def build_generator_stage(masks: ComponentConfig, settings: BatchSettings, fetch: Fetch | None = None) -> MaskStage:
    """Build the stage of a mask generator, on the device that ``resources.masks`` implies.

    Args:
        masks: settings of the mask generator.
        settings: settings of the command.
        fetch: function that reads the images; None: that of ``build_fetch``.
    """
    resources: Any = settings.resources  # each command has a type of its own
    masks = on_device(masks, resources.masks.num_gpus, "resources.masks")
    generator: MaskGenerator = build_component("mask_generator", masks)
    return partial(
        generate_masks, mask_generator=generator, limits=settings.image_limits, fetch=fetch or build_fetch(settings)
    )


class RowStage(Protocol):
    """A stage that makes the rows of partitions."""

    async def __call__(self, partition: MaskedPartition) -> tuple[list[dict[str, Any]], PartitionReport]:
        """Return the rows of the images, in their order, and the work they took."""
        ...


class Eager(Generic[Component]):
    """A component that is built at once, in an actor's constructor; a ``UrecaError`` is kept until first use.

    An error in a constructor would make Ray restart the actor again and again, instead of failing the job.

    Args:
        build: function that builds the component.
    """

    def __init__(self, build: Callable[[], Component]) -> None:
        self._component: Component | UrecaError
        try:
            self._component = build()
        except UrecaError as error:
            self._component = error

    def get(self) -> Component:
        """Return the component.

        Raises:
            UrecaError: it could not be built.
        """
        if isinstance(self._component, UrecaError):
            raise self._component
        return self._component


class MaskActor:
    """Makes or reads the masks of partitions, and passes on chunks as soon as they are ready.

    Args:
        build: function that builds the stage from the settings, in the actor.
        settings: settings of the command.
        images_per_chunk: images in a chunk; None passes on whole partitions.
    """

    def __init__(
        self, build: Callable[[Settings], MaskStage], settings: Settings, images_per_chunk: int | None = None
    ) -> None:
        crash_log = open_crash_log(Output(settings.output), "masks", settings.max_worker_crashes)
        self._stage = Eager(lambda: with_quarantine(build(settings), crash_log, images_per_chunk))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Process partitions of a manifest, from the schema ``PARTITIONS`` to ``MASKED``."""
        stage = self._stage.get()
        if not batch.num_rows:
            yield masked_table([])
        for number, entries in read_partitions(batch):
            for partition in stage(number, entries):
                yield masked_table([partition])


class RowActor(ABC, Generic[Settings]):
    """Makes the rows of partitions, several at a time, and writes whole partitions.

    Rows of chunks are returned to the driver, because the chunks of one partition may be in several actors.

    Args:
        settings: settings of the command.
        images_in_flight: decoded images that the actor holds at a time.
        session: session that the actor works for.
    """

    name: ClassVar[str]
    """Name of the operator, in ``settings.resources``, the crash log, metrics and logs."""

    dataset: ClassVar[Dataset]

    def __init__(self, settings: Settings, images_in_flight: int, session: Session) -> None:
        self._output = Output(settings.output, self.dataset)
        self._lease = session.lease
        self._reporter = Reporter(self.name, session.metrics_actor_name, process_load())
        self._log: EventLog | None = None
        if session.logs_events:
            log_to_stderr()
            self._log = EventLog(self.name, settings.output, session.lease, session.config_hash)
        crash_log = open_crash_log(self._output, self.name, settings.max_worker_crashes)
        images = ImagesInFlight(images_in_flight, settings.image_limits, crash_log, build_fetch(settings))
        self._stage = Eager(lambda: self.build(settings, images, session.config_hash))

    @classmethod
    @abstractmethod
    def build(cls, settings: Settings, images: ImagesInFlight, config_hash: str | None = None) -> RowStage:
        """Build the stage and load its models.

        Args:
            settings: settings of the command.
            images: images in flight, which the stage reads.
            config_hash: config hash for the provenance of the rows.
        """

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Process partitions, from the schema ``MASKED`` to ``REPORTED``; reported whole partitions are on disk."""
        made = await asyncio.gather(*(self._make(partition) for partition in self.partitions(batch)))
        return pa.concat_tables([REPORTED.empty_table(), *made])

    def partitions(self, batch: pa.Table) -> Iterable[MaskedPartition]:
        """Read the partitions of a batch, which has the schema ``MASKED`` if there is an operator for masks."""
        return read_masked(batch)

    async def _make(self, partition: MaskedPartition) -> pa.Table:
        rows, work = await self._stage.get()(partition)
        report = PartitionReport.of_rows(rows, self.dataset) + work
        is_whole = partition.num_chunks == 1
        if is_whole:
            if self._lease is not None:
                await asyncio.to_thread(self._output.check_lease, self._lease)
            await asyncio.to_thread(self._output.write_partition, partition.number, rows, work)
        self._reporter.made(report)
        if self._log is not None:
            self._log.made(partition.number, rows, self.dataset, report, chunk=None if is_whole else partition.chunk)
        return reported_table(
            partition.number,
            report,
            chunk=partition.chunk,
            num_chunks=partition.num_chunks,
            rows=None if is_whole else conform(rows, self.dataset.schema),
        )


def write_chunked_partitions(
    reported: Iterable[Mapping[str, Any]],
    output: Output,
    lease: str | None,
    on_written: Callable[[PartitionReport], None] = lambda report: None,
) -> Iterator[PartitionReport]:
    """Assemble chunks and write the partitions they complete, while further ones arrive.

    Only partitions that operators are working on are incomplete, so memory does not grow with the corpus.

    Args:
        reported: rows of the schema ``REPORTED``.
        output: output folder to write to.
        lease: session id in the lease of the output; None if no other session can write to it.
        on_written: callback that gets each of the reports as soon as the partition is on disk, in any thread. The next
            row, with which the generator goes on, may come much later.

    Yields:
        The report of each partition on disk, whether this function or an actor wrote it.

    Raises:
        OutputError: a partition cannot be written.
        RuntimeError: another session has taken over the output, or chunks are missing at the end.
    """
    incomplete: dict[int, dict[int, tuple[pa.Table, PartitionReport]]] = {}
    writing: deque[Future[PartitionReport]] = deque()

    def write(partition: int, chunks: Mapping[int, tuple[pa.Table, PartitionReport]]) -> PartitionReport:
        if lease is not None:
            output.check_lease(lease)
        report = sum((report for _, report in chunks.values()), PartitionReport())
        output.write_chunks(partition, [chunks[index][0] for index in sorted(chunks)], report)
        on_written(report)
        return report

    with ThreadPoolExecutor(_NUM_WRITERS, thread_name_prefix="writer") as writers:
        for row in reported:
            report = PartitionReport.model_validate_json(row["report"])
            if row["rows"] is None:
                on_written(report)
                yield report
                continue
            chunks = incomplete.setdefault(row["partition"], {})
            chunks[row["chunk"]] = read_rows_of_chunk(row["rows"]), report
            if len(chunks) == row["num_chunks"]:
                del incomplete[row["partition"]]
                writing.append(writers.submit(write, row["partition"], chunks))
            while writing and (len(writing) > _MAX_QUEUED_WRITES or writing[0].done()):
                yield writing.popleft().result()
        for written in writing:
            yield written.result()
    if incomplete:
        raise RuntimeError(f"chunks of the partitions {sorted(incomplete)} are missing")
