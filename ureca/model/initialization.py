"""Models to be trained from nothing, for experiments that need no weights: small, with the words of their corpus.

[from] Random checkpoints small enough for tests, dry runs and demos, whose captions still depend on image and mask."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from ureca.errors import SettingsError
from ureca.model.configuration import UrecaConfig
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.mask_encoder import (
    TYPICAL_COVERAGE,
    AppearanceLinear,
    MaskConv2d,
    MaskLinear,
    PixelConv2d,
    PixelLinear,
)
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import IMAGE_TOKENS, MASK_TOKENS, SYSTEM_MESSAGE, UrecaProcessor
from ureca.model.prompt import RegionPrompt
from ureca.model.settings import ScratchSizes, TinySizes

PAD_TOKEN, END_TOKEN = "<|endoftext|>", "<|im_end|>"

SENTENCES = (
    "A red car with round headlights is parked beside a tall brick building on a quiet street.",
    "The left wheel of the yellow bicycle leans against the wooden fence near the garden.",
    "A person in a blue shirt and dark trousers holds a small white dog under the old tree.",
    "The largest of three green bottles stands on the kitchen table behind a bowl of fruit.",
    "The upper window of the grey house has an open shutter and a flower box below it.",
    "Describe this region in the image.",
    SYSTEM_MESSAGE,
)
"""What the tokenizer's merges are learned from."""


def build_tiny(
    sizes: TinySizes | None = None, *, seed: int = 0
) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    """A random model in float32 and its processor; the same seed gives the same weights.

    Raises:
        SettingsError: if the vocabulary is too small for the tokenizer, or the mask encoder cannot be of these sizes.
    """
    sizes = sizes or TinySizes()
    tokenizer = build_tokenizer()
    if len(tokenizer) > sizes.vocab_size:
        raise SettingsError(
            f"vocab_size must be at least {len(tokenizer)}, the tokenizer's size, got {sizes.vocab_size}"
        )
    image_processor = UrecaImageProcessor(tile_size_px=sizes.image_size, max_tiles=sizes.max_tiles)
    processor = UrecaProcessor(
        image_processor,
        tokenizer,
        num_mask_tokens=sizes.num_mask_tokens,
        image_seq_length=sizes.image_seq_length,
    )
    try:
        config = configuration_of(sizes, processor)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    model = UrecaForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    _randomise(model, seed)
    _silence_special_tokens(model, tokenizer)
    return model, processor


def save_tiny(directory: Path | str, sizes: TinySizes | None = None, *, seed: int = 0) -> None:
    """Write a random checkpoint: weights, configuration, tokenizer, chat template and processor."""
    model, processor = build_tiny(sizes, seed=seed)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def build_tokenizer(
    sentences: Iterable[str] = SENTENCES, *, vocab_size: int = 480, mask_tokens: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens of ChatML, InternVL and, unless told otherwise, URECA.

    Args:
        sentences: what its merges are learned from.
        vocab_size: the most tokens; at least 270 or so, for the bytes and the special tokens.
        mask_tokens: whether it knows URECA's special tokens.
    """
    special_tokens = [PAD_TOKEN, "<|im_start|>", END_TOKEN, *IMAGE_TOKENS, *(MASK_TOKENS if mask_tokens else ())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        additional_special_tokens=special_tokens[1:],
        padding_side="left",
        model_max_length=32768,
    )


def configuration_of(sizes: TinySizes, processor: UrecaProcessor) -> UrecaConfig:
    """The configuration of a model of these sizes for this processor.

    Raises:
        ValueError: the mask encoder cannot be of these sizes.
    """
    tokenizer = processor.tokenizer
    return UrecaConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=sizes.vision_width,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=sizes.vision_heads,
            intermediate_size=2 * sizes.vision_width,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            attention_bias=True,
        ),
        text_config=Qwen2Config(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.key_value_heads,
            intermediate_size=sizes.mlp_width,
            vocab_size=sizes.vocab_size,
            max_position_embeddings=32768,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        ),
        image_token_id=processor.image_token_id,
        image_seq_length=sizes.image_seq_length,
        downsample_ratio=1 / sizes.merged_patches,
        tie_word_embeddings=False,
        mask_token_id=processor.mask_token_id,
        num_mask_tokens=sizes.num_mask_tokens,
        mask_encoder=sizes.mask_encoder,
    )


@torch.no_grad()
def _randomise(model: UrecaForConditionalGeneration, seed: int) -> None:
    # At the usual deviation of 0.02 a random network answers everything alike; these keep activations near 1.
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name or "position_embeddings" in name or "cls_token" in name:
            parameter.normal_(0, 0.5, generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        elif "lambda" in name:
            parameter.fill_(1.0)


@torch.no_grad()
def _silence_special_tokens(model: UrecaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Never the likeliest next token: placeholders, and the rows that no token has; the end token stays."""
    silent = {*tokenizer.all_special_ids, *range(len(tokenizer), model.lm_head.out_features)}
    model.lm_head.weight[sorted(silent - {tokenizer.eos_token_id})] = 0


WORDLESS_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKENS[1] + "{% elif part['type'] == 'mask' %}" + MASK_TOKENS[1] + ""
    "{% elif part['type'] == 'text' and message['role'] == 'assistant' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}<|im_end|>{% else %}<|im_start|>{% endif %}"
    "{% endfor %}"
)
"""Image, mask, answer, and nothing else: where every region is asked the same, the question need not be read."""

