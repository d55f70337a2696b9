"""Actors of the batch commands: mask generation, rows of partitions, and the writing of complete partitions."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pyarrow as pa

from ureca.data.crash_log import Attempts
from ureca.data.output import Output
from ureca.data.partitions import UnitReport
from ureca.data.processing import ProposedUnit, ProposeStage, guarded
from ureca.errors import UrecaError
from ureca.llm.load import process_load
from ureca.pipelines.batch.arrow import (
    REPORTED,
    proposed_table,
    read_proposed,
    read_rows_of_piece,
    read_units,
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

    claim: str | None = None
    recipe: str | None = None

    @property
    def board_name(self) -> str:
        """Of the board that the session's actors report to; see ``ureca.pipelines.batch.metrics``."""
        return f"ureca-board-{self.claim}"


NOBODY = Session()
"""For work of which no other session can know."""


class RowStage(Protocol):
    """Makes the rows of units."""

    async def __call__(self, unit: ProposedUnit) -> tuple[Sequence[dict[str, Any]], UnitReport]:
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


class ProposeActor:
    """Holds what proposes masks; turns units of a manifest into units with masks, or pieces as they are ready.

    Args:
        build: makes the stage, in the actor.
        settings: its argument.
        images_per_piece: None: whole units.
    """

    def __init__(
        self, build: Callable[[Settings], ProposeStage], settings: Settings, images_per_piece: int | None = None
    ) -> None:
        attempts = Output(settings.output).attempts("propose", settings.max_worker_deaths)
        self._stage = Built(lambda: guarded(build(settings), attempts, images_per_piece))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """From the schema ``UNITS`` to ``PROPOSED``."""
        stage = self._stage.get()
        if not batch.num_rows:
            yield proposed_table([])
        for number, entries in read_units(batch):
            for unit in stage(number, entries):
                yield proposed_table([unit])


class WritingActor(ABC, Generic[Settings]):
    """Makes the rows of units, several at a time, and writes each unit when it is complete.

    Rows of pieces go on to the driver: pieces of one unit may be in several actors.
    """

    name: ClassVar[str]
    """Of the stage, for the marks of what it works on."""

    dataset: ClassVar[Dataset]

    def __init__(self, settings: Settings, images_in_flight: int, session: Session) -> None:
        self._output = Output(settings.output, self.dataset)
        self._claim = session.claim
        self._reporter = Reporter(self.name, session.board_name, process_load())
        self._log = EventLog(self.name, settings.output, session.claim, session.recipe)
        attempts = self._output.attempts(self.name, settings.max_worker_deaths, together=True)
        self._stage = Built(lambda: self.build(settings, images_in_flight, attempts, session.recipe))

    @abstractmethod
    def build(self, settings: Settings, images_in_flight: int, attempts: Attempts, recipe: str | None) -> RowStage:
        """Build the stage, with what it loads."""

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """From the schema ``PROPOSED`` to ``REPORTED``; a whole unit whose report is returned is on disk."""
        return _concatenated(await asyncio.gather(*(self._make(unit) for unit in self.units(batch))))

    def units(self, batch: pa.Table) -> Iterable[ProposedUnit]:
        """The units of a batch, which has the schema ``PROPOSED`` unless the stage has none before it."""
        return read_proposed(batch)

    async def _make(self, unit: ProposedUnit) -> pa.Table:
        rows, work = await self._stage.get()(unit)
        report = UnitReport.of_rows(rows, self.dataset) + work
        is_whole = unit.num_pieces == 1
        if is_whole:
            await self._write(unit.number, rows, work)
        self._reporter.made(report)
        self._log.made(unit.number, rows, self.dataset, report, piece=None if is_whole else unit.piece)
        return reported_table(
            unit.number,
            report,
            piece=unit.piece,
            num_pieces=unit.num_pieces,
            rows=None if is_whole else conform(rows, self.dataset.schema),
        )

    async def _write(self, number: int, rows: Sequence[dict[str, Any]], work: UnitReport) -> None:
        if self._claim is not None:
            await asyncio.to_thread(self._output.check_claim, self._claim)
        await asyncio.to_thread(self._output.write_unit, number, rows, work)


def _concatenated(tables: Iterable[pa.Table]) -> pa.Table:
    return pa.concat_tables([REPORTED.empty_table(), *tables])


_NUM_WRITERS = 4
_MOST_WAITING = 16

_Pieces = dict[int, tuple[pa.Table, UnitReport]]


def assembled(rows: Iterable[Mapping[str, Any]], output: Output, claim: str | None) -> Iterator[UnitReport]:
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
    incomplete: dict[int, _Pieces] = {}
    writing: deque[Future[UnitReport]] = deque()
    with ThreadPoolExecutor(_NUM_WRITERS, thread_name_prefix="writer") as writers:
        for row in rows:
            report = UnitReport.model_validate_json(row["report"])
            if row["rows"] is None:
                yield report
                continue
            pieces = incomplete.setdefault(row["unit"], {})
            pieces[row["piece"]] = read_rows_of_piece(row["rows"]), report
            if len(pieces) == row["num_pieces"]:
                del incomplete[row["unit"]]
                writing.append(writers.submit(_write, output, claim, row["unit"], pieces))
            while writing and (len(writing) > _MOST_WAITING or writing[0].done()):
                yield writing.popleft().result()
        for written in writing:
            yield written.result()
    if incomplete:
        raise RuntimeError(f"pieces of the units {sorted(incomplete)} are missing")


def _write(output: Output, claim: str | None, unit: int, pieces: _Pieces) -> UnitReport:
    if claim is not None:
        output.check_claim(claim)
    report = sum((report for _, report in pieces.values()), UnitReport())
    output.write_pieces(unit, [pieces[place][0] for place in sorted(pieces)], report)
    return report
