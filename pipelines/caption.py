"""``caption`` as a batch verb.

[from] Captioning as a Ray Data graph: stored manifest -> masks -> captions, written unit by unit."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from ureca.captioning.stage import CaptionStage, ImageCaptioner
from ureca.data.crash_log import CrashLog
from ureca.data.listing import list_images
from ureca.data.masked import MaskStage, generate_masks
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.reuse import ReusedMasksConfig, list_run, reuse_masks
from ureca.errors import InputError, SettingsError
from ureca.io import locate
from ureca.llm.transformers import TransformersChatModel, TransformersConfig
from ureca.masks.generators.base import MaskGenerator
from ureca.masks.generators.segments import SegmentsConfig
from ureca.model.checkpoint_files import Checkpoint, identify
from ureca.pipelines.batch.actors import MaskActor, WritingActor
from ureca.pipelines.batch.arrow import TablesToTables, pending_rows
from ureca.pipelines.batch.dry_run import DryRun, estimate
from ureca.pipelines.batch.progress import Progress
from ureca.pipelines.batch.resources import Work, images_in_flight, plan_pools
from ureca.pipelines.batch.runner import BatchCommand, run_batch
from ureca.pipelines.batch.session import Cluster
from ureca.pipelines.caption_settings import AutoMasksConfig, CaptioningSettings
from ureca.pipelines.settings import images_per_chunk
from ureca.registry import build_component
from ureca.schema import CAPTIONS_DATASET


class CaptionActor(WritingActor[CaptioningSettings]):
    """Holds a captioner."""

    name = "caption"
    dataset = CAPTIONS_DATASET

    def build(
        self, settings: CaptioningSettings, images_in_flight: int, crash_log: CrashLog, config_hash: str | None
    ) -> CaptionStage[Any]:
        """Load the checkpoint, on a GPU if the actor has one."""
        return build_caption_stage(settings, images_in_flight, crash_log, config_hash)


def build_caption_stage(
    settings: CaptioningSettings,
    images_in_flight: int,
    crash_log: CrashLog | None = None,
    config_hash: str | None = None,
) -> CaptionStage[Any]:
    """Load the checkpoint, on a GPU where ``resources`` say so."""
    checkpoint = identify(settings.model)
    name = checkpoint.name if settings.region_prompt is None else f"{checkpoint.name} {settings.region_prompt}"
    captioner = _ureca_captioner(settings) if checkpoint.kind == "ureca" else _chat_captioner(settings)
    return CaptionStage(
        captioner, name, settings.image_limits, images_in_flight, crash_log=crash_log, config_hash=config_hash
    )


def _ureca_captioner(settings: CaptioningSettings) -> ImageCaptioner[Any]:
    from ureca.captioning.captioners import UrecaCaptioner
    from ureca.model.captioner import RegionCaptioner

    device = "cuda" if settings.resources.caption.num_gpus > 0 else "cpu"
    captioner = RegionCaptioner.from_pretrained(settings.model, device=device, dtype=settings.dtype)
    if settings.region_prompt is not None:
        captioner.processor.region_prompt = settings.region_prompt
    return UrecaCaptioner(captioner, settings.captioner)


def _chat_captioner(settings: CaptioningSettings) -> ImageCaptioner[Any]:
    from ureca.captioning.captioners import ChatCaptioner

    model = TransformersChatModel(
        TransformersConfig(
            checkpoint=settings.model,
            device="auto" if settings.resources.caption.num_gpus > 0 else "cpu",
            dtype=settings.dtype,
            max_batch_size=settings.captioner.batch_size,
            image_options=settings.image_options,
        )
    )
    assert settings.region_prompt is not None  # noqa: S101 - refused before anything ran
    return ChatCaptioner(model, settings.region_prompt, settings.captioner)


def build_mask_stage(settings: CaptioningSettings) -> MaskStage:
    """Build what makes the masks."""
    masks = settings.masks
    if isinstance(masks, AutoMasksConfig):
        raise SettingsError("masks.kind auto stands for another, which is chosen when the input is known")
    if isinstance(masks, ReusedMasksConfig):
        return reuse_masks
    mask_generator: MaskGenerator = build_component("mask_generator", masks)
    return partial(generate_masks, mask_generator=mask_generator, limits=settings.image_limits)


def graph(
    chunks: Dataset,
    keep: TablesToTables,
    settings: CaptioningSettings,
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
    mask_pool, _ = plan_pools(resources, work, cluster)
    per_chunk = images_per_chunk(settings.masks, resources.masks, mask_pool.initial_size or 1)
    _, caption_pool = plan_pools(resources, replace(work, images_per_chunk=per_chunk), cluster)
    images = images_in_flight(resources.caption, caption_pool.initial_size or 1, None)
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
    return masked.map_batches(
        CaptionActor,
        fn_constructor_args=(settings, images, work.session),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.caption.num_cpus,
        num_gpus=resources.caption.num_gpus,
        compute=caption_pool,
    )


def caption(
    settings: CaptioningSettings,
    on_plan: Callable[[int, int], None],
    progress_of: Callable[[int], Progress] = Progress,
) -> PartitionReport:
    """Caption what is missing in the output, and, if asked for, again what failed; see ``run_batch``.

    Raises:
        CheckpointError: the model is not a checkpoint.
        SettingsError: it is not URECA, and how it is shown a region is not said.
    """
    identity = {"model": usable_checkpoint(settings).identity}
    return run_batch(_CAPTION, _resolved(settings), on_plan, progress_of, identity)


def plan(settings: CaptioningSettings) -> str:
    """What ``caption`` would take, as lines for people; nothing is started, and nothing written.

    The model is loaded and asked only where ``planning.ask_model`` says so.

    Raises:
        CheckpointError: the model is not a checkpoint.
        SettingsError: it is not URECA, and how it is shown a region is not said.
        InputError: there is nothing to read, or nothing to do.
    """
    usable_checkpoint(settings)
    settings = _resolved(settings)
    ask = settings.planning.ask_model
    dry_run = DryRun(
        generate=build_mask_stage(settings),
        prepare=lambda partition: partition,
        write=build_caption_stage(settings, settings.planning.images) if ask else None,
        questions={},
        asks_model=ask,
        engine=None,
    )
    return estimate(_CAPTION, settings, dry_run, "caption")


def usable_checkpoint(settings: CaptioningSettings) -> Checkpoint:
    """What the model is, if it can be told of regions as the settings say.

    Raises:
        CheckpointError: it is not a checkpoint.
        SettingsError: it cannot.
    """
    checkpoint = identify(settings.model)
    if checkpoint.kind == "ureca":
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


def _resolved(settings: CaptioningSettings) -> CaptioningSettings:
    """The settings with what ``masks.kind auto`` stands for."""
    if not isinstance(settings.masks, AutoMasksConfig):
        return settings
    masks = ReusedMasksConfig() if Output(settings.input).exists() else SegmentsConfig()
    return settings.model_copy(update={"masks": masks})


def _list_input(settings: CaptioningSettings) -> pa.Table:
    from_regions = isinstance(settings.masks, ReusedMasksConfig)
    if not Output(settings.input).exists():
        if from_regions:
            raise InputError(
                f"{settings.input} is not the output of a run, which masks.kind regions takes masks from; name the "
                "folder that has run.json"
            )
        return list_images(settings.input, **settings.listing.model_dump())
    if named := [name for name, value in settings.listing if value is not None]:
        raise InputError(
            f"{settings.input} is the output of a run, which knows its images: leave out listing.{named[0]}"
        )
    if locate(settings.input).name == locate(settings.output).name:
        raise InputError(f"{settings.input} is both the input and the output; name another folder for the captions")
    return list_run(Output.of_run(settings.input), with_regions=from_regions)


_CAPTION = BatchCommand(
    name="caption",
    dataset=CAPTIONS_DATASET,
    list_input=_list_input,
    graph=graph,
    packages=("torch", "transformers"),
)
