"""Training starts from InternVL checkpoints in transformers' layout."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, InternVLForConditionalGeneration, Qwen2Config, Qwen3Config
from transformers.models.internvl.configuration_internvl import InternVLConfig, InternVLVisionConfig

from tests.model.inputs import box_masks, generate, noise_image, region_inputs
from ureca.errors import CheckpointError
from ureca.model.checkpoints import load_checkpoint
from ureca.model.initialization import build_tokenizer, from_internvl, save_tiny

SHAPES = {
    "1B, tied": {"text": Qwen2Config, "heads": 14, "tied": True, "qk_norm": False, "norm_type": "layer_norm"},
    "8B": {"text": Qwen2Config, "heads": 4, "tied": False, "qk_norm": False, "norm_type": "layer_norm"},
    "78B, large vision encoder": {
        "text": Qwen2Config,
        "heads": 4,
        "tied": False,
        "qk_norm": True,
        "norm_type": "rms_norm",
    },
    "3.5, Qwen3": {"text": Qwen3Config, "heads": 4, "tied": False, "qk_norm": False, "norm_type": "layer_norm"},
}
"""Differences between the published sizes, at a tiny width."""


def save_internvl(directory: Path, shape: str, vocab_size: int = 512) -> InternVLForConditionalGeneration:
    """A random InternVL whose tokenizer knows image tokens but no mask tokens."""
    variant = SHAPES[shape]
    tokenizer = build_tokenizer(mask_tokens=False)
    heads = variant["heads"]
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=56,
            attention_bias=not variant["qk_norm"],
            use_qk_norm=variant["qk_norm"],
            norm_type=variant["norm_type"],
        ),
        text_config=variant["text"](
            hidden_size=8 * heads,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=64,
            vocab_size=vocab_size,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=variant["tied"],
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=variant["tied"],
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_from_internvl_adds_a_mask_encoder_and_keeps_weights(shape: str, tmp_path: Path) -> None:
    internvl = save_internvl(tmp_path / "internvl", shape)
    model, processor = from_internvl(tmp_path / "internvl", num_mask_tokens=8)
    ours = model.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in internvl.state_dict().items())
    added = ours.keys() - internvl.state_dict().keys()
    assert {name.split(".")[1] for name in added} == {"mask_encoder"}

    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    loaded, loaded_processor = load_checkpoint(tmp_path / "start")
    inputs = region_inputs(loaded_processor, [noise_image(60, 110)], box_masks(60, 110, 1))
    assert generate(loaded, inputs) == generate(model, inputs)


def test_from_internvl_without_mask_answers_like_internvl(tmp_path: Path) -> None:
    internvl = save_internvl(tmp_path, "8B")
    model, processor = from_internvl(tmp_path)
    inputs = processor(images=noise_image(60, 110), text="<IMG_CONTEXT>\nWhat is this?", return_tensors="pt")
    with torch.no_grad():
        ours, theirs = (one(**inputs).logits for one in (model.eval(), internvl))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_from_internvl_passes_settings_to_model_and_processor(tmp_path: Path) -> None:
    save_internvl(tmp_path, "8B")
    model, processor = from_internvl(
        tmp_path, num_mask_tokens=5, mask_encoder="fused", max_tiles=3, dynamic_mask=False, dtype=torch.bfloat16
    )
    assert (model.config.num_mask_tokens, model.config.mask_encoder, model.dtype) == (5, "fused", torch.bfloat16)
    assert (processor.num_mask_tokens, processor.dynamic_mask, processor.image_processor.max_tiles) == (5, False, 3)


def test_from_internvl_grows_embeddings_only_if_needed(tmp_path: Path) -> None:
    tokens = len(build_tokenizer(mask_tokens=False))
    save_internvl(tmp_path / "full", "8B", vocab_size=tokens)
    save_internvl(tmp_path / "spare", "8B", vocab_size=tokens + 3)
    grown, processor = from_internvl(tmp_path / "full")
    assert len(processor.tokenizer) == tokens + 3
    assert grown.config.text_config.vocab_size == grown.lm_head.out_features >= tokens + 3
    assert from_internvl(tmp_path / "spare")[0].lm_head.out_features == tokens + 3


def test_from_internvl_keeps_special_tokens(tmp_path: Path) -> None:
    save_internvl(tmp_path, "8B")
    before = set(AutoTokenizer.from_pretrained(tmp_path).all_special_tokens)
    tokenizer = from_internvl(tmp_path)[1].tokenizer
    assert set(tokenizer.all_special_tokens) == before | {"<mask>", "<MASK_CONTEXT>", "</mask>"}


def test_from_internvl_with_the_same_seed_gives_the_same_mask_encoder(tmp_path: Path) -> None:
    save_internvl(tmp_path, "8B")
    encoders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        encoders.append(from_internvl(tmp_path)[0].model.mask_encoder.projection.weight)
    assert torch.equal(encoders[0], encoders[1])
    assert not torch.equal(encoders[0], encoders[2])


def test_from_internvl_with_another_checkpoint_raises(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    with pytest.raises(CheckpointError, match="holds a ureca checkpoint; training starts from"):
        from_internvl(tmp_path)
