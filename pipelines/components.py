"""Building what settings name. Called where the work is done: weights load once an actor."""

from ureca.curation.curator import Curator
from ureca.curation.embedders import DescriptorEmbedder, Dinov2Embedder
from ureca.curation.listener import Listener, ListeningSettings, PromptedListener
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.protocols import Annotator, Embedder
from ureca.curation.rule_based.captioner import RuleBasedCaptioner, RuleBasedListener
from ureca.errors import SettingsError
from ureca.evaluation.encoders import COLOUR_WORDS, ColourWords, DualEncoder, DualEncoderSettings, ImageTextEncoder
from ureca.llm.fake import FakeChatModel
from ureca.llm.openai import OpenAIChatModel
from ureca.llm.protocol import ChatModel
from ureca.llm.settings import Mllm, OpenAIConfig, RayServeConfig, TransformersConfig, VllmConfig
from ureca.llm.transformers import TransformersChatModel
from ureca.llm.vllm import VllmChatModel
from ureca.masks.generators.base import AnnotationMaskGenerator, MaskGenerator
from ureca.masks.generators.prompted_sam import PromptedSam
from ureca.masks.generators.sam import SamMaskGenerator
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.generators.settings import AnnotationsConfig, PromptedSamConfig, SamConfig, SegmentsConfig
from ureca.pipelines.ablation_settings import AblationSettings
from ureca.pipelines.curate_settings import (
    CurateSettings,
    DescriptorConfig,
    NoListenerConfig,
    NoVerificationConfig,
    OracleConfig,
    OracleListenerConfig,
    PromptedConfig,
    PromptedListenerConfig,
    RuleBasedConfig,
    RuleBasedListenerConfig,
)
from ureca.scenes.oracle import Oracle


def build_mask_generator(masks: SegmentsConfig | SamConfig | AnnotationsConfig | PromptedSamConfig) -> MaskGenerator:
    """Build what proposes masks.

    Raises:
        SettingsError: its checkpoint or a package is missing.
    """
    if isinstance(masks, AnnotationsConfig):
        return AnnotationMaskGenerator()
    if isinstance(masks, SegmentsConfig):
        return SegmentsMaskGenerator(masks)
    if isinstance(masks, PromptedSamConfig):
        return PromptedSam(masks)
    return SamMaskGenerator(masks)


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
        verifier=None if isinstance(verification, NoVerificationConfig) else _annotator(verification, model),
        listener=_listener(listener, model),
        stages=settings.stages,
        listening=ListeningSettings() if isinstance(listener, NoListenerConfig) else listener,
    )


def _annotator(kind: RuleBasedConfig | PromptedConfig | OracleConfig, model: ChatModel) -> Annotator:
    match kind:
        case PromptedConfig():
            return PromptedAnnotator(model, kind)
        case OracleConfig():
            return Oracle(kind)
    return RuleBasedCaptioner()


def build_chat_model(mllm: Mllm) -> ChatModel:
    """Build the model that ``mllm`` names; what runs in this process is loaded.

    Raises:
        SettingsError: a checkpoint, a package or the key is missing; or the model is behind an application that
            only a pipeline can start.
    """
    match mllm:
        case OpenAIConfig():
            return OpenAIChatModel(mllm)
        case TransformersConfig():
            return TransformersChatModel(mllm)
        case VllmConfig():
            return VllmChatModel(mllm)
        case RayServeConfig():
            raise SettingsError("mllm.kind ray_serve: the application has not been started")
    return FakeChatModel(mllm)


def build_embedder(settings: CurateSettings) -> Embedder:
    """Build what tells look-alikes.

    Raises:
        SettingsError: a checkpoint or a package is missing.
    """
    if isinstance(settings.embedder, DescriptorConfig):
        return DescriptorEmbedder()
    return Dinov2Embedder(settings.embedder)


def build_scoring_listener(settings: AblationSettings) -> Listener | None:
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
    kind: NoListenerConfig | PromptedListenerConfig | RuleBasedListenerConfig | OracleListenerConfig, model: ChatModel
) -> Listener | None:
    match kind:
        case NoListenerConfig():
            return None
        case RuleBasedListenerConfig():
            return RuleBasedListener()
        case OracleListenerConfig():
            return Oracle(kind)
    return PromptedListener(model, kind)
