"""Where training starts: a pretrained InternVL with a new mask encoder."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.internvl.configuration_internvl import InternVLConfig

from ureca.errors import CheckpointError
from ureca.model.checkpoints import read_model_type
from ureca.model.configuration import UrecaConfig
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import IMAGE_TOKENS, MASK_TOKENS, UrecaProcessor


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

    The three mask tokens are added to the tokenizer, and rows to the embeddings if they have none to spare. Everything
    else is the checkpoint's; seed torch to get the same mask encoder again.

    Args:
        directory: checkpoint in transformers' own InternVL layout (their names end in "-hf"), with its tokenizer.
        num_mask_tokens: tokens of a mask tile, 1 to 32 (the paper finds 16 best).
        mask_encoder: "convolutional" or "fused".
        max_tiles: the most tiles of an image (the paper trains with 6).
        dynamic_mask: cut masks into the image's grid, as the paper does.
        dtype: type of the weights; "auto" takes the checkpoint's.

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
    config = _configuration(directory, tokenizer, num_mask_tokens, mask_encoder)
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


def _configuration(
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
