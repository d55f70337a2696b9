"""``ureca curate``: masks, mask trees and checked captions of the regions of images, on Ray Data.

Operators: stored manifest, masks (actors), mask tree (tasks), captions (actors), written partitions. The operators
themselves are chained by ``ureca.pipelines.batch.graph``; this file has the parts that are specific to the curation.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ureca.curation.curator import Curator
from ureca.curation.dry_run import DryRunListener, counting_model
from ureca.curation.prompts import VERSION as PROMPTS_VERSION
from ureca.curation.settings import ListeningSettings
from ureca.curation.stage import CurateStage
from ureca.data.in_flight import ImagesInFlight
from ureca.data.listing import list_images
from ureca.data.masked import MaskStage, build_mask_trees
from ureca.data.partitions import PartitionReport
from ureca.data.reading import Fetch
from ureca.hashing import checkpoint_digest
from ureca.llm.openai import PROBE_TOKENS, check_endpoints
from ureca.llm.protocol import ChatModel
from ureca.llm.settings import FakeConfig, OpenAIConfig
from ureca.pipelines.batch.actors import RowActor, build_generator_stage
from ureca.pipelines.batch.arrangement import EngineSlots, engine_concurrency, with_actor_share
from ureca.pipelines.batch.dry_run import DryRun, estimate, with_gpus_of_this_machine
from ureca.pipelines.batch.graph import BatchCommand
from ureca.pipelines.batch.progress import Progress
from ureca.pipelines.batch.ray_serve_llm import chat_application
from ureca.pipelines.batch.resources import on_device
from ureca.pipelines.batch.runner import log_plan, run_batch
from ureca.pipelines.curate_settings import CurateSettings
from ureca.pipelines.settings import check_annotations_have_a_source
from ureca.registry import build_component
from ureca.schema import REGIONS_DATASET

if TYPE_CHECKING:
    from ray.data import Dataset


def build_mask_stage(settings: CurateSettings, fetch: Fetch | None = None) -> MaskStage:
    """Build the stage that generates masks, on the device that ``resources.masks`` implies."""
    return build_generator_stage(settings.mask_generator, settings, fetch)


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
    num_gpus = settings.resources.curate.num_gpus
    if model is None:
        model = build_component("chat_model", on_device(settings.mllm, num_gpus, "resources.curate"))
    return Curator(
        annotator=build_component("annotator", settings.annotator, model),
        embedder=build_component("embedder", on_device(settings.embedder, num_gpus, "resources.curate")),
        tree=settings.tree,
        views=settings.views,
        uniqueness=settings.uniqueness,
        verifier=None if verification.kind == "none" else build_component("annotator", verification, model),
        listener=None if listener.kind == "none" else build_component("listener", listener, model),
        stages=settings.stages,
        listening=listener if isinstance(listener, ListeningSettings) else ListeningSettings(),
    )


class CurateActor(RowActor[CurateSettings]):
    """Captions regions; holds annotator, embedder, listener and verifier."""

    name = "curate"
    dataset = REGIONS_DATASET

    @classmethod
    def build(cls, settings: CurateSettings, images: ImagesInFlight, config_hash: str | None = None) -> CurateStage:
        """Build the stage and load its models."""
        return CurateStage(
            build_curator(settings),
            images,
            config_hash=config_hash,
            pixels_in_flight=settings.resources.curate.pixels_in_flight,
        )


def check_engine(settings: CurateSettings) -> None:
    """Ask the endpoints of the chat model for the model and for the description of two images, once.

    Raises:
        SettingsError: they refuse it, so that no region would get a caption.
    """
    if isinstance(settings.mllm, OpenAIConfig) and settings.uses_chat_model:
        num_tokens = getattr(settings.annotator, "max_new_tokens", PROBE_TOKENS)
        num_images = 2 if settings.verification.kind == "none" else 3  # the verification shows a third view
        asyncio.run(check_endpoints(settings.mllm, num_images=num_images, max_new_tokens=num_tokens))


def _list_input(settings: CurateSettings) -> pa.Table:
    check_annotations_have_a_source(settings)
    return list_images(settings.input, **settings.listing.model_dump())


CURATE: BatchCommand[CurateSettings] = BatchCommand(
    name="curate",
    dataset=REGIONS_DATASET,
    list_input=_list_input,
    row_actor=CurateActor,
    build_mask_stage=build_mask_stage,
    build_trees=build_mask_trees,
    engine_concurrency=lambda settings: engine_concurrency(settings.mllm),
    actor_settings=with_actor_share,
    running=chat_application,
    check_engine=check_engine,
    packages=("scikit-image",),
)


def curate(
    settings: CurateSettings,
    on_plan: Callable[[int, int], None] = log_plan,
    progress_of: Callable[[int], Progress] = Progress,
    command: BatchCommand[CurateSettings] = CURATE,
) -> PartitionReport:
    """Caption the regions of the images that the output lacks, and retry failed ones if the settings say so.

    Args:
        settings: settings of the command.
        on_plan: callback that gets the number of images in the output's manifest, and of those to process now.
        progress_of: function that makes the progress display for a number of images.
        command: definition of the command, with other operators for example.

    Returns:
        The report of the whole output, including earlier sessions.

    Raises:
        InputError: there is nothing to read, or ids are not unique.
        OutputError: the folder belongs to another run, was started with other settings, or cannot be written to.
        SettingsError: a checkpoint, a package or the MLLM's key is missing, or the operators do not fit the cluster.
    """
    checkpoints = {
        f"{name}.checkpoint": checkpoint_digest(checkpoint)
        for name in ("masks", "embedder", "mllm")
        if (checkpoint := getattr(getattr(settings, name), "checkpoint", None)) is not None
    }
    return run_batch(command, settings, on_plan, progress_of, {"prompts": PROMPTS_VERSION, **checkpoints})


def add_stages(ds: "Dataset", settings: CurateSettings | Mapping[str, Any]) -> "Dataset":
    """Add the curation to a Ray Dataset of images: one row in, one row out.

    The stages generate masks, build the mask tree and caption the regions. They can follow and precede any other
    operators. Rows stay independent: an image that cannot be decoded, or for which no mask is found, is a row with an
    ``error``. There is no output folder and no resume; fault tolerance is Ray Data's own.

    Args:
        ds: dataset with a column of images: encoded files as bytes, paths or URIs as strings, or uint8 RGB arrays
            [H, W, 3]. ``settings.listing.image_column`` names the column; by default it is the first of ``image``,
            ``bytes``, ``uri`` and ``path``. ``settings.listing.id_column`` names a column of unique ids; by default it
            is ``image_id`` if there is one, else the id is the path, or a hash of the image.
        settings: settings of ``ureca curate``, or a mapping of those that differ from the defaults. ``input``,
            ``output`` and all settings of resuming and selecting are not used; ``images_per_partition`` is the batch
            size, by default that of the blocks.

    Returns:
        A lazy dataset with the columns of ``ds`` and those of ``ureca.schema.REGIONS``.

    Raises:
        SettingsError: masks would come from annotation files, or the model from ``mllm.kind ray_serve``.

    Example:
        >>> ds = ray.data.read_images("photos", include_paths=True)  # doctest: +SKIP
        >>> captioned = add_stages(ds, {"masks": {"kind": "segments"}})  # doctest: +SKIP
        >>> captioned.map_batches(my_filter).write_parquet("captions")  # doctest: +SKIP
    """
    if not isinstance(settings, CurateSettings):
        settings = CurateSettings(**{"input": "", "output": "", **settings})
    from ureca.pipelines.batch.stages import add_row_stages

    return add_row_stages(ds, CURATE, settings)


def plan(settings: CurateSettings) -> str:
    """Estimate what ``curate`` would take, as lines of text; nothing is started or written.

    Raises:
        InputError: there is nothing to read, or nothing to do.
    """
    return estimate(CURATE, settings, curate_dry_run(settings))


def curate_dry_run(settings: CurateSettings) -> DryRun:
    """Build the curation for an estimate, with a chat model that only counts unless ``planning.ask_model`` is set.

    Raises:
        SettingsError: a checkpoint, a package or the MLLM's key is missing, or the model needs a cluster.
    """
    settings = with_gpus_of_this_machine(settings)
    ask = settings.planning.ask_model
    model = counting_model(build_component("chat_model", settings.mllm) if ask else None)
    curator = build_curator(settings, model)
    if curator.listener is not None and not ask:
        curator = replace(curator, listener=DryRunListener(curator.listener))
    has_engine = settings.uses_chat_model and not isinstance(settings.mllm, FakeConfig)
    return DryRun(
        generate=build_mask_stage(settings),
        prepare=partial(build_mask_trees, containment=settings.tree.containment),
        write=CurateStage(curator, ImagesInFlight(settings.planning.images, settings.image_limits)),
        questions=model.counts,
        asks_model=ask,
        engine=EngineSlots.of_settings(settings.mllm) if has_engine else None,
    )
