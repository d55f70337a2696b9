"""Actors of the batch commands: mask generation, rows of partitions, and the writing of complete partitions."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pyarrow as pa

from ureca.data.crash_log import CrashLog
from ureca.data.masked import MaskedPartition, MaskStage
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.quarantine import with_quarantine
from ureca.errors import UrecaError
from ureca.llm.load import process_load
from ureca.pipelines.batch.arrow import (
    REPORTED,
    masked_table,
    read_masked,
    read_partitions,
    read_rows_of_chunk,
    reported_table,
)
from ureca.pipelines.batch.metrics import EventLog, Reporter
from ureca.pipelines.settings import BatchSettings
from ureca.schema import Dataset, conform

Component = TypeVar("Component")
Settings = TypeVar("Settings", bound=BatchSettings)


@dataclass(frozen=True)
class Session:
    """What actors know of the session that they work for.

    Attributes:
        claim: of the output; None: nobody else can want it.
        recipe: a hash of all that decides what rows say, for the rows.
    """

    lease: str | None = None
    config_hash: str | None = None

    @property
    def metrics_actor_name(self) -> str:
        """Of the board that the session's actors report to; see ``ureca.pipelines.batch.metrics``."""
        return f"ureca-board-{self.lease}"


NOBODY = Session()
"""For work of which no other session can know."""


class RowStage(Protocol):
    """Makes the rows of units."""

    async def __call__(self, partition: MaskedPartition) -> tuple[Sequence[dict[str, Any]], PartitionReport]:
        """Rows of the verb's dataset, in the order of the unit's images, and the work they took."""
        ...


class Built(Generic[Component]):
    """Builds a component at once; an error of its user's is raised when it is first asked for.

    Raised by an actor's constructor, Ray would try again and again before it gave up.
    """

    def __init__(self, build: Callable[[], Component]) -> None:
        self._component: Component | UrecaError
        try:
            self._component = build()
        except UrecaError as error:
            self._component = error

    def get(self) -> Component:
        """The component."""
        if isinstance(self._component, UrecaError):
            raise self._component
        return self._component


class MaskActor:
    """Holds what proposes masks; turns units of a manifest into units with masks, or pieces as they are ready.

    Args:
        build: makes the stage, in the actor.
        settings: its argument.
        images_per_chunk: None: whole units.
    """

    def __init__(
        self, build: Callable[[Settings], MaskStage], settings: Settings, images_per_chunk: int | None = None
    ) -> None:
        crash_log = Output(settings.output).crash_log("masks", settings.max_worker_crashes)
        self._stage = Built(lambda: with_quarantine(build(settings), crash_log, images_per_chunk))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """From the schema ``PARTITIONS`` to ``MASKED``."""
        stage = self._stage.get()
        if not batch.num_rows:
            yield masked_table([])
        for number, entries in read_partitions(batch):
            for partition in stage(number, entries):
                yield masked_table([partition])


class WritingActor(ABC, Generic[Settings]):
    """Makes the rows of units, several at a time, and writes each unit when it is complete.

    Rows of pieces go on to the driver: pieces of one unit may be in several actors.
    """

    name: ClassVar[str]
    """Of the stage, for the marks of what it works on."""

    dataset: ClassVar[Dataset]

    def __init__(self, settings: Settings, images_in_flight: int, session: Session) -> None:
        self._output = Output(settings.output, self.dataset)
        self._lease = session.lease
        self._reporter = Reporter(self.name, session.metrics_actor_name, process_load())
        self._log = EventLog(self.name, settings.output, session.lease, session.config_hash)
        crash_log = self._output.crash_log(self.name, settings.max_worker_crashes)
        self._stage = Built(lambda: self.build(settings, images_in_flight, crash_log, session.config_hash))

    @abstractmethod
    def build(
        self, settings: Settings, images_in_flight: int, crash_log: CrashLog, config_hash: str | None
    ) -> RowStage:
        """Build the stage, with what it loads."""

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """From the schema ``MASKED`` to ``REPORTED``; a whole unit whose report is returned is on disk."""
        return _concatenated(await asyncio.gather(*(self._make(partition) for partition in self.partitions(batch))))

    def partitions(self, batch: pa.Table) -> Iterable[MaskedPartition]:
        """The units of a batch, which has the schema ``MASKED`` unless the stage has none before it."""
        return read_masked(batch)

    async def _make(self, partition: MaskedPartition) -> pa.Table:
        rows, work = await self._stage.get()(partition)
        report = PartitionReport.of_rows(rows, self.dataset) + work
        is_whole = partition.num_chunks == 1
        if is_whole:
            await self._write(partition.number, rows, work)
        self._reporter.made(report)
        self._log.made(partition.number, rows, self.dataset, report, chunk=None if is_whole else partition.chunk)
        return reported_table(
            partition.number,
            report,
            chunk=partition.chunk,
            num_chunks=partition.num_chunks,
            rows=None if is_whole else conform(rows, self.dataset.schema),
        )

    async def _write(self, number: int, rows: Sequence[dict[str, Any]], work: PartitionReport) -> None:
        if self._lease is not None:
            await asyncio.to_thread(self._output.check_lease, self._lease)
        await asyncio.to_thread(self._output.write_partition, number, rows, work)


def _concatenated(tables: Iterable[pa.Table]) -> pa.Table:
    return pa.concat_tables([REPORTED.empty_table(), *tables])


_NUM_WRITERS = 4
_MOST_WAITING = 16

_Chunks = dict[int, tuple[pa.Table, PartitionReport]]


def assembled(rows: Iterable[Mapping[str, Any]], output: Output, lease: str | None) -> Iterator[PartitionReport]:
    """Put pieces together and write the units that they make, while further ones come.

    Only units that stages are working on are incomplete, so memory does not grow with the corpus.

    Args:
        rows: of the schema ``REPORTED``.
        output: to write to.
        claim: of the session; None: nobody else can want the output.

    Yields:
        the report of each unit that is written, by whomever.

    Raises:
        OutputError: a unit cannot be written.
        RuntimeError: another session has the output now, or pieces are missing at the end.
    """
    incomplete: dict[int, _Chunks] = {}
    writing: deque[Future[PartitionReport]] = deque()
    with ThreadPoolExecutor(_NUM_WRITERS, thread_name_prefix="writer") as writers:
        for row in rows:
            report = PartitionReport.model_validate_json(row["report"])
            if row["rows"] is None:
                yield report
                continue
            chunks = incomplete.setdefault(row["partition"], {})
            chunks[row["chunk"]] = read_rows_of_chunk(row["rows"]), report
            if len(chunks) == row["num_chunks"]:
                del incomplete[row["partition"]]
                writing.append(writers.submit(_write, output, lease, row["partition"], chunks))
            while writing and (len(writing) > _MOST_WAITING or writing[0].done()):
                yield writing.popleft().result()
        for written in writing:
            yield written.result()
    if incomplete:
        raise RuntimeError(f"pieces of the units {sorted(incomplete)} are missing")


def _write(output: Output, lease: str | None, partition: int, chunks: _Chunks) -> PartitionReport:
    if lease is not None:
        output.check_lease(lease)
    report = sum((report for _, report in chunks.values()), PartitionReport())
    output.write_chunks(partition, [chunks[place][0] for place in sorted(chunks)], report)
    return report
