"""The curation as a Ray Data graph: stored manifest -> masks -> tree -> captions, written unit by unit."""

from functools import partial

import pyarrow as pa
from ray.data import Dataset

from pipelines.actors import ProposeActor, ProposeStage, WritingActor
from pipelines.blocks import TablesToTables, pending_rows, proposed_table, read_proposed
from pipelines.pools import plan_pools
from pipelines.session import Cluster
from ureca.curation.stages import CurateStage, plant, propose
from ureca.schema import REGIONS_DATASET
from ureca.settings.components import build_curator, build_proposer
from ureca.settings.curate import CurateSettings


class CurateActor(WritingActor[CurateSettings]):
    """Holds annotator, embedder and verifier."""

    dataset = REGIONS_DATASET

    def build(self, settings: CurateSettings) -> CurateStage:
        """Build the stage, with what it loads."""
        return CurateStage(build_curator(settings), settings.image_limits, settings.resources.curate.images_in_flight)


def plant_trees(containment: float) -> TablesToTables:
    """The task that plants the trees of units, schema ``PROPOSED`` to ``PROPOSED``."""

    def plant_batch(batch: pa.Table) -> pa.Table:
        return proposed_table(plant(unit, containment) for unit in read_proposed(batch))

    return plant_batch


def build_propose_stage(settings: CurateSettings) -> ProposeStage:
    """Build the proposer of ``proposals``."""
    return partial(propose, proposer=build_proposer(settings.proposals), limits=settings.image_limits)


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
    pending = pending_rows(pieces, settings.output, keep, resources.read.num_cpus)
    proposed = pending.map_batches(
        ProposeActor,
        fn_constructor_args=(build_propose_stage, settings),
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
