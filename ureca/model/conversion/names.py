"""Tensor names of the authors' layout and ours, and the fused projections between them."""

import re
from collections.abc import Iterator, Mapping

import torch

from ureca.model.configuration import UrecaConfig

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
    # InternLM2, which is a Llama under other names.
    (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"^language_model\.output\.", "lm_head."),
    (LLM_LAYER + r"attention\.wo\.", OUR_LLM_LAYER + "self_attn.o_proj."),
    (LLM_LAYER + r"feed_forward\.w1\.", OUR_LLM_LAYER + "mlp.gate_proj."),
    (LLM_LAYER + r"feed_forward\.w2\.", OUR_LLM_LAYER + "mlp.down_proj."),
    (LLM_LAYER + r"feed_forward\.w3\.", OUR_LLM_LAYER + "mlp.up_proj."),
    (LLM_LAYER + r"attention_norm\.", OUR_LLM_LAYER + "input_layernorm."),
    (LLM_LAYER + r"ffn_norm\.", OUR_LLM_LAYER + "post_attention_layernorm."),
    # Qwen2, and what both call alike.
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
)
"""Pattern and replacement; the first that matches is taken."""


def convert_tensors(tensors: Mapping[str, torch.Tensor], config: UrecaConfig) -> dict[str, torch.Tensor]:
    """Tensors in the authors' layout under our names; a name that no rule knows is kept as it is."""
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
    """Separate InternLM2's packed projection.

    Its rows come in groups, one for each key-value head: the heads of the queries that share it, then the key head,
    then the value head (InternLM2 technical report, section 2.2).

    Args:
        wqkv: weight [groups x (queries + 2) x head size, D] or bias [groups x (queries + 2) x head size].
        num_groups: number of key-value heads.
        queries_per_group: query heads for each key-value head.

    Returns:
        Query, key and value projections, their rows ordered by head as Llama has them.
    """
    head_size = wqkv.shape[0] // (num_groups * (queries_per_group + 2))
    grouped = wqkv.view(num_groups, queries_per_group + 2, head_size, *wqkv.shape[1:])
    queries, keys, values = torch.split(grouped, [queries_per_group, 1, 1], dim=1)
    return queries.flatten(0, 2), keys.flatten(0, 2), values.flatten(0, 2)
