"""Random encoders of two narrow layers, of the families that judge captions."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

WORDS = ["a", "red", "blue", "car", "house"]


def save_bert(folder: Path) -> str:
    """A BERT for BERTScore; returns its folder."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "of", "the", "."]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    configuration = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.5,
    )
    BertModel(configuration).save_pretrained(folder)
    return str(folder)


def save_dual_encoder(folder: Path, family: str = "clip") -> str:
    """A CLIP or a SigLIP; returns its folder."""
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 7, "max_position_embeddings": 12, "eos_token_id": 1, "projection_size": 16} | layers
    vision = {"image_size": 28, "patch_size": 14} | layers
    if family == "clip":
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
        images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        CLIPProcessor(images, _tokenizer()).save_pretrained(folder)
    else:
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        images = SiglipImageProcessor(size={"height": 28, "width": 28})
        SiglipProcessor(images, _tokenizer()).save_pretrained(folder)
    return str(folder)


def _tokenizer() -> Any:
    words = {word: id for id, word in enumerate(["<pad>", "<end>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"pad_token": "<pad>", "eos_token": "<end>"})
