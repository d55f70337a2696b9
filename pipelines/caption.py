"""``ureca caption``: captions of regions by a URECA checkpoint, or by a baseline, on Ray Data.

Operators: stored manifest, masks (actors), captions (actors), written partitions. The operators themselves are chained
by ``ureca.pipelines.batch.graph``; this file has the parts that are specific to captioning.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ureca.captioning.captioners import EngineCaptioner
from ureca.captioning.chat import ChatEngine, EndpointEngine, check_caption_endpoints
from ureca.captioning.engine import RegionEngine, load_engine
from ureca.captioning.stage import CaptionStage
from ureca.data.in_flight import ImagesInFlight
from ureca.data.listing import list_images
from ureca.data.masked import MaskStage
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.reading import Fetch
from ureca.data.reuse import list_run, reuse_masks
from ureca.data.settings import ReusedMasksConfig
from ureca.errors import InputError, SettingsError
from ureca.io import check_links, locate
from ureca.llm.settings import TransformersConfig
from ureca.llm.transformers import TransformersChatModel
from ureca.masks.generators.settings import SegmentsConfig
from ureca.memory import free_device_bytes
from ureca.model.checkpoint_files import Checkpoint, identify
from ureca.pipelines.batch.actors import RowActor, build_fetch, build_generator_stage
from ureca.pipelines.batch.arrangement import with_actor_share
from ureca.pipelines.batch.dry_run import DryRun, estimate, has_gpu, with_gpus_of_this_machine
from ureca.pipelines.batch.graph import BatchCommand
from ureca.pipelines.batch.progress import Progress
from ureca.pipelines.batch.resources import device_of, memory_fraction, on_device
from ureca.pipelines.batch.runner import log_plan, run_batch
from ureca.pipelines.caption_settings import AutoMasksConfig, CaptioningSettings
from ureca.pipelines.settings import ListingSettings, check_annotations_have_a_source
from ureca.schema import CAPTIONS_DATASET

if TYPE_CHECKING:
    from ray.data import Dataset

_BASELINE_BATCH_SIZE = 32
"""Requests in a batch of a baseline where the settings give no number."""


def build_mask_stage(settings: CaptioningSettings, fetch: Fetch | None = None) -> MaskStage:
    """Build the stage that generates masks, or reads those of an earlier run.

    Raises:
        SettingsError: ``masks.kind`` is auto, which ``resolve_masks`` replaces.
    """
    masks = settings.masks
    if isinstance(masks, AutoMasksConfig):
        raise SettingsError("masks.kind auto: the kind is not chosen yet; name it, or call resolve_masks first")
    if isinstance(masks, ReusedMasksConfig):
        return partial(reuse_masks, only_below=settings.listing.only_below)
    return build_generator_stage(masks, settings, fetch)


class CaptionActor(RowActor[CaptioningSettings]):
    """Captions regions; holds the checkpoint, on a GPU if the actor has one."""

    name = "caption"
    dataset = CAPTIONS_DATASET

    @classmethod
    def build(
        cls, settings: CaptioningSettings, images: ImagesInFlight, config_hash: str | None = None
    ) -> CaptionStage[Any]:
        """Build the stage and load the checkpoint."""
        checkpoint = _identify(settings)
        name = checkpoint.name if settings.region_prompt is None else f"{checkpoint.name} {settings.region_prompt}"
        captioner = EngineCaptioner(_build_engine(settings, checkpoint), settings.captioner)
        return CaptionStage(captioner, name, images, config_hash=config_hash)


def _identify(settings: CaptioningSettings) -> Checkpoint:
    """Identify the model; one behind endpoints is its name there."""
    if settings.engine == "openai":
        return Checkpoint("mllm", settings.model, settings.model)
    return identify(settings.model)


def _build_engine(settings: CaptioningSettings, checkpoint: Checkpoint) -> RegionEngine[Any]:
    if settings.engine == "openai":
        return EndpointEngine(settings.model, settings.base_urls, settings.endpoints, settings.region_prompt)
    num_gpus = settings.resources.caption.num_gpus
    if checkpoint.kind == "ureca":  # chosen in the actor: vLLM may be installed there only
        return load_engine(
            settings.model,
            settings.captioner,
            engine=settings.engine,
            vllm=settings.vllm,
            dtype=settings.dtype,
            on_gpu=device_of(num_gpus, "resources.caption") == "cuda",
            region_prompt=settings.region_prompt,
            memory_fraction=memory_fraction(settings.resources.caption.num_cpus, num_gpus),
        )
    batch_size = settings.captioner.batch_size or _BASELINE_BATCH_SIZE
    config = TransformersConfig(
        checkpoint=settings.model,
        dtype=settings.dtype,
        max_batch_size=batch_size,
        image_options=settings.image_options,
    )
    model = TransformersChatModel(on_device(config, num_gpus, "resources.caption"))
    assert settings.region_prompt is not None  # noqa: S101 - checked by usable_checkpoint
    # Two batches: one is formed while the other is generated.
    return ChatEngine(model, settings.region_prompt, 2 * batch_size)


def _regions_at_once(settings: CaptioningSettings, checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Describe for a plan how many regions an actor will decode together; nothing where another engine decides."""
    num_gpus = settings.resources.caption.num_gpus
    has_vllm = settings.engine == "vllm" or (settings.engine == "auto" and num_gpus and find_spec("vllm") is not None)
    if checkpoint.kind != "ureca" or settings.engine == "openai" or has_vllm:
        return []
    if settings.captioner.batch_size is not None:
        return [("regions at once", f"{settings.captioner.batch_size} in each actor, as set")]
    from ureca.model.region_memory import RegionMemory

    memory = RegionMemory.of_checkpoint(settings.model, settings.captioner, settings.dtype)
    each = f"about {memory.num_bytes / 1e6:.1f} MB each"
    if num_gpus and not has_gpu():
        return [("regions at once", f"as many as half of the free memory of an actor's GPU holds, {each}")]
    device = "cuda" if num_gpus else "cpu"
    share = memory_fraction(settings.resources.caption.num_cpus, num_gpus)
    number = memory.num_regions(share * free_device_bytes(device), device)
    return [("regions at once", f"{number} in each actor, by the free memory of this machine, {each}")]


