"""Captioning as a Ray Data graph: stored manifest -> masks -> captions, written unit by unit."""

from dataclasses import replace
from functools import partial
from typing import Any

from ray.data import Dataset

from pipelines.actors import ProposeActor, WritingActor
from pipelines.blocks import TablesToTables, pending_rows
from pipelines.pools import Work, images_in_flight, plan_pools
from pipelines.session import Cluster
from ureca.captioning.adopt import adopt
from ureca.captioning.checkpoint import identify
from ureca.captioning.stage import CaptionStage, ImageWriter
from ureca.curation.quarantine import ProposeStage
from ureca.curation.stages import propose
from ureca.dataset.attempts import Attempts
from ureca.errors import SettingsError
from ureca.mllm.transformers.engine import TransformersChatModel
from ureca.mllm.transformers.settings import TransformersSettings
from ureca.schema import CAPTIONS_DATASET
from ureca.settings.caption import Automatic, CaptioningSettings
from ureca.settings.components import build_proposer
from ureca.settings.proposals import FromRegions, images_per_piece


class CaptionActor(WritingActor[CaptioningSettings]):
    """Holds a captioner."""

    name = "caption"
    dataset = CAPTIONS_DATASET

    def build(
        self, settings: CaptioningSettings, images_in_flight: int, attempts: Attempts, recipe: str | None
    ) -> CaptionStage[Any]:
        """Load the checkpoint, on a GPU if the actor has one."""
        return build_caption_stage(settings, images_in_flight, attempts, recipe)


def build_caption_stage(
    settings: CaptioningSettings,
    images_in_flight: int,
    attempts: Attempts | None = None,
    recipe: str | None = None,
) -> CaptionStage[Any]:
    """Load the checkpoint, on a GPU where ``resources`` say so."""
    checkpoint = identify(settings.model)
    name = checkpoint.name if settings.region_prompt is None else f"{checkpoint.name} {settings.region_prompt}"
    writer = _captioner(settings) if checkpoint.kind == "ureca" else _chat_writer(settings)
    return CaptionStage(writer, name, settings.image_limits, images_in_flight, attempts=attempts, recipe=recipe)


def _captioner(settings: CaptioningSettings) -> ImageWriter[Any]:
    from ureca.captioning.batching import Batcher
    from ureca.model.captioner import RegionCaptioner

    device = "cuda" if settings.resources.caption.num_gpus > 0 else "cpu"
    captioner = RegionCaptioner.from_pretrained(settings.model, device=device, dtype=settings.dtype)
    if settings.region_prompt is not None:
        captioner.processor.region_prompt = settings.region_prompt
    return Batcher(captioner, settings.captioner)


def _chat_writer(settings: CaptioningSettings) -> ImageWriter[Any]:
    from ureca.captioning.chat import ChatWriter

    model = TransformersChatModel(
        TransformersSettings(
            checkpoint=settings.model,
            device="auto" if settings.resources.caption.num_gpus > 0 else "cpu",
            dtype=settings.dtype,
            max_batch_size=settings.captioner.batch_size,
            image_options=settings.image_options,
        )
    )
    assert settings.region_prompt is not None  # noqa: S101 - refused before anything ran
    return ChatWriter(model, settings.region_prompt, settings.captioner)


def build_propose_stage(settings: CaptioningSettings) -> ProposeStage:
    """Build what makes the masks."""
    proposals = settings.proposals
    if isinstance(proposals, Automatic):
        raise SettingsError("proposals.kind auto stands for another, which is chosen when the input is known")
    if isinstance(proposals, FromRegions):
        return adopt
    return partial(propose, proposer=build_proposer(proposals), limits=settings.image_limits)


def graph(
    pieces: Dataset,
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
    propose_pool, _ = plan_pools(resources, work, cluster)
    per_piece = images_per_piece(settings.proposals, resources.propose, propose_pool.initial_size or 1)
    _, caption_pool = plan_pools(resources, replace(work, images_per_piece=per_piece), cluster)
    images = images_in_flight(resources.caption, caption_pool.initial_size or 1, None)
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
    return proposed.map_batches(
        CaptionActor,
        fn_constructor_args=(settings, images, work.session),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.caption.num_cpus,
        num_gpus=resources.caption.num_gpus,
        compute=caption_pool,
    )
