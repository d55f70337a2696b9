"""What ``curate --plan`` goes through some images with.

[from] The curation as a Ray Data graph: stored manifest -> masks -> tree -> captions, written unit by unit.
[from] ``curate`` as a batch verb."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyarrow as pa
from ray.data import Dataset

from ureca.curation.dry_run import UnderstandingListener, counted
from ureca.curation.prompts import VERSION as PROMPTS_VERSION
from ureca.data.crash_log import Attempts
from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.data.partitions import UnitReport
from ureca.data.processing import CurateStage, ProposeStage, guarded_plant, plant, propose
from ureca.llm.settings import ByOpenAI, ByRayServe, ByTransformers, ByVllm, Mllm, StandIn
from ureca.model.checkpoint_files import named
from ureca.pipelines.batch.actors import ProposeActor, WritingActor
from ureca.pipelines.batch.arrow import TablesToTables, pending_rows, proposed_table, read_proposed
from ureca.pipelines.batch.dry_run import Rehearsal, estimate
from ureca.pipelines.batch.progress import Progress
from ureca.pipelines.batch.ray_serve_llm import chat_application
from ureca.pipelines.batch.resources import Work, engine_share, images_in_flight, plan_pools
from ureca.pipelines.batch.runner import BatchVerb, run_batch
from ureca.pipelines.batch.session import Cluster
from ureca.pipelines.components import build_chat_model, build_curator, build_proposer
from ureca.pipelines.curate_settings import CurateSettings
from ureca.pipelines.settings import images_per_piece
from ureca.schema import REGIONS_DATASET


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


# How a model is reached makes no other captions; what a checkpoint is, its content tells.
REACHING_AN_MLLM = frozenset(
    {
        *("mllm.base_urls", "mllm.api_key_variable", "mllm.api_key_file", "mllm.max_concurrency", "mllm.max_attempts"),
        *("mllm.connect_timeout_s", "mllm.answer_timeout_s", "mllm.first_wait_s", "mllm.max_wait_s"),
        *("mllm.max_outage_s", "mllm.max_answer_bytes", "mllm.seconds_per_answer"),
        *("mllm.device", "mllm.max_batch_size", "mllm.tensor_parallel_size", "mllm.gpu_memory_utilization"),
        *("mllm.min_replicas", "mllm.max_replicas", "mllm.requests_per_replica", "mllm.accelerator_type", "mllm.port"),
    }
)
"""How a model is reached, and what it runs on, makes no other answers."""

_MAY_CHANGE = REACHING_AN_MLLM | {"proposals.checkpoint", "embedder.checkpoint", "mllm.checkpoint"}


def curate(
    settings: CurateSettings, on_plan: Callable[[int, int], None], progress_of: Callable[[int], Progress] = Progress
) -> UnitReport:
    """Curate what is missing in the output, and, if asked for, again what failed; see ``run_batch``."""
    return run_batch(_CURATE, settings, on_plan, progress_of, _identity(settings))


def plan(settings: CurateSettings) -> str:
    """What ``curate`` would take, as lines for people; nothing is started, and nothing written.

    Raises:
        InputError: there is nothing to read, or nothing to do.
    """
    return estimate(_CURATE, settings, curate_rehearsal(settings), "curate")


def _identity(settings: CurateSettings) -> dict[str, str]:
    """What the settings only name: prompts, and checkpoints by their content."""
    sections = {"proposals": settings.proposals, "embedder": settings.embedder, "mllm": settings.mllm}
    checkpoints = {
        f"{name}.checkpoint": named(checkpoint)
        for name, section in sections.items()
        if (checkpoint := getattr(section, "checkpoint", None)) is not None
    }
    return {"prompts": PROMPTS_VERSION, **checkpoints}


def _list_input(settings: CurateSettings) -> pa.Table:
    return list_images(settings.input, **settings.listing.model_dump())


_CURATE = BatchVerb(
    name="curate",
    dataset=REGIONS_DATASET,
    list_input=_list_input,
    graph=graph,
    within=chat_application,
    may_change=_MAY_CHANGE,
    packages=("scikit-image",),
)


def curate_rehearsal(settings: CurateSettings) -> Rehearsal:
    """The curation with a chat model that costs nothing, or with its own where ``planning.ask_model`` says so.

    Raises:
        SettingsError: a checkpoint, a package or the MLLM's key is missing; or it cannot be asked before a run.
    """
    ask = settings.planning.ask_model
    model = counted(build_chat_model(settings.mllm) if ask else None)
    curator = build_curator(settings, model)
    if curator.listener is not None and not ask:
        curator = replace(curator, listener=UnderstandingListener(curator.listener))
    kinds: set[str] = {settings.annotator.kind, settings.listener.kind, settings.verification.kind}
    return Rehearsal(
        propose=build_propose_stage(settings),
        prepare=partial(plant, containment=settings.tree.containment),
        write=CurateStage(curator, settings.image_limits, settings.planning.images),
        questions=model.questions,
        asks_model=ask,
        engine_places=partial(_places, settings.mllm) if _has_engine(settings, kinds) else None,
    )


def _has_engine(settings: CurateSettings, kinds: set[str]) -> bool:
    return "prompted" in kinds and not isinstance(settings.mllm, StandIn)


def _places(mllm: Mllm, num_actors: int) -> int | None:
    """Answers that the engine gives at a time; None: nobody has said."""
    match mllm:
        case ByRayServe():
            return mllm.max_replicas * mllm.requests_per_replica
        case ByTransformers():
            return mllm.max_batch_size * num_actors
        case ByVllm():
            places = mllm.engine_options.get("max_num_seqs")
            return None if places is None else int(places) * num_actors
    return engine_concurrency(mllm)
