"""Conversion of checkpoints in the authors' layout (InternVL's "chat" layout with a mask encoder).

Tensors are never dropped silently: unknown and missing names and unexpected shapes raise errors that list them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, LlamaConfig, PreTrainedConfig, Qwen2Config
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from ureca.errors import CheckpointError
from ureca.model.configuration import UrecaConfig
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import IMAGE_TOKENS, MASK_TOKENS, UrecaProcessor
from ureca.model.released_tokenizer import load_released_tokenizer


def from_released(
    directory: Path | str, image_token_id: int | None = None, mask_token_id: int | None = None
) -> UrecaForConditionalGeneration:
    """Load weights in the authors' layout.

    Args:
        directory: config.json and weights, in safetensors or .bin files, sharded or not; LoRA merged or not; the
            language model a Qwen2 or an InternLM2 (which becomes a Llama, with the same results).
        image_token_id: id of ``<IMG_CONTEXT>``; None for that of the directory's tokenizer.
        mask_token_id: id of ``<MASK_CONTEXT>``; likewise.

    Returns:
        The model on the CPU in the data type of its weights, in evaluation mode.

    Raises:
        CheckpointError: if the directory is no such checkpoint, or its tensors differ from those of its configuration;
            the message lists them.
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

    The processor has the released model's mask values (`tile_mask_as_released`) and number of tiles.

    Args:
        source: see `from_released`; must contain its tokenizer.
        destination: an empty or new folder.

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


LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
"""Index and single file of each format, in order of preference."""


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a checkpoint by name, on the CPU.

    Pickled files are read by torch's restricted loader, which runs no code.

    Raises:
        CheckpointError: if there are no weights, a shard is missing, or shards and index disagree on a tensor.
    """
    for index_name, single_name in LAYOUTS:
        if (directory / index_name).exists():
            return _read_shards(directory / index_name)
        if (directory / single_name).exists():
            return _read_file(directory / single_name)
    raise CheckpointError(f"no weights in {directory}: neither of {', '.join(name for _, name in LAYOUTS)}, nor shards")


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        if not (index.parent / shard).exists():
            raise CheckpointError(f"{index} names {shard}, which does not exist")
        tensors |= _read_file(index.parent / shard)
    if differing := sorted(shard_of.keys() ^ tensors.keys()):
        raise CheckpointError(f"{index} and its shards disagree on: {', '.join(differing)}")
    return tensors


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


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
"""Fields of the language model's configuration that are the same in both layouts."""


@dataclass(frozen=True)
class ReleasedConfig:
    """The authors' config.json, checked.

    Args:
        content: content of the file.
        max_tiles: most tiles of an image.
        dynamic_mask: masks are cut into the image's grid.
        lora_ranks: rank of the LoRA of ``language_model`` and of ``vision_model``; 0 without LoRA.
    """

    content: dict[str, Any]
    max_tiles: int
    dynamic_mask: bool
    lora_ranks: dict[str, int]

    def to_ureca(self, *, image_token_id: int, mask_token_id: int) -> UrecaConfig:
        """Convert to the configuration of the same model."""
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
    """Read config.json and check that its model can be converted.

    Raises:
        CheckpointError: if it cannot be read, has another layout or describes an unsupported model.
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
    scaling = dict(released.get("rope_scaling") or {"type": "default"})
    rope_type = scaling.pop("type", None) or scaling.pop("rope_type")
    fields["rope_parameters"] = {
        "rope_type": rope_type,
        "rope_theta": released.get("rope_theta", 10000.0),
        **scaling,
    }
    if released["architectures"][0] == "Qwen2ForCausalLM":
        return Qwen2Config(**fields)
    return LlamaConfig(**fields, attention_bias=released.get("bias", False))


VISION_LAYER = r"^vision_model\.encoder\.layers\.(\d+)\."
LLM_LAYER = r"^language_model\.model\.layers\.(\d+)\."
OUR_VISION_LAYER = r"model.vision_tower.encoder.layer.\1."
OUR_LLM_LAYER = r"model.language_model.layers.\1."

RENAMINGS: tuple[tuple[str, str], ...] = (
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    (
        r"^vision_model\.embeddings\.patch_embedding\.",
        "model.vision_tower.embeddings.patch_embeddings.projection.",
    ),
    (VISION_LAYER + r"attn\.proj\.", OUR_VISION_LAYER + "attention.projection_layer."),
    (VISION_LAYER + r"attn\.([qk]_norm)\.", OUR_VISION_LAYER + r"attention.\2."),
    (VISION_LAYER + r"mlp\.", OUR_VISION_LAYER + "mlp."),
    (VISION_LAYER + r"norm1\.", OUR_VISION_LAYER + "layernorm_before."),
    (VISION_LAYER + r"norm2\.", OUR_VISION_LAYER + "layernorm_after."),
    (VISION_LAYER + r"ls([12])$", OUR_VISION_LAYER + r"lambda_\2"),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^mask_encoder\.([02])\.", r"model.mask_encoder.convolutions.\1."),
    (r"^mask_linear\.", "model.mask_encoder.projection."),
    # InternLM2, a Llama with other names.
    (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"^language_model\.output\.", "lm_head."),
    (LLM_LAYER + r"attention\.wo\.", OUR_LLM_LAYER + "self_attn.o_proj."),
    (LLM_LAYER + r"feed_forward\.w1\.", OUR_LLM_LAYER + "mlp.gate_proj."),
    (LLM_LAYER + r"feed_forward\.w2\.", OUR_LLM_LAYER + "mlp.down_proj."),
    (LLM_LAYER + r"feed_forward\.w3\.", OUR_LLM_LAYER + "mlp.up_proj."),
    (LLM_LAYER + r"attention_norm\.", OUR_LLM_LAYER + "input_layernorm."),
    (LLM_LAYER + r"ffn_norm\.", OUR_LLM_LAYER + "post_attention_layernorm."),
    # Qwen2, and names that both share.
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
)
"""Patterns and replacements; the first match applies."""


def convert_tensors(tensors: Mapping[str, torch.Tensor], config: UrecaConfig) -> dict[str, torch.Tensor]:
    """Rename and split tensors of the authors' layout; unknown names are kept."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        converted.update(_convert(name, tensor, config))
    return converted


