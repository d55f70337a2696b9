"""The authors' checkpoint layout (InternVL's "chat" layout with a mask encoder) becomes ours.

A tensor is never dropped silently: names that the layout does not have, names that are missing and shapes that do not
fit are errors that list them.
"""

from pathlib import Path

import torch
from transformers import GenerationConfig

from ureca.model.checkpoints import CheckpointError
from ureca.model.configuration import UrecaConfig
from ureca.model.conversion.configuration import read_released_config
from ureca.model.conversion.files import read_tensors
from ureca.model.conversion.lora import merge_lora
from ureca.model.conversion.names import convert_tensors
from ureca.model.conversion.tokenizer import load_released_tokenizer
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import IMAGE_TOKENS, MASK_TOKENS, UrecaProcessor

__all__ = ["convert_released", "from_released"]


def from_released(
    directory: Path | str, image_token_id: int | None = None, mask_token_id: int | None = None
) -> UrecaForConditionalGeneration:
    """Load weights in the authors' layout.

    Args:
        directory: config.json and weights, in safetensors or .bin files, sharded or not; LoRA merged or not; the
            language model a Qwen2 or an InternLM2 (which becomes a Llama, with the same results).
        image_token_id: id of ``<IMG_CONTEXT>``; taken from the directory's tokenizer unless given.
        mask_token_id: id of ``<MASK_CONTEXT>``; likewise.

    Returns:
        The model on the CPU in the type of its weights, for evaluation.

    Raises:
        CheckpointError: if the directory is not such a checkpoint, or its tensors are not exactly those of its
            configuration; the message lists them.
    """
    directory = Path(directory)
    released = read_released_config(directory)
    if image_token_id is None or mask_token_id is None:
        vocabulary = load_released_tokenizer(directory).get_vocab()
        image_token_id = _token_id(vocabulary, IMAGE_TOKENS[1]) if image_token_id is None else image_token_id
        mask_token_id = _token_id(vocabulary, MASK_TOKENS[1]) if mask_token_id is None else mask_token_id
    config = released.to_ureca(image_token_id=image_token_id, mask_token_id=mask_token_id)
    tensors = merge_lora(read_tensors(directory), released.lora_ranks)
    return _build_model(config, convert_tensors(tensors, config), directory)


def convert_released(source: Path | str, destination: Path | str) -> None:
    """Convert a released checkpoint, its tokenizer and its chat template included.

    The processor gets the released model's mask values (`tile_mask_as_released`) and number of tiles.

    Args:
        source: see `from_released`; with its tokenizer.
        destination: a folder that is empty or does not exist yet.

    Raises:
        CheckpointError: as `from_released`; if the tokenizer is missing, or ``destination`` is not empty.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists() and any(destination.iterdir()):
        raise CheckpointError(f"{destination} is not empty; give a new folder for the converted checkpoint")
    released = read_released_config(source)
    tokenizer = load_released_tokenizer(source)
    model = from_released(source)
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {source} has {len(tokenizer)} tokens, the language model only "
            f"{model.config.text_config.vocab_size} embeddings: they do not belong together"
        )
    processor = UrecaProcessor(
        UrecaImageProcessor(tile_size_px=model.config.tile_size_px, max_tiles=released.max_tiles),
        tokenizer,
        num_mask_tokens=model.config.num_mask_tokens,
        image_seq_length=model.config.image_seq_length,
        dynamic_mask=released.dynamic_mask,
        mask_values="released",
    )
    end_token_ids = [_token_id(tokenizer.get_vocab(), "<|im_end|>"), tokenizer.eos_token_id]
    model.generation_config = GenerationConfig(
        eos_token_id=sorted(set(end_token_ids)),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model.save_pretrained(destination)
    processor.save_pretrained(destination)


def _build_model(
    config: UrecaConfig, tensors: dict[str, torch.Tensor], directory: Path
) -> UrecaForConditionalGeneration:
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in UrecaForConditionalGeneration(config).state_dict().items()}
    problems = []
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
        embeddings = tensors.get("model.language_model.embed_tokens.weight")
        head = tensors.pop("lm_head.weight", None)
        if head is not None and embeddings is not None and not torch.equal(head, embeddings):
            problems.append("tied: lm_head.weight differs from the embeddings, which config.json ties it to")
    problems += [
        *(f"missing: {name}" for name in sorted(expected.keys() - tensors.keys())),
        *(f"unexpected: {name}" for name in sorted(tensors.keys() - expected.keys())),
        *(
            f"shape of {name}: {list(tensors[name].shape)}, the configuration asks for {list(shape)}"
            for name, shape in sorted(expected.items())
            if name in tensors and tensors[name].shape != shape
        ),
    ]
    if problems:
        raise CheckpointError(
            f"the tensors in {directory} are not those of its configuration:\n  " + "\n  ".join(problems)
        )
    dtype = tensors["model.language_model.norm.weight"].dtype
    model: UrecaForConditionalGeneration = UrecaForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype
    )
    model.eval()
    return model


def _token_id(vocabulary: dict[str, int], token: str) -> int:
    if token not in vocabulary:
        raise CheckpointError(
            f"the tokenizer does not know {token}; a released URECA checkpoint has it among its added tokens"
        )
    return vocabulary[token]