def check_engine(settings: CaptioningSettings) -> None:
    """Ask the endpoints for the model and for the description of one image, once.

    Raises:
        SettingsError: they refuse it, so that no region would get a caption.
    """
    if settings.base_urls:
        check_caption_endpoints(
            settings.model, settings.base_urls, settings.endpoints, settings.captioner.max_new_tokens
        )


def list_input(settings: CaptioningSettings) -> pa.Table:
    """List the images of INPUT as a manifest, with their regions where masks are reused.

    Raises:
        InputError: there is nothing to read, or INPUT and ``masks`` or ``listing`` do not fit each other.
    """
    check_annotations_have_a_source(settings)
    from_regions = isinstance(settings.masks, ReusedMasksConfig)
    only_below = settings.listing.only_below
    locate(settings.input, only_below)
    if not Output(settings.input).exists():
        if from_regions:
            raise InputError(
                f"{settings.input} is not the output of a run, which masks.kind regions takes masks from; name the "
                "folder that has run.json"
            )
        return list_images(settings.input, **settings.listing.model_dump())
    check_links(settings.input, only_below)
    others = settings.listing.model_copy(update={"only_below": ()})
    if named := [name for name, value in others if value != getattr(ListingSettings(), name)]:
        raise InputError(
            f"{settings.input} is the output of a run, which knows its images: leave out listing.{named[0]}"
        )
    if locate(settings.input).name == locate(settings.output).name:
        raise InputError(f"{settings.input} is both the input and the output; name another folder for the captions")
    return list_run(Output.of_run(settings.input), with_regions=from_regions)


CAPTION: BatchCommand[CaptioningSettings] = BatchCommand(
    name="caption",
    dataset=CAPTIONS_DATASET,
    list_input=list_input,
    row_actor=CaptionActor,
    build_mask_stage=build_mask_stage,
    engine_concurrency=lambda settings: settings.endpoints.max_concurrency * len(settings.base_urls) or None,
    actor_settings=partial(with_actor_share, section="endpoints"),
    check_engine=check_engine,
    packages=("torch", "transformers"),
)


def caption(
    settings: CaptioningSettings,
    on_plan: Callable[[int, int], None] = log_plan,
    progress_of: Callable[[int], Progress] = Progress,
    command: BatchCommand[CaptioningSettings] = CAPTION,
) -> PartitionReport:
    """Caption the images that the output lacks, and retry failed ones if the settings say so.

    Args:
        settings: settings of the command.
        on_plan: callback that gets the number of images in the output's manifest, and of those to process now.
        progress_of: function that makes the progress display for a number of images.
        command: definition of the command, with other operators for example.

    Returns:
        The report of the whole output, including earlier sessions.

    Raises:
        CheckpointError: the model is not a checkpoint.
        InputError: there is nothing to read, or ids are not unique.
        OutputError: the folder belongs to another run, was started with other settings, or cannot be written to.
        SettingsError: the model is a baseline and the settings do not say how it is shown a region, or the operators
            do not fit the cluster.
    """
    identity = {"model": usable_checkpoint(settings).identity}
    return run_batch(command, resolve_masks(settings), on_plan, progress_of, identity)


