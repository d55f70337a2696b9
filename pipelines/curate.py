"""The curation as a Ray Data graph: stored manifest -> masks -> tree -> captions, written unit by unit."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import pyarrow as pa
from ray.data import Dataset

from pipelines.blocks import (
    REPORTED,
    TablesToTables,
    proposed_table,
    read_pending,
    read_proposed,
    read_units,
    reported_table,
)
from pipelines.pools import plan_pools
from pipelines.session import Cluster
from ureca.curation.stages import CurateStage, ProposedUnit, plant, propose
from ureca.dataset import Output, UnitReport
from ureca.errors import UrecaError
from ureca.settings.components import build_curator, build_proposer
from ureca.settings.curate import CurateSettings

Component = TypeVar("Component")


class _Built(Generic[Component]):
    """Builds a component at once; an error of its user's is raised when it is first asked for.

    Raised by an actor's constructor, Ray would try again and again before it gave up.
    """

    def __init__(self, build: Callable[[CurateSettings], Component], settings: CurateSettings) -> None:
        self._component: Component | UrecaError
        try:
            self._component = build(settings)
        except UrecaError as error:
            self._component = error

    def get(self) -> Component:
        """The component."""
        if isinstance(self._component, UrecaError):
            raise self._component
        return self._component


class ProposeActor:
    """Holds a proposer; turns units of a manifest into units with masks."""

    def __init__(self, settings: CurateSettings) -> None:
        self._proposer = _Built(build_proposer, settings)
        self._limits = settings.image_limits

    def __call__(self, batch: pa.Table) -> pa.Table:
        """From the schema ``UNITS`` to ``PROPOSED``."""
        proposer = self._proposer.get()
        units = read_units(batch)
        return proposed_table(propose(number, entries, proposer, self._limits) for number, entries in units)


def plant_trees(containment: float) -> TablesToTables:
    """The task that plants the trees of units, schema ``PROPOSED`` to ``PROPOSED``."""

    def plant_batch(batch: pa.Table) -> pa.Table:
        return proposed_table(plant(unit, containment) for unit in read_proposed(batch))

    return plant_batch


class CurateActor:
    """Holds annotator, embedder and verifier; captions units, many at a time, and writes each when it is complete."""

    def __init__(self, settings: CurateSettings) -> None:
        self._output = Output(settings.output)
        self._stage = _Built(_build_stage, settings)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """From the schema ``PROPOSED`` to ``REPORTED``; a unit whose report is returned is on disk."""
        tables = await asyncio.gather(*(self._curate(unit) for unit in read_proposed(batch)))
        return pa.concat_tables([REPORTED.empty_table(), *tables])

    async def _curate(self, unit: ProposedUnit) -> pa.Table:
        rows, work = await self._stage.get()(unit)
        await asyncio.to_thread(self._output.write_unit, unit.number, rows, work)
        return reported_table(unit.number, UnitReport.of_rows(rows) + work)


def _build_stage(settings: CurateSettings) -> CurateStage:
    return CurateStage(build_curator(settings), settings.image_limits, settings.resources.curate.images_in_flight)


def graph(pieces: Dataset, keep: TablesToTables, settings: CurateSettings, num_units: int, cluster: Cluster) -> Dataset:
    """The stages over a dataset of stored manifests.

    Args:
        pieces: of stored manifests, from ``manifest_items``.
        keep: filter of the units that are to be done.
        settings: of the verb.
        num_units: that are to be done; no stage gets more actors.
        cluster: what there is to run on.

    Returns:
        a lazy dataset of the schema ``REPORTED``, one row a written unit, as they are written.

    Raises:
        SettingsError: the stages cannot run side by side on this machine.
    """
    resources = settings.resources
    propose_pool, curate_pool = plan_pools(resources, num_units, cluster)
    pending = pieces.map_batches(
        read_pending(settings.output, keep),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.read.num_cpus,
    ).repartition(target_num_rows_per_block=1)
    proposed = pending.map_batches(
        ProposeActor,
        fn_constructor_args=(settings,),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.propose.num_cpus,
        num_gpus=resources.propose.num_gpus,
        compute=propose_pool,
    )
    planted = proposed.map_batches(
        plant_trees(settings.tree.containment),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.tree.num_cpus,
    )
    return planted.map_batches(
        CurateActor,
        fn_constructor_args=(settings,),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.curate.num_cpus,
        num_gpus=resources.curate.num_gpus,
        compute=curate_pool,
    )
