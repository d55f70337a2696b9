"""LoRA adapters that were saved inside a checkpoint, merged into the weights they adapt."""

import re
from collections.abc import Mapping

import torch

from ureca.model.checkpoints import CheckpointError

WRAPPED = re.compile(r"^(language_model|vision_model)\.base_model\.model\.")
ADAPTER = re.compile(r"\.lora_(?P<factor>[AB])\.default\.weight$")
ALPHA_OVER_RANK = 2.0
"""InternVL's training wraps its models with alpha = 2 x rank, as the paper does (rank 128, alpha 256)."""


def merge_lora(tensors: Mapping[str, torch.Tensor], ranks: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Tensors by the names that they have without LoRA; unchanged where there is none.

    Args:
        tensors: of a whole checkpoint. A wrapped module's names begin with ``<module>.base_model.model.``; an adapted
            weight W is its ``base_layer`` and becomes W + 2 B A.
        ranks: the configured rank of each module, 0 for none.

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
