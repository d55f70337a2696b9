"""LoRA adapters inside the language model, by peft: added, described and merged."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ureca.extras import not_installed
from ureca.model.modeling import UrecaForConditionalGeneration

FACTOR_NAME = re.compile(r"^(?P<layer>.+)\.lora_(?P<factor>[AB])\.default\.weight$")
"""Names of the LoRA factors among a model's tensors."""

PEFT_PREFIX = "base_model.model."
"""Prefix of the same names in files of peft."""


def add_adapter(model: UrecaForConditionalGeneration, *, rank: int, alpha: int, dropout: float, seed: int = 0) -> None:
    """Add an adapter to every linear layer of the language model's blocks; only adapters require a gradient.

    Args:
        model: changed in place; the weights of an adapted layer become those of its ``base_layer``.
        rank: rank of the adapters.
        alpha: adapters are scaled by ``alpha / rank``.
        dropout: dropout probability of the adapters' inputs in training.
        seed: seed of the random factor A; B is zero, so that the model's outputs do not change.

    Raises:
        SettingsError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise not_installed("phase.kind tune", error, "train") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=linear_layers(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def linear_layers(model: UrecaForConditionalGeneration) -> str:
    """Return a pattern of the names of all linear layers of the language model's blocks, not the vision encoder's."""
    prefix = "model.language_model.layers."
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }
    return rf"{re.escape(prefix)}\d+\.(\w+\.)*({'|'.join(sorted(names))})"


def adapter_config(model: UrecaForConditionalGeneration) -> Any:
    """Return peft's configuration of the model's adapters; None without adapters."""
    return getattr(model, "peft_config", {}).get("default")


def merge_adapter(
    model: UrecaForConditionalGeneration, state_dict: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Compute the tensors of the equivalent model without adapters: W + alpha / rank B A.

    Args:
        model: with or without adapters.
        state_dict: tensors of the model.
    """
    plain = {name.replace(".base_layer.", "."): t for name, t in state_dict.items() if not FACTOR_NAME.match(name)}
    modules: dict[str, Any] = dict(model.named_modules())
    for name, factor_a in state_dict.items():
        match = FACTOR_NAME.match(name)
        if match is None or match["factor"] != "A":
            continue
        layer = match["layer"]
        factor_b = state_dict[f"{layer}.lora_B.default.weight"]
        weight = plain[f"{layer}.weight"]
        update = modules[layer].scaling["default"] * (factor_b.float() @ factor_a.float())
        plain[f"{layer}.weight"] = (weight.float() + update.to(weight.device)).to(weight.dtype)
    return plain


@torch.no_grad()
def merge_adapter_in_place(
    model: UrecaForConditionalGeneration,
    factors: Mapping[str, torch.Tensor],
    gathered: Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Merge adapters into the model's own weights and remove them, layer by layer: W + alpha / rank B A.

    Beside the weights, memory is needed for one layer in float32 and its update.

    Args:
        model: with adapters, whose factors are replaced; changed in place.
        factors: LoRA factors by their names among the model's tensors.
        gathered: context in which sharded weights are whole.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "base_layer"):
            continue
        factor_a, factor_b = (factors[f"{name}.lora_{factor}.default.weight"] for factor in "AB")
        weight = module.base_layer.weight
        update = module.scaling["default"] * (factor_b.float() @ factor_a.float())
        with gathered([weight]):
            weight.copy_(update.to(weight.device).add_(weight))  # in float32, then rounded once
    remove_adapters(model)


def remove_adapters(model: UrecaForConditionalGeneration) -> None:
    """Replace adapted layers with their base layers, without merging."""
    for name, module in [*model.named_modules()]:
        if hasattr(module, "base_layer"):
            model.set_submodule(name, module.base_layer)
    del model.peft_config
