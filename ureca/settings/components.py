"""Building what the settings of ``curate`` name. Called where the work is done: weights load once an actor."""

from ureca.curation.annotator import Annotator
from ureca.curation.curate import Curator
from ureca.curation.describer import Describer
from ureca.curation.embedder import Embedder
from ureca.curation.embedders.descriptor import DescriptorEmbedder
from ureca.curation.embedders.dinov2 import Dinov2Embedder
from ureca.curation.prompted import PromptedAnnotator
from ureca.mllm.standin import StandInChatModel
from ureca.proposals.annotations import AnnotationProposer
from ureca.proposals.protocol import Proposer
from ureca.proposals.sam import SamProposer
from ureca.proposals.segments import SegmentsProposer
from ureca.settings.curate import (
    ByDescriptor,
    CurateSettings,
    Describing,
    FromAnnotations,
    FromSegments,
    NoVerification,
    Prompting,
)


def build_proposer(settings: CurateSettings) -> Proposer:
    """Build the proposer of ``proposals``.

    Raises:
        SettingsError: its checkpoint or a package is missing.
    """
    proposals = settings.proposals
    if isinstance(proposals, FromAnnotations):
        return AnnotationProposer()
    if isinstance(proposals, FromSegments):
        return SegmentsProposer(proposals)
    return SamProposer(proposals)


def build_curator(settings: CurateSettings) -> Curator:
    """Build the annotator, the embedder and the verifier.

    Raises:
        SettingsError: a checkpoint or a package is missing.
    """
    verification = settings.verification
    return Curator(
        annotator=_annotator(settings.annotator, settings),
        embedder=_embedder(settings),
        tree=settings.tree,
        views=settings.views,
        uniqueness=settings.uniqueness,
        verifier=None if isinstance(verification, NoVerification) else _annotator(verification, settings),
    )


def _annotator(kind: Describing | Prompting, settings: CurateSettings) -> Annotator:
    if isinstance(kind, Prompting):
        return PromptedAnnotator(StandInChatModel(settings.mllm), kind)
    return Describer()


def _embedder(settings: CurateSettings) -> Embedder:
    if isinstance(settings.embedder, ByDescriptor):
        return DescriptorEmbedder()
    return Dinov2Embedder(settings.embedder)