def add_stages(ds: "Dataset", settings: CaptioningSettings | Mapping[str, Any]) -> "Dataset":
    """Add captioning by a checkpoint to a Ray Dataset of images: one row in, one row out.

    The stages generate masks and caption each of them. They can follow and precede any other operators. Rows stay
    independent: an image that cannot be decoded, or for which no mask is found, is a row with an ``error``. There is
    no output folder and no resume; fault tolerance is Ray Data's own.

    Args:
        ds: dataset with a column of images: encoded files as bytes, paths or URIs as strings, or uint8 RGB arrays
            [H, W, 3]. Columns are found as by ``ureca.pipelines.curate.add_stages``.
        settings: settings of ``ureca caption``, or a mapping of those that differ from the defaults, with ``model`` at
            least. ``input``, ``output`` and all settings of resuming and selecting are not used; ``masks.kind auto``
            means ``segments``.

    Returns:
        A lazy dataset with the columns of ``ds`` and those of ``ureca.schema.CAPTIONS``.

    Raises:
        CheckpointError: the model is not a checkpoint.
        SettingsError: masks would come from files or an earlier run, or the model is a baseline and the settings do
            not say how it is shown a region.

    Example:
        >>> captioned = add_stages(ds, {"model": "checkpoints/ureca"})  # doctest: +SKIP
    """
    if not isinstance(settings, CaptioningSettings):
        settings = CaptioningSettings(**{"input": "", "output": "", **settings})
    if isinstance(settings.masks, AutoMasksConfig):
        settings = settings.model_copy(update={"masks": SegmentsConfig()})
    usable_checkpoint(settings)
    from ureca.pipelines.batch.stages import add_row_stages

    return add_row_stages(ds, CAPTION, settings)


def plan(settings: CaptioningSettings) -> str:
    """Estimate what ``caption`` would take, as lines of text; nothing is started or written.

    The model is loaded and asked only if ``planning.ask_model`` is set.

    Raises:
        CheckpointError: the model is not a checkpoint.
        SettingsError: the model is a baseline and the settings do not say how it is shown a region.
        InputError: there is nothing to read, or nothing to do.
    """
    checkpoint = usable_checkpoint(settings)
    settings = resolve_masks(settings)
    facts = _regions_at_once(settings, checkpoint)
    ask = settings.planning.ask_model
    settings = with_gpus_of_this_machine(settings)
    images = ImagesInFlight(settings.planning.images, settings.image_limits, fetch=build_fetch(settings))
    dry_run = DryRun(
        generate=build_mask_stage(settings),
        prepare=lambda partition: partition,
        write=CaptionActor.build(settings, images) if ask else None,
        questions={},
        asks_model=ask,
        engine=None,
        facts=facts,
    )
    return estimate(CAPTION, settings, dry_run)


def usable_checkpoint(settings: CaptioningSettings) -> Checkpoint:
    """Identify the model, and check that it can be shown regions as the settings say.

    Raises:
        CheckpointError: it is not a checkpoint.
        SettingsError: the settings do not fit the model.
    """
    checkpoint = _identify(settings)
    if settings.engine == "openai":
        if settings.image_options:
            raise SettingsError("image_options are for baselines in the actors; endpoints have their own")
    elif checkpoint.kind == "ureca":
        if settings.image_options:
            raise SettingsError("image_options are for baselines; a checkpoint of URECA says itself how images are cut")
    elif settings.region_prompt in {None, "mask"}:
        raise SettingsError(
            f"{settings.model} is not a folder with a checkpoint of URECA. If it is another model that sees images, "
            "say how it is shown which region is meant: none, contour or crop (by region_prompt; to ureca evaluate as "
            "PATH:crop)"
        )
    elif settings.captioner.top_p < 1:
        raise SettingsError(f"captioner.top_p is for checkpoints of URECA; {settings.model} has captioner.temperature")
    return checkpoint


def resolve_masks(settings: CaptioningSettings) -> CaptioningSettings:
    """Replace ``masks.kind auto``: the masks of INPUT if it is the output of a run, else ``segments``."""
    if not isinstance(settings.masks, AutoMasksConfig):
        return settings
    masks = ReusedMasksConfig() if Output(settings.input).exists() else SegmentsConfig()
    return settings.model_copy(update={"masks": masks})
