"""Configuration of URECA: InternVL's with a mask encoder."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.internvl.configuration_internvl import InternVLConfig

from .hybrid_vision import HybridVisionConfig

AutoConfig.register(HybridVisionConfig.model_type, HybridVisionConfig, exist_ok=True)

# None in older versions of transformers, such as that of vLLM 0.32, which build sub-configurations in `__post_init__`.
_DEFAULTS = getattr(InternVLConfig, "sub_configs_defaults", None)
MASK_ENCODERS = ("convolutional", "fused", "pooled")


@strict
class UrecaConfig(InternVLConfig):
    """InternVL's configuration with a mask encoder (URECA, section 4).

    Args:
        mask_token_id: id of the token whose embeddings are replaced by mask features (``<MASK_CONTEXT>``).
        num_mask_tokens: number T of tokens of a mask tile, 1 to 32. The paper finds 16 best; the released model has 8.
        mask_encoder: "convolutional" encodes a mask tile alone, as in the paper; "fused" encodes it together with the
            projected features and the pixels of the image tile (the paper's code has such a variant, architecture 2);
            "pooled" pools the maps of a hybrid vision encoder under the mask, and counts look-alikes.
        pooled_width: hidden width of the pooled mask encoder.
        thing_groups: for the pooled mask encoder, numbers of kinds of things and of values of further properties;
            look-alikes are counted among things of the same kind and property.
        vision_config: config of InternViT by default, or of another vision encoder that AutoConfig knows, such
            as ``ureca.model.hybrid_vision``.
    """

    model_type = "ureca"
    # InternVL reads every vision configuration as InternViT's, whatever its type, unless the type may differ.
    if _DEFAULTS is None:
        sub_configs: ClassVar = {"text_config": AutoConfig, "vision_config": AutoConfig}
    else:
        sub_configs_defaults: ClassVar = {
            **_DEFAULTS,
            "vision_config": type(_DEFAULTS["text_config"])(config_class=AutoConfig, model_type="internvl_vision"),
        }

    mask_token_id: int = 151668
    num_mask_tokens: int = 16
    mask_encoder: str = "convolutional"
    pooled_width: int = 256
    thing_groups: tuple[int, ...] | list[int] = (16, 4, 16)

    def __post_init__(self, **kwargs: object) -> None:
        vision: Any = getattr(self, "vision_config", None)
        if _DEFAULTS is None and isinstance(vision, dict):
            self.vision_config = CONFIG_MAPPING[vision.get("model_type", "internvl_vision")](**vision)
        super().__post_init__(**kwargs)
        if not 1 <= self.num_mask_tokens <= 32:
            raise ValueError(f"num_mask_tokens must be 1 to 32, got {self.num_mask_tokens}")
        if self.mask_encoder not in MASK_ENCODERS:
            raise ValueError(f"mask_encoder must be one of {', '.join(MASK_ENCODERS)}, got {self.mask_encoder!r}")
        if self.mask_encoder == "pooled" and not isinstance(self.vision_config, HybridVisionConfig):
            raise ValueError("mask_encoder 'pooled' needs a hybrid vision encoder, whose maps it pools")

    @property
    def masks_need_images(self) -> bool:
        """True if the mask encoder sees the image tile that a mask tile covers."""
        return self.mask_encoder != "convolutional"

    @property
    def tile_size_px(self) -> int:
        """Side of an image or mask tile in pixels."""
        return int(self.vision_config.image_size[0])
