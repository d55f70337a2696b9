"""Checkpoints of SAM 2, SAM 3 and HQ-SAM in transformers' format: the real classes, tiny, with random weights."""

from pathlib import Path
from typing import Any

import torch

SIDE_PX = 64
_CHANNELS = 16
_PROMPTS = {"hidden_size": _CHANNELS, "image_size": SIDE_PX, "patch_size": 16, "mask_input_channels": 4}
_DECODER = {
    "hidden_size": _CHANNELS,
    "mlp_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
    "iou_head_depth": 2,
}


def save_sam2(folder: Path) -> str:
    """Write a SAM 2 checkpoint, and return its folder."""
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model
    from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE_PX, SIDE_PX],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=_CHANNELS,
    )
    size = {"height": SIDE_PX, "width": SIDE_PX}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=_DECODER)
    return _save(Sam2Model(config), Sam2ImageProcessor(size=size), folder)


def save_sam3_tracker(folder: Path) -> str:
    """Write a checkpoint of SAM 3 that is prompted with points, and return its folder."""
    from transformers import Sam3ImageProcessor, Sam3TrackerConfig, Sam3TrackerModel

    vision = _sam3_vision(backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]])
    size = {"height": SIDE_PX, "width": SIDE_PX}
    config = Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=_DECODER)
    return _save(Sam3TrackerModel(config), Sam3ImageProcessor(size=size), folder)


def save_sam3(folder: Path) -> str:
    """Write a checkpoint of SAM 3 that is prompted with text, and return its folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

    layers = {"hidden_size": _CHANNELS, "num_attention_heads": 2, "intermediate_size": 32}
    config = Sam3Config(
        vision_config=_sam3_vision(),
        text_config={
            **layers,
            "model_type": "clip_text_model",
            "vocab_size": 16,
            "num_hidden_layers": 1,
            "max_position_embeddings": 32,
            "projection_dim": 8,
            "eos_token_id": 1,
            "bos_token_id": 0,
            "pad_token_id": 2,
        },
        geometry_encoder_config={**layers, "num_layers": 1},
        detr_encoder_config={**layers, "num_layers": 1},
        detr_decoder_config={**layers, "num_layers": 1, "num_queries": 6},
        mask_decoder_config={"hidden_size": _CHANNELS, "num_attention_heads": 2},
    )
    words = {word: id for id, word in enumerate(["<s>", "</s>", "<pad>", "<unk>", "red", "car", "wheel", "tree"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    processor = Sam3Processor(image_processor=Sam3ImageProcessor(size=size), tokenizer=fast)
    return _save(Sam3Model(config), processor, folder)


def save_sam_hq(folder: Path) -> str:
    """Write a checkpoint of HQ-SAM, and return its folder."""
    from transformers import SamHQConfig, SamHQModel, SamImageProcessor

    config = SamHQConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": _CHANNELS,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE_PX,
            "patch_size": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
            "num_pos_feats": _CHANNELS // 2,
            "mlp_dim": 32,
            "initializer_range": 0.02,
        },
        prompt_encoder_config={**_PROMPTS, "image_embedding_size": SIDE_PX // 16},
        mask_decoder_config={**_DECODER, "vit_dim": 16},
    )
    processor = SamImageProcessor(
        size={"longest_edge": SIDE_PX},
        pad_size={"height": SIDE_PX, "width": SIDE_PX},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    return _save(SamHQModel(config), processor, folder)


def _sam3_vision(**arguments: Any) -> Any:
    from transformers.models.sam3.configuration_sam3 import Sam3VisionConfig, Sam3ViTConfig

    backbone = Sam3ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE_PX,
        patch_size=16,
        window_size=2,
        global_attn_indexes=[1],
        pretrain_image_size=32,
    )
    return Sam3VisionConfig(backbone_config=backbone, fpn_hidden_size=_CHANNELS, **arguments)


def _save(model: Any, processor: Any, folder: Path) -> str:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # what is initialized to nearly nothing predicts nothing
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
