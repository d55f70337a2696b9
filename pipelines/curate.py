"""What ``curate --plan`` goes through some images with.

[from] The curation as a Ray Data graph: stored manifest -> masks -> tree -> captions, written unit by unit.
[from] ``curate`` as a batch verb."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyarrow as pa
from ray.data import Dataset

from ureca.curation.curator import Curator
from ureca.curation.dry_run import DryRunListener, counting_model
from ureca.curation.listener import ListeningSettings
from ureca.curation.prompts import VERSION as PROMPTS_VERSION
from ureca.curation.stage import CurateStage
from ureca.data.crash_log import CrashLog
from ureca.data.listing import list_images
from ureca.data.masked import MaskStage, build_mask_trees, generate_masks
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.quarantine import build_with_quarantine
from ureca.hashing import checkpoint_digest
from ureca.llm.fake import FakeConfig
from ureca.llm.openai import OpenAIConfig
from ureca.llm.protocol import ChatModel
from ureca.masks.generators.base import MaskGenerator
from ureca.pipelines.batch.actors import MaskActor, WritingActor
from ureca.pipelines.batch.arrangement import Engine, engine_concurrency
from ureca.pipelines.batch.arrow import TablesToTables, masked_table, pending_rows, read_masked
from ureca.pipelines.batch.dry_run import DryRun, estimate
from ureca.pipelines.batch.progress import Progress
from ureca.pipelines.batch.ray_serve_llm import chat_application
from ureca.pipelines.batch.resources import Work, engine_share, images_in_flight, plan_pools
from ureca.pipelines.batch.runner import BatchCommand, run_batch
from ureca.pipelines.batch.session import Cluster
from ureca.pipelines.curate_settings import CurateSettings
from ureca.pipelines.settings import images_per_chunk
from ureca.registry import build_component
from ureca.schema import REGIONS_DATASET


class CurateActor(WritingActor[CurateSettings]):
    """Holds annotator, embedder and verifier."""

    name = "curate"
    dataset = REGIONS_DATASET

    def build(
        self, settings: CurateSettings, images_in_flight: int, crash_log: CrashLog, config_hash: str | None
    ) -> CurateStage:
        """Build the stage, with what it loads."""
        return CurateStage(
            build_curator(settings),
            settings.image_limits,
            images_in_flight,
            crash_log=crash_log,
            config_hash=config_hash,
            pixels_in_flight=settings.resources.curate.pixels_in_flight,
        )


def build_curator(settings: CurateSettings, model: ChatModel | None = None) -> Curator:
    """Build the curator of a run with its annotator, embedder, listener and verifier.

    Args:
        settings: settings of the command.
        model: chat model for all components that use one; None: the one that ``mllm`` names.

    Raises:
        SettingsError: a checkpoint, a package or the key of the chat model is missing.
    """
    listener, verification = settings.listener, settings.verification
    # One model for all components: weights are loaded once, and the limits of an endpoint hold for all its requests.
    model = model or build_component("chat_model", settings.mllm)
    return Curator(
        annotator=build_component("annotator", settings.annotator, model),
        embedder=build_component("embedder", settings.embedder),
        tree=settings.tree,
        views=settings.views,
        uniqueness=settings.uniqueness,
        verifier=None if verification.kind == "none" else build_component("annotator", verification, model),
        listener=None if listener.kind == "none" else build_component("listener", listener, model),
        stages=settings.stages,
        listening=listener if isinstance(listener, ListeningSettings) else ListeningSettings(),
    )


def build_trees(settings: CurateSettings) -> TablesToTables:
    """The task that plants the trees of units, schema ``MASKED`` to ``MASKED``."""

    def build_batch(batch: pa.Table) -> pa.Table:
        crash_log = Output(settings.output).crash_log("tree", settings.max_worker_crashes)
        build_one = partial(build_mask_trees, containment=settings.tree.containment)
        return masked_table(build_with_quarantine(partition, build_one, crash_log) for partition in read_masked(batch))

    return build_batch


def build_mask_stage(settings: CurateSettings) -> MaskStage:
    """Build the mask generator of ``masks``."""
    mask_generator: MaskGenerator = build_component("mask_generator", settings.masks)
    return partial(generate_masks, mask_generator=mask_generator, limits=settings.image_limits)


def graph(
    chunks: Dataset,
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
    mask_pool, _ = plan_pools(resources, work, cluster, concurrency)
    per_chunk = images_per_chunk(settings.masks, resources.masks, mask_pool.initial_size or 1)
    _, curate_pool = plan_pools(resources, replace(work, images_per_chunk=per_chunk), cluster, concurrency)
    num_actors = curate_pool.initial_size or 1
    images = images_in_flight(resources.curate, num_actors, concurrency)
    pending = pending_rows(chunks, settings.output, keep, resources.read.num_cpus)
    masked = pending.map_batches(
        MaskActor,
        fn_constructor_args=(build_mask_stage, settings, per_chunk),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.masks.num_cpus,
        num_gpus=resources.masks.num_gpus,
        compute=mask_pool,
    )
    built = masked.map_batches(
        build_trees(settings),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.tree.num_cpus,
    )
    return built.map_batches(
        CurateActor,
        fn_constructor_args=(_share_of(settings, num_actors), images, work.session),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.curate.num_cpus,
        num_gpus=resources.curate.num_gpus,
        compute=curate_pool,
    )


def _share_of(settings: CurateSettings, num_actors: int) -> CurateSettings:
    """The settings of one of some actors: together they ask no endpoint for more than it is to be asked for."""
    if not isinstance(settings.mllm, OpenAIConfig):
        return settings
    share = {"max_concurrency": engine_share(settings.mllm.max_concurrency, num_actors)}
    return settings.model_copy(update={"mllm": settings.mllm.model_copy(update=share)})


def curate(
    settings: CurateSettings, on_plan: Callable[[int, int], None], progress_of: Callable[[int], Progress] = Progress
) -> PartitionReport:
    """Curate what is missing in the output, and, if asked for, again what failed; see ``run_batch``."""
    return run_batch(_CURATE, settings, on_plan, progress_of, _identity(settings))


def plan(settings: CurateSettings) -> str:
    """What ``curate`` would take, as lines for people; nothing is started, and nothing written.

    Raises:
        InputError: there is nothing to read, or nothing to do.
    """
    return estimate(_CURATE, settings, curate_dry_run(settings), "curate")


def _identity(settings: CurateSettings) -> dict[str, str]:
    """What the settings only name: prompts, and checkpoints by their content."""
    sections = {"masks": settings.masks, "embedder": settings.embedder, "mllm": settings.mllm}
    checkpoints = {
        f"{name}.checkpoint": checkpoint_digest(checkpoint)
        for name, section in sections.items()
        if (checkpoint := getattr(section, "checkpoint", None)) is not None
    }
    return {"prompts": PROMPTS_VERSION, **checkpoints}


def _list_input(settings: CurateSettings) -> pa.Table:
    return list_images(settings.input, **settings.listing.model_dump())


_CURATE = BatchCommand(
    name="curate",
    dataset=REGIONS_DATASET,
    list_input=_list_input,
    graph=graph,
    within=chat_application,
    packages=("scikit-image",),
)


def curate_dry_run(settings: CurateSettings) -> DryRun:
    """The curation with a chat model that costs nothing, or with its own where ``planning.ask_model`` says so.

    Raises:
        SettingsError: a checkpoint, a package or the MLLM's key is missing; or it cannot be asked before a run.
    """
    ask = settings.planning.ask_model
    model = counting_model(build_component("chat_model", settings.mllm) if ask else None)
    curator = build_curator(settings, model)
    if curator.listener is not None and not ask:
        curator = replace(curator, listener=DryRunListener(curator.listener))
    return DryRun(
        generate=build_mask_stage(settings),
        prepare=partial(build_mask_trees, containment=settings.tree.containment),
        write=CurateStage(curator, settings.image_limits, settings.planning.images),
        questions=model.counts,
        asks_model=ask,
        engine=Engine.of_settings(settings.mllm) if _has_engine(settings) else None,
    )


def _has_engine(settings: CurateSettings) -> bool:
    return settings.uses_chat_model and not isinstance(settings.mllm, FakeConfig)
