"""Models to start training from: InternVL with a new mask encoder, small untrained models, tiny random ones."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.internvl.configuration_internvl import InternVLConfig, InternVLVisionConfig

from ureca.errors import CheckpointError, SettingsError
from ureca.model.checkpoints import read_model_type
from ureca.model.configuration import UrecaConfig
from ureca.model.hybrid_vision import HybridConv2d, HybridVisionConfig
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
from ureca.model.pooled_mask_encoder import RegionLinear
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
"""Corpus of the tiny tokenizer."""


def from_internvl(
    directory: Path | str,
    *,
    num_mask_tokens: int = 16,
    mask_encoder: str = "convolutional",
    max_tiles: int = 6,
    dynamic_mask: bool = True,
    dtype: torch.dtype | str = "auto",
) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    """Add a randomly initialised mask encoder to an InternVL-hf checkpoint of any size.

    The three mask tokens are added to the tokenizer, and rows to the embeddings if they have none to spare. All else is
    the checkpoint's. Seed torch for a reproducible mask encoder.

    Args:
        directory: checkpoint in transformers' own InternVL layout (their names end in "-hf"), with its tokenizer.
        num_mask_tokens: tokens of a mask tile, 1 to 32 (the paper finds 16 best).
        mask_encoder: "convolutional" or "fused".
        max_tiles: most tiles of an image (the paper trains with 6).
        dynamic_mask: cut masks into the image's grid, as the paper does.
        dtype: data type of the weights; "auto" for the checkpoint's.

    Returns:
        Model on the CPU, and its processor; `save_pretrained` of both makes the checkpoint to train.

    Raises:
        CheckpointError: if the directory holds no complete InternVL-hf checkpoint.
    """
    if read_model_type(directory) != InternVLConfig.model_type:
        raise CheckpointError(
            f"{directory} holds a {read_model_type(directory)} checkpoint; training starts from one in transformers' "
            "own InternVL layout, such as OpenGVLab/InternVL3-1B-hf"
        )
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MASK_TOKENS)}, replace_extra_special_tokens=False)
    config = _internvl_configuration(directory, tokenizer, num_mask_tokens, mask_encoder)
    model = _load_with_new_mask_encoder(directory, config, dtype)
    if len(tokenizer) > config.text_config.vocab_size:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    processor = UrecaProcessor(
        UrecaImageProcessor(tile_size_px=config.tile_size_px, max_tiles=max_tiles),
        tokenizer,
        num_mask_tokens=num_mask_tokens,
        image_seq_length=config.image_seq_length,
        dynamic_mask=dynamic_mask,
    )
    return model, processor


def _internvl_configuration(
    directory: Path | str, tokenizer: PreTrainedTokenizerBase, num_mask_tokens: int, mask_encoder: str
) -> UrecaConfig:
    base = InternVLConfig.from_pretrained(directory)
    fields = {name: value for name, value in base.to_dict().items() if name not in ("model_type", "architectures")}
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKENS[1])
    if base.image_token_id != image_token_id:
        raise CheckpointError(
            f"{directory}: config.json says image_token_id {base.image_token_id}, "
            f"the tokenizer has {IMAGE_TOKENS[1]} at {image_token_id}"
        )
    return UrecaConfig(
        **fields,
        mask_token_id=tokenizer.convert_tokens_to_ids(MASK_TOKENS[1]),
        num_mask_tokens=num_mask_tokens,
        mask_encoder=mask_encoder,
    )


def _load_with_new_mask_encoder(
    directory: Path | str, config: UrecaConfig, dtype: torch.dtype | str
) -> UrecaForConditionalGeneration:
    model: UrecaForConditionalGeneration
    model, report = UrecaForConditionalGeneration.from_pretrained(
        directory, config=config, dtype=dtype, output_loading_info=True
    )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("model.mask_encoder."))
    unexpected = sorted(str(name) for name in (*report["unexpected_keys"], *report["mismatched_keys"]))
    if missing or unexpected:
        raise CheckpointError(
            f"the weights in {directory} do not fit its configuration; missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(unexpected) or 'none'}"
        )
    return model


def build_tiny(
    sizes: TinySizes | None = None, *, seed: int = 0
) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    """Build a random model in float32 and its processor, for tests; its captions depend on image and mask.

    Raises:
        SettingsError: if the vocabulary is too small for the tokenizer, or the mask encoder cannot have these sizes.
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
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation stays for what is not drawn below
        torch.manual_seed(seed)
        model = UrecaForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    _randomise(model, seed)
    _silence_special_tokens(model, tokenizer)
    return model, processor