def _convert(name: str, tensor: torch.Tensor, config: UrecaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    text = config.text_config
    groups, queries_per_group = text.num_key_value_heads, text.num_attention_heads // text.num_key_value_heads
    fused = (
        (VISION_LAYER + r"attn\.qkv\.", OUR_VISION_LAYER + "attention.", lambda qkv: qkv.chunk(3)),
        (
            LLM_LAYER + r"attention\.wqkv\.",
            OUR_LLM_LAYER + "self_attn.",
            lambda wqkv: unpack_wqkv(wqkv, groups, queries_per_group),
        ),
    )
    for pattern, replacement, split in fused:
        if match := re.match(pattern, name):
            for projection, part in zip("qkv", split(tensor), strict=True):
                yield match.expand(replacement) + f"{projection}_proj." + name[match.end() :], part.contiguous()
            return
    for pattern, replacement in RENAMINGS:
        if match := re.match(pattern, name):
            yield match.expand(replacement) + name[match.end() :], tensor
            return
    yield name, tensor


def unpack_wqkv(
    wqkv: torch.Tensor, num_groups: int, queries_per_group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split InternLM2's packed projection.

    Its rows are grouped by key-value head: the query heads that share it, then the key head, then the value head
    (InternLM2 technical report, section 2.2).

    Args:
        wqkv: weight [groups x (queries + 2) x head size, D] or bias [groups x (queries + 2) x head size].
        num_groups: number of key-value heads.
        queries_per_group: query heads for each key-value head.

    Returns:
        Query, key and value projections with rows ordered by head, as in Llama.
    """
    head_size = wqkv.shape[0] // (num_groups * (queries_per_group + 2))
    grouped = wqkv.view(num_groups, queries_per_group + 2, head_size, *wqkv.shape[1:])
    queries, keys, values = torch.split(grouped, [queries_per_group, 1, 1], dim=1)
    return queries.flatten(0, 2), keys.flatten(0, 2), values.flatten(0, 2)


WRAPPED = re.compile(r"^(language_model|vision_model)\.base_model\.model\.")
ADAPTER = re.compile(r"\.lora_(?P<factor>[AB])\.default\.weight$")
ALPHA_OVER_RANK = 2.0
"""InternVL's training wraps its models with alpha = 2 x rank, as the paper does (rank 128, alpha 256)."""


def merge_lora(tensors: Mapping[str, torch.Tensor], ranks: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Merge the LoRA adapters inside a checkpoint; other tensors are unchanged.

    Args:
        tensors: all tensors of the checkpoint. Names of a wrapped module begin with ``<module>.base_model.model.``; an
            adapted weight W is its ``base_layer`` and becomes W + 2 B A.
        ranks: configured rank of each module, 0 without LoRA.

    Raises:
        CheckpointError: if an adapter lacks a part or has another rank than configured.
    """
    plain: dict[str, torch.Tensor] = {}
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        unwrapped = WRAPPED.sub(r"\1.", name)
        if match := ADAPTER.search(unwrapped):
            adapted = ADAPTER.sub(".weight", unwrapped)
            factors.setdefault(adapted, {})[match["factor"]] = tensor
        else:
            plain[unwrapped.replace(".base_layer.", ".")] = tensor
    for name, pair in factors.items():
        if pair.keys() != {"A", "B"} or name not in plain:
            raise CheckpointError(f"the LoRA adapter of {name} is not complete: base weight, lora_A and lora_B")
        rank, configured = pair["A"].shape[0], ranks[name.split(".")[0]]
        if configured not in (0, rank):
            raise CheckpointError(f"the LoRA adapter of {name} has rank {rank}, config.json says {configured}")
        update = pair["B"].float() @ pair["A"].float()
        plain[name] = (plain[name].float() + ALPHA_OVER_RANK * update).to(plain[name].dtype)
    return plain
