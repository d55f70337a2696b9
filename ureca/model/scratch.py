"""Models to be trained from nothing, for experiments that need no weights: small, with the words of their corpus."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import nn
from transformers import GenerationConfig

from ureca.errors import SettingsError
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
from ureca.model.processing import IMAGE_TOKENS, MASK_TOKENS, UrecaProcessor
from ureca.model.region_prompt import RegionPrompt
from ureca.model.tiny import build_tokenizer, configuration_of
from ureca.settings.scratch_sizes import ScratchSizes

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
        region_prompt: how the model is told which region is meant; see `ureca.model.region_prompt`.
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


def _positions(num_places: int, width: int) -> torch.Tensor:
    """Sines and cosines of column and row of the places of a square, row by row: [places, width]."""
    side = round(num_places**0.5)
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    positions = torch.zeros(num_places, width)
    positions[:, : 4 * (width // 4)] = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return positions
