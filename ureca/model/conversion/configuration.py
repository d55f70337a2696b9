"""The authors' config.json, read and checked, and the configuration that it becomes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from ureca.model.checkpoints import CheckpointError
from ureca.model.configuration import UrecaConfig

LANGUAGE_MODELS = ("Qwen2ForCausalLM", "InternLM2ForCausalLM")

SHARED_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Fields of the language model's configuration that mean the same in both layouts."""


@dataclass(frozen=True)
class ReleasedConfig:
    """What the conversion needs from the authors' config.json.

    Args:
        content: the whole file.
        max_tiles: the most tiles of an image.
        dynamic_mask: masks are cut into the image's grid.
        lora_ranks: rank of the LoRA of ``language_model`` and of ``vision_model``; 0 where there is none.
    """

    content: dict[str, Any]
    max_tiles: int
    dynamic_mask: bool
    lora_ranks: dict[str, int]

    def to_ureca(self, *, image_token_id: int, mask_token_id: int) -> UrecaConfig:
        """The same model as a configuration of ours."""
        vision, language = self.content["vision_config"], self.content["llm_config"]
        side = self.content.get("force_image_size") or vision["image_size"]
        tokens = (side // vision["patch_size"] * self.content["downsample_ratio"]) ** 2
        return UrecaConfig(
            vision_config=_vision_config(vision, side),
            text_config=_text_config(language),
            image_token_id=image_token_id,
            image_seq_length=int(tokens),
            downsample_ratio=self.content["downsample_ratio"],
            vision_feature_layer=self.content.get("select_layer", -1),
            tie_word_embeddings=bool(language.get("tie_word_embeddings", False)),
            mask_token_id=mask_token_id,
            num_mask_tokens=self.content["num_mask_token"],
        )


def read_released_config(directory: Path) -> ReleasedConfig:
    """Read config.json and check that it describes a model that can be converted.

    Raises:
        CheckpointError: if it cannot be read, is of another layout or describes what is not supported.
    """
    path = directory / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    needed = ("vision_config", "llm_config", "num_mask_token", "downsample_ratio")
    if missing := [name for name in needed if name not in content]:
        raise CheckpointError(f"{path} is not in the authors' layout: it has no {', '.join(missing)}")
    architecture = (content["llm_config"].get("architectures") or [None])[0]
    if architecture not in LANGUAGE_MODELS:
        raise CheckpointError(
            f"{path}: the language model is {architecture}; only {' and '.join(LANGUAGE_MODELS)} can be converted"
        )
    if content.get("ps_version", "v1") != "v2":
        raise CheckpointError(
            f"{path}: ps_version is {content.get('ps_version')}; transformers has the pixel shuffle of v2 only"
        )
    return ReleasedConfig(
        content,
        max_tiles=content.get("max_dynamic_patch", 6) if content.get("dynamic_image_size", True) else 1,
        dynamic_mask=content.get("dynamic_mask_size", True),
        lora_ranks={
            "language_model": content.get("use_llm_lora", 0),
            "vision_model": content.get("use_backbone_lora", 0),
        },
    )


def _vision_config(released: dict[str, Any], image_size: int) -> InternVLVisionConfig:
    return InternVLVisionConfig(
        hidden_size=released["hidden_size"],
        num_hidden_layers=released["num_hidden_layers"],
        num_attention_heads=released["num_attention_heads"],
        intermediate_size=released["intermediate_size"],
        hidden_act=released.get("hidden_act", "gelu"),
        layer_norm_eps=released.get("layer_norm_eps", 1e-6),
        norm_type=released.get("norm_type", "layer_norm"),
        attention_bias=released["qkv_bias"],
        use_qk_norm=released["qk_normalization"],
        image_size=image_size,
        patch_size=released["patch_size"],
        num_channels=released.get("num_channels", 3),
    )


def _text_config(released: dict[str, Any]) -> PreTrainedConfig:
    fields = {name: released[name] for name in SHARED_SIZES if name in released}
    fields["tie_word_embeddings"] = bool(released.get("tie_word_embeddings", False))
    fields["rope_parameters"] = _rope_parameters(released)
    if released["architectures"][0] == "Qwen2ForCausalLM":
        return Qwen2Config(**fields)
    return LlamaConfig(**fields, attention_bias=released.get("bias", False))


def _rope_parameters(released: dict[str, Any]) -> dict[str, Any]:
    scaling = dict(released.get("rope_scaling") or {"type": "default"})
    rope_type = scaling.pop("type", None) or scaling.pop("rope_type")
    return {"rope_type": rope_type, "rope_theta": released.get("rope_theta", 10000.0), **scaling}
