"""URECA in vLLM: a plugin (entry point ``vllm.general_plugins``) that makes vLLM load URECA checkpoints.

Masks are a modality of their own beside images: a prompt of `ureca.model.processing` has one ``<IMG_CONTEXT>`` for an
image and one ``<MASK_CONTEXT>`` for a mask, with ``multi_modal_data`` of ``{"image": image, "mask": mask}``. The
regions of an image share the beginning of their prompts, so that vLLM's prefix cache computes an image once.

Only `register` is imported with this package; vLLM imports the rest where it needs it. vLLM pins a version of
transformers that ``ureca.model.modeling`` cannot run on: the modules here, and those that they import (configuration,
hybrid_vision, image_processing, mask_encoder, pooled_mask_encoder, processing, prompt), run on both.
"""

ARCHITECTURE = "UrecaForConditionalGeneration"


def register() -> None:
    """Register configuration, processor and model; vLLM calls it in each of its processes, possibly repeatedly."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor
    from vllm import ModelRegistry

    from ureca.model.configuration import UrecaConfig
    from ureca.model.image_processing import UrecaImageProcessor
    from ureca.model.processing import UrecaProcessor

    AutoConfig.register(UrecaConfig.model_type, UrecaConfig, exist_ok=True)
    AutoImageProcessor.register(
        UrecaConfig, image_processor_classes={"torchvision": UrecaImageProcessor}, exist_ok=True
    )
    AutoProcessor.register(UrecaConfig, UrecaProcessor, exist_ok=True)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # By name, so that this process need not import the model: vLLM inspects the class in a subprocess.
        ModelRegistry.register_model(ARCHITECTURE, "ureca.model.vllm.modeling:UrecaForVllm")
