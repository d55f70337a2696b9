"""Building what settings name. Called where the work is done: weights load once an actor."""

from ureca.curation.curator import Curator
from ureca.curation.embedders import DescriptorEmbedder, Dinov2Embedder
from ureca.curation.listener import Listener, ListeningSettings, PromptedListener
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.protocols import Annotator, Embedder
from ureca.curation.rule_based.captioner import Describer, DescribingListener
from ureca.errors import SettingsError
from ureca.evaluation.encoders import COLOUR_WORDS, ColourWords, DualEncoder, DualEncoderSettings, ImageTextEncoder
from ureca.llm.fake import StandInChatModel
from ureca.llm.openai import OpenAIChatModel
from ureca.llm.protocol import ChatModel
from ureca.llm.settings import ByOpenAI, ByRayServe, ByTransformers, ByVllm, Mllm
from ureca.llm.transformers import TransformersChatModel
from ureca.llm.vllm import VllmChatModel
from ureca.masks.generators.base import AnnotationProposer, Proposer
from ureca.masks.generators.prompted_sam import PromptedSam
from ureca.masks.generators.sam import SamProposer
from ureca.masks.generators.segments import SegmentsProposer
from ureca.masks.generators.settings import FromAnnotations, FromPrompts, FromSam, FromSegments
from ureca.pipelines.ablation_settings import AblationSettings
from ureca.pipelines.curate_settings import (
    ByDescriptor,
    CurateSettings,
    Describing,
    Listening,
    ListeningByMeasuring,
    ListeningByWitness,
    NoListener,
    NoVerification,
    Prompting,
    Witnessing,
)
from ureca.scenes.oracle import Witness


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


def build_curator(settings: CurateSettings, model: ChatModel | None = None) -> Curator:
    """Build the annotator, the embedder, the listener and the verifier.

    Args:
        settings: of the verb.
        model: that is asked; None: the one that ``mllm`` names.

    Raises:
        SettingsError: a checkpoint, a package or the MLLM's key is missing.
    """
    verification, listener = settings.verification, settings.listener
    # One for all: weights are loaded once, and an endpoint's limit is its own, whoever asks.
    model = model or build_chat_model(settings.mllm)
    return Curator(
        annotator=_annotator(settings.annotator, model),
        embedder=build_embedder(settings),
        tree=settings.tree,
        views=settings.views,
        uniqueness=settings.uniqueness,
        verifier=None if isinstance(verification, NoVerification) else _annotator(verification, model),
        listener=_listener(listener, model),
        stages=settings.stages,
        listening=ListeningSettings() if isinstance(listener, NoListener) else listener,
    )


def _annotator(kind: Describing | Prompting | Witnessing, model: ChatModel) -> Annotator:
    match kind:
        case Prompting():
            return PromptedAnnotator(model, kind)
        case Witnessing():
            return Witness(kind)
    return Describer()


def build_chat_model(mllm: Mllm) -> ChatModel:
    """Build the model that ``mllm`` names; what runs in this process is loaded.

    Raises:
        SettingsError: a checkpoint, a package or the key is missing; or the model is behind an application that
            only a pipeline can start.
    """
    match mllm:
        case ByOpenAI():
            return OpenAIChatModel(mllm)
        case ByTransformers():
            return TransformersChatModel(mllm)
        case ByVllm():
            return VllmChatModel(mllm)
        case ByRayServe():
            raise SettingsError("mllm.kind ray_serve: the application has not been started")
    return StandInChatModel(mllm)


def build_embedder(settings: CurateSettings) -> Embedder:
    """Build what tells look-alikes.

    Raises:
        SettingsError: a checkpoint or a package is missing.
    """
    if isinstance(settings.embedder, ByDescriptor):
        return DescriptorEmbedder()
    return Dinov2Embedder(settings.embedder)


def build_judge(settings: AblationSettings) -> Listener | None:
    """Build who listens to the captions of all variants.

    Raises:
        SettingsError: a checkpoint, a package or the MLLM's key is missing.
    """
    return _listener(settings.judge, build_chat_model(settings.mllm))


def build_encoder(settings: DualEncoderSettings | None) -> ImageTextEncoder | None:
    """Load an image-text encoder, if one is named.

    Raises:
        SettingsError: its checkpoint or a package is missing.
    """
    if settings is None:
        return None
    return ColourWords() if settings.checkpoint == COLOUR_WORDS else DualEncoder(settings)


def _listener(
    kind: NoListener | Listening | ListeningByMeasuring | ListeningByWitness, model: ChatModel
) -> Listener | None:
    match kind:
        case NoListener():
            return None
        case ListeningByMeasuring():
            return DescribingListener()
        case ListeningByWitness():
            return Witness(kind)
    return PromptedListener(model, kind)
