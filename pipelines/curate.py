"""The curation as a Ray Data graph: stored manifest -> masks -> tree -> captions, written unit by unit."""

from dataclasses import replace
from functools import partial

import pyarrow as pa
from ray.data import Dataset

from pipelines.actors import ProposeActor, WritingActor
from pipelines.blocks import TablesToTables, pending_rows, proposed_table, read_proposed
from pipelines.pools import Work, engine_share, images_in_flight, plan_pools
from pipelines.session import Cluster
from ureca.curation.quarantine import ProposeStage, guarded_plant
from ureca.curation.stages import CurateStage, plant, propose
from ureca.dataset import Output
from ureca.dataset.attempts import Attempts
from ureca.schema import REGIONS_DATASET
from ureca.settings.components import build_curator, build_proposer
from ureca.settings.curate import CurateSettings
from ureca.settings.mllm import ByOpenAI, Mllm
from ureca.settings.proposals import images_per_piece


class CurateActor(WritingActor[CurateSettings]):
    """Holds annotator, embedder and verifier."""

    name = "curate"
    dataset = REGIONS_DATASET

    def build(
        self, settings: CurateSettings, images_in_flight: int, attempts: Attempts, recipe: str | None
    ) -> CurateStage:
        """Build the stage, with what it loads."""
        return CurateStage(
            build_curator(settings),
            settings.image_limits,
            images_in_flight,
            attempts=attempts,
            recipe=recipe,
            pixels_in_flight=settings.resources.curate.pixels_in_flight,
        )


def plant_trees(settings: CurateSettings) -> TablesToTables:
    """The task that plants the trees of units, schema ``PROPOSED`` to ``PROPOSED``."""

    def plant_batch(batch: pa.Table) -> pa.Table:
        attempts = Output(settings.output).attempts("tree", settings.max_worker_deaths)
        plant_one = partial(plant, containment=settings.tree.containment)
        return proposed_table(guarded_plant(unit, plant_one, attempts) for unit in read_proposed(batch))

    return plant_batch


def build_propose_stage(settings: CurateSettings) -> ProposeStage:
    """Build the proposer of ``proposals``."""
    return partial(propose, proposer=build_proposer(settings.proposals), limits=settings.image_limits)


def graph(
    pieces: Dataset,
    keep: TablesToTables,
    settings: CurateSettings,
    work: Work,
    cluster: Cluster,
) -> Dataset:
    """The stages over a dataset of stored manifests.

    Args:
        pieces: of stored manifests, from ``manifest_items``.
        keep: filter of the units that are to be done.
        settings: of the verb.
        work: that is to be done; no stage gets more actors than it has units.
        cluster: what there is to run on.

    Returns:
        a lazy dataset of the schema ``REPORTED``, one row a written unit, or piece of one.

    Raises:
        SettingsError: the stages cannot run side by side on this machine.
    """
    resources = settings.resources
    concurrency = engine_concurrency(settings.mllm)
    propose_pool, _ = plan_pools(resources, work, cluster, concurrency)
    per_piece = images_per_piece(settings.proposals, resources.propose, propose_pool.initial_size or 1)
    _, curate_pool = plan_pools(resources, replace(work, images_per_piece=per_piece), cluster, concurrency)
    num_actors = curate_pool.initial_size or 1
    images = images_in_flight(resources.curate, num_actors, concurrency)
    pending = pending_rows(pieces, settings.output, keep, resources.read.num_cpus)
    proposed = pending.map_batches(
        ProposeActor,
        fn_constructor_args=(build_propose_stage, settings, per_piece),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.propose.num_cpus,
        num_gpus=resources.propose.num_gpus,
        compute=propose_pool,
    )
    planted = proposed.map_batches(
        plant_trees(settings),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.tree.num_cpus,
    )
    return planted.map_batches(
        CurateActor,
        fn_constructor_args=(_share_of(settings, num_actors), images, work.session),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.curate.num_cpus,
        num_gpus=resources.curate.num_gpus,
        compute=curate_pool,
    )


def engine_concurrency(mllm: Mllm) -> int | None:
    """Requests that an engine which all actors share takes at a time; None: each actor has its own, or none."""
    return mllm.max_concurrency * len(mllm.base_urls) if isinstance(mllm, ByOpenAI) else None


def _share_of(settings: CurateSettings, num_actors: int) -> CurateSettings:
    """The settings of one of some actors: together they ask no endpoint for more than it is to be asked for."""
    if not isinstance(settings.mllm, ByOpenAI):
        return settings
    share = {"max_concurrency": engine_share(settings.mllm.max_concurrency, num_actors)}
    return settings.model_copy(update={"mllm": settings.mllm.model_copy(update=share)})
