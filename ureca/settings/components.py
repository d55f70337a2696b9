"""Building what settings name. Called where the work is done: weights load once an actor."""

from ureca.curation.annotator import Annotator
from ureca.curation.curate import Curator
from ureca.curation.describer import Describer
from ureca.curation.embedder import Embedder
from ureca.curation.embedders.descriptor import DescriptorEmbedder
from ureca.curation.embedders.dinov2 import Dinov2Embedder
from ureca.curation.prompted import PromptedAnnotator
from ureca.mllm.openai.engine import OpenAIChatModel
from ureca.mllm.protocol import ChatModel
from ureca.mllm.standin import StandInChatModel
from ureca.proposals.annotations import AnnotationProposer
from ureca.proposals.prompted_sam import PromptedSam
from ureca.proposals.protocol import Proposer
from ureca.proposals.sam import SamProposer
from ureca.proposals.segments import SegmentsProposer
from ureca.settings.curate import (
    ByDescriptor,
    ByOpenAI,
    CurateSettings,
    Describing,
    NoVerification,
    Prompting,
)
from ureca.settings.proposals import FromAnnotations, FromPrompts, FromSam, FromSegments


def build_proposer(proposals: FromSegments | FromSam | FromAnnotations | FromPrompts) -> Proposer:
    """Build what proposes masks.

    Raises:
        SettingsError: its checkpoint or a package is missing.
    """
    if isinstance(proposals, FromAnnotations):
        return AnnotationProposer()
    if isinstance(proposals, FromSegments):
        return SegmentsProposer(proposals)
    if isinstance(proposals, FromPrompts):
        return PromptedSam(proposals)
    return SamProposer(proposals)


def build_curator(settings: CurateSettings) -> Curator:
    """Build the annotator, the embedder and the verifier.

    Raises:
        SettingsError: a checkpoint, a package or the MLLM's key is missing.
    """
    verification = settings.verification
    # One for both: an endpoint's limit is its own, whoever asks.
    model = _chat_model(settings)
    return Curator(
        annotator=_annotator(settings.annotator, model),
        embedder=_embedder(settings),
        tree=settings.tree,
        views=settings.views,
        uniqueness=settings.uniqueness,
        verifier=None if isinstance(verification, NoVerification) else _annotator(verification, model),
    )


def _annotator(kind: Describing | Prompting, model: ChatModel) -> Annotator:
    if isinstance(kind, Prompting):
        return PromptedAnnotator(model, kind)
    return Describer()


def _chat_model(settings: CurateSettings) -> ChatModel:
    if isinstance(settings.mllm, ByOpenAI):
        return OpenAIChatModel(settings.mllm)
    return StandInChatModel(settings.mllm)


def _embedder(settings: CurateSettings) -> Embedder:
    if isinstance(settings.embedder, ByDescriptor):
        return DescriptorEmbedder()
    return Dinov2Embedder(settings.embedder)