def save_tiny(directory: Path | str, sizes: TinySizes | None = None, *, seed: int = 0) -> None:
    """Save a random checkpoint: weights, configuration, tokenizer, chat template and processor."""
    model, processor = build_tiny(sizes, seed=seed)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def build_tokenizer(
    sentences: Iterable[str] = SENTENCES, *, vocab_size: int = 480, mask_tokens: bool = True
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with the special tokens of ChatML, InternVL and URECA.

    Args:
        sentences: training corpus.
        vocab_size: most tokens; at least about 270, for the bytes and the special tokens.
        mask_tokens: include URECA's special tokens.
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
    """Build the configuration of a model of these sizes for a processor.

    Raises:
        ValueError: the mask encoder cannot have these sizes.
    """
    tokenizer = processor.tokenizer
    return UrecaConfig(
        vision_config=_vision_configuration(sizes),
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


def _vision_configuration(sizes: TinySizes) -> InternVLVisionConfig | HybridVisionConfig:
    if sizes.vision_encoder == "hybrid":
        return HybridVisionConfig(
            hidden_size=sizes.vision_width,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=sizes.vision_heads,
            intermediate_size=2 * sizes.vision_width,
            image_size=(sizes.image_size, sizes.image_size),
        )
    return InternVLVisionConfig(
        hidden_size=sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        intermediate_size=2 * sizes.vision_width,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        attention_bias=True,
    )


@torch.no_grad()
def _randomise(model: UrecaForConditionalGeneration, seed: int) -> None:
    # At the usual deviation of 0.02 a random network gives the same answer to every prompt; these keep activations
    # near 1.
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
    """Zero the logits of special tokens but the end token, and of rows without token, so that they are never chosen."""
    silent = {*tokenizer.all_special_ids, *range(len(tokenizer), model.lm_head.out_features)}
    model.lm_head.weight[sorted(silent - {tokenizer.eos_token_id})] = 0


WORDLESS_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKENS[1] + "{% elif part['type'] == 'mask' %}" + MASK_TOKENS[1] + ""
    "{% elif part['type'] == 'text' and message['role'] == 'assistant' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}<|im_end|>{% else %}<|im_start|>{% endif %}"
    "{% endfor %}"
)
"""Image, mask and answer only: without varying questions, the model need not read any."""

_LAYER_SCALE = 1.0
"""InternVL's initial value of 0.1 is for deep vision encoders."""

_PIXEL_GAIN = 4.0
"""Gain that compensates for the mean over a region, which leaves about a quarter of the pixels' deviation."""

_WORD_SCALE = 0.5
"""Deviation of word embeddings in a model whose layers start as identities."""

_POSITION_SCALE = 0.5
"""Scale of the position embeddings; patches have a deviation of about 1."""


def build_scratch(
    captions: Iterable[str],
    sizes: ScratchSizes | None = None,
    *,
    region_prompt: RegionPrompt = "mask",
    dynamic_mask: bool = True,
    seed: int = 0,
) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    """Build an untrained model in float32 and its processor, whose tokenizer is trained on captions.

    Args:
        captions: samples of the captions to learn.
        sizes: sizes of the model.
        region_prompt: way in which a prompt refers to a region; see `ureca.model.prompt`.
        dynamic_mask: cut masks into the image's grid; False for one tile.
        seed: seed of the weights.

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
        _initialise_for_few_steps(model)
        if sizes.vision_encoder == "hybrid":
            _initialise_residually(model)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model.eval(), processor


@torch.no_grad()
def _initialise_for_few_steps(model: UrecaForConditionalGeneration) -> None:
    """Initialise weights so that every layer preserves the deviation of its inputs.

    At InternVL's deviation of 0.02, which a large width compensates for, a small model attenuates the pixels so much
    that hundreds of steps pass before it learns from anything but words.
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
        elif isinstance(module, AppearanceLinear | MaskConv2d | PixelConv2d | HybridConv2d | RegionLinear):
            continue
        elif isinstance(module, nn.Linear | nn.Conv2d) and id(module.weight) not in words:
            module.weight.normal_(0, module.weight[0].numel() ** -0.5)


@torch.no_grad()
def _initialise_residually(model: UrecaForConditionalGeneration) -> None:
    """Initialise the layers of the language model as identities, and embeddings at a deviation that they can change."""
    model.get_input_embeddings().weight.normal_(0, _WORD_SCALE)
    for name, weight in model.model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or (
            name.startswith("vision_tower.layers") and name.endswith(("output.weight", "down.weight"))
        ):
            weight.zero_()


def _positions(num_slots: int, width: int) -> torch.Tensor:
    """Compute sinusoidal embeddings of the rows and columns of a square grid, row by row: [num_slots, width]."""
    side = round(num_slots**0.5)
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    positions = torch.zeros(num_slots, width)
    positions[:, : 4 * (width // 4)] = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return positions
