"""Captioning as a Ray Data graph: stored manifest -> masks -> captions, written unit by unit."""

from functools import partial
from pathlib import Path

from ray.data import Dataset

from pipelines.actors import ProposeActor, ProposeStage, WritingActor
from pipelines.blocks import TablesToTables, pending_rows
from pipelines.pools import plan_pools
from pipelines.session import Cluster
from ureca.captioning.adopt import adopt
from ureca.captioning.checkpoint import fingerprint
from ureca.captioning.stage import CaptionStage
from ureca.curation.stages import propose
from ureca.errors import SettingsError
from ureca.schema import CAPTIONS_DATASET
from ureca.settings.caption import Automatic, CaptioningSettings
from ureca.settings.components import build_proposer
from ureca.settings.proposals import FromRegions


class CaptionActor(WritingActor[CaptioningSettings]):
    """Holds a captioner."""

    dataset = CAPTIONS_DATASET

    def build(self, settings: CaptioningSettings) -> CaptionStage:
        """Load the checkpoint, on a GPU if the actor has one."""
        from ureca.model.captioner import RegionCaptioner

        resources = settings.resources.caption
        device = "cuda" if resources.num_gpus > 0 else "cpu"
        captioner = RegionCaptioner.from_pretrained(settings.model, device=device, dtype=settings.dtype)
        name = f"{Path(settings.model).name} {fingerprint(settings.model)}"
        return CaptionStage(captioner, name, settings.captioner, settings.image_limits, resources.images_in_flight)


def build_propose_stage(settings: CaptioningSettings) -> ProposeStage:
    """Build what makes the masks."""
    proposals = settings.proposals
    if isinstance(proposals, Automatic):
        raise SettingsError("proposals.kind auto stands for another, which is chosen when the input is known")
    if isinstance(proposals, FromRegions):
        return adopt
    return partial(propose, proposer=build_proposer(proposals), limits=settings.image_limits)


def graph(
    pieces: Dataset, keep: TablesToTables, settings: CaptioningSettings, num_units: int, cluster: Cluster
) -> Dataset:
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
    propose_pool, caption_pool = plan_pools(resources, num_units, cluster)
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
    return proposed.map_batches(
        CaptionActor,
        fn_constructor_args=(settings,),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.caption.num_cpus,
        num_gpus=resources.caption.num_gpus,
        compute=caption_pool,
    )
