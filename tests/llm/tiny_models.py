"""Random checkpoints of the families that curation is asked of, small enough to be made in a test.

Chat templates are of each family's own form: ChatML, and the family's placeholders for an image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

# ruff: noqa: S106  (tokens of a tokenizer, none of them secret)


SENTENCES = [
    "You write captions for one region of a photograph. Answer with one JSON object and nothing else.",
    'A red car is parked beside a tall brick building. {"caption": "..."} system user assistant',
    "The largest of three green bottles stands on the kitchen table behind a bowl of fruit.",
] * 20


def chatml(image: str, *, system: bool = True) -> str:
    """A ChatML template that writes ``image`` for an image; without a system role, where a family has none."""
    refusal = "" if system else "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    return (
        "{% for m in messages %}" + refusal + "{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{% if part.type == 'image' %}{{ '" + image + "' }}{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def tokenizer_of(*special: str, **attributes: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's special tokens and those of a family."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=tokens[1:],
        model_specific_special_tokens=attributes,
        model_max_length=4096,
    )


def internvl(folder: Path, **sizes: int) -> None:
    """InternVL2.5 and 3 in transformers' form: tiles of 28 px, each one token; ``sizes`` are of the language model."""
    tokenizer = tokenizer_of(
        *("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": 28, "width": 28}
    images = GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    template = chatml("<IMG_CONTEXT>\\n")
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(size=size), image_seq_length=1, chat_template=template
    )
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=28
        ),
        text_config=Qwen2Config(**text_sizes(tokenizer) | sizes),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        tie_word_embeddings=False,
    )
    save(InternVLForConditionalGeneration(config), processor, folder)


@torch.no_grad()
def speaking_internvl(folder: Path) -> None:
    """An InternVL for vLLM that writes words at random, whatever it is asked; with a JSON schema they are captions."""
    # vLLM for CPUs has no heads of fewer than 32 numbers.
    internvl(folder, hidden_size=64, num_attention_heads=2, num_key_value_heads=2)
    model = InternVLForConditionalGeneration.from_pretrained(folder)
    vocabulary = InternVLProcessor.from_pretrained(folder).tokenizer.get_vocab()
    # One number of each hidden state outweighs all others, and the head reads nothing else.
    model.get_input_embeddings().weight[:, 0] = 1000.0
    head = model.lm_head.weight.zero_()
    head[[vocabulary[f"Ġ{word}"] for word in ("red", "tall", "parked", "brick", "car")], 0] = 6.0
    head[vocabulary['"'], 0] = 6.1  # twice as likely as a word
    head[vocabulary["}"], 0] = 3.0  # likelier than blanks after a string, and less likely than a word in it
    model.generation_config.update(top_k=None, temperature=1.0)
    model.save_pretrained(folder)


def qwen2_5_vl(folder: Path) -> None:
    """Qwen2.5-VL: patches of 14 px, four of them a token, as many as the image has."""
    tokenizer = qwen_tokenizer()
    images = Qwen2VLImageProcessor(patch_size=14, min_pixels=28 * 28, max_pixels=28 * 28 * 16)
    processor = Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=chatml(QWEN_IMAGE))
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": 48,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        text_config=text_sizes(tokenizer)
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}},
        **qwen_ids(tokenizer),
    )
    save(Qwen2_5_VLForConditionalGeneration(config), processor, folder)


def qwen3_vl(folder: Path) -> None:
    """Qwen3-VL: patches of 16 px, and the vision's deeper layers added to the language model's first ones."""
    tokenizer = qwen_tokenizer()
    images = Qwen2VLImageProcessor(patch_size=16, min_pixels=32 * 32, max_pixels=32 * 32 * 16)
    processor = Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=chatml(QWEN_IMAGE))
    config = Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": 48,
            "patch_size": 16,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        text_config=text_sizes(tokenizer)
        | {
            "head_dim": 12,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 2, 2],
                "mrope_interleaved": True,
                "rope_theta": 10000.0,
            },
        },
        **qwen_ids(tokenizer),
    )
    save(Qwen3VLForConditionalGeneration(config), processor, folder)


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    return {**ids, "tie_word_embeddings": False}


def text_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


@torch.no_grad()
def save(model: Any, processor: Any, folder: Path) -> None:
    """Write a checkpoint whose answers depend on images and texts: at the usual deviation of 0.02 they would not."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "embed" in name or "cls_token" in name:
            parameter.normal_(0, 0.5, generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    tokenizer = processor.tokenizer
    silent = sorted(set(tokenizer.all_special_ids) - {tokenizer.eos_token_id})
    model.lm_head.weight[silent] = 0
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        top_k=3,
        temperature=0.5,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


FAMILIES: dict[str, Callable[[Path], None]] = {"internvl": internvl, "qwen2.5-vl": qwen2_5_vl, "qwen3-vl": qwen3_vl}