_LAYER_SCALE = 1.0
"""InternVL's starting value of 0.1 is for deep vision encoders."""

_PIXEL_GAIN = 4.0
"""A mean over a region leaves about a quarter of what its pixels were."""

_POSITION_SCALE = 0.5
"""Of the position embeddings, whose neighbours are alike from the start; patches have a deviation of about 1."""


def build_scratch(
    captions: Iterable[str],
    sizes: ScratchSizes | None = None,
    *,
    region_prompt: RegionPrompt = "mask",
    dynamic_mask: bool = True,
    seed: int = 0,
) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    """An untrained model in float32 and its processor, whose tokenizer is learned from captions.

    Args:
        captions: some of what the model shall write.
        sizes: of the model.
        region_prompt: how the model is told which region is meant; see `ureca.model.prompt`.
        dynamic_mask: whether masks are cut into the image's grid, or are one tile.
        seed: of the weights.

    Raises:
        SettingsError: sizes do not fit each other, or the vocabulary is too small.
    """
    sizes = sizes or ScratchSizes()
    tokenizer = build_tokenizer(captions, vocab_size=sizes.vocab_size)
    if len(tokenizer) > sizes.vocab_size:
        raise SettingsError(
            f"vocab_size must be at least {len(tokenizer)} (bytes, special tokens), got {sizes.vocab_size}"
        )
    processor = UrecaProcessor(
        UrecaImageProcessor(tile_size_px=sizes.image_size, max_tiles=sizes.max_tiles),
        tokenizer,
        num_mask_tokens=sizes.num_mask_tokens,
        image_seq_length=sizes.image_seq_length,
        dynamic_mask=dynamic_mask,
        chat_template=WORDLESS_TEMPLATE,
        region_prompt=region_prompt,
    )
    try:
        config = configuration_of(dataclasses.replace(sizes, vocab_size=len(tokenizer)), processor)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UrecaForConditionalGeneration(config)
        _start(model)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model.eval(), processor


@torch.no_grad()
def _start(model: UrecaForConditionalGeneration) -> None:
    """Starting values for few steps: every layer hands on what it gets at full strength.

    At InternVL's deviation of 0.02, which a large model's width makes up for, little of the pixels arrives at the
    other end of a small one, and hundreds of steps pass before anything but words is learned from.
    """
    words = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    for name, parameter in model.named_parameters():
        if "lambda" in name:
            parameter.fill_(_LAYER_SCALE)
        elif "position_embeddings" in name:
            parameter[0, 1:] = _POSITION_SCALE * _positions(*parameter[0, 1:].shape)
    for module in model.modules():
        if isinstance(module, MaskLinear):
            module.weight.normal_(0, (TYPICAL_COVERAGE * module.in_features) ** -0.5)
        elif isinstance(module, PixelLinear):
            module.weight.normal_(0, _PIXEL_GAIN * module.in_features**-0.5)
        elif isinstance(module, AppearanceLinear | MaskConv2d | PixelConv2d):
            continue
        elif isinstance(module, nn.Linear | nn.Conv2d) and id(module.weight) not in words:
            module.weight.normal_(0, module.weight[0].numel() ** -0.5)


def _positions(num_slots: int, width: int) -> torch.Tensor:
    """Sines and cosines of column and row of the places of a square, row by row: [places, width]."""
    side = round(num_slots**0.5)
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    positions = torch.zeros(num_slots, width)
    positions[:, : 4 * (width // 4)] = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return positions
