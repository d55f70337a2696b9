"""LoRA adapters inside the language model, by peft."""

import re
from typing import Any

import torch
from torch import nn

from ureca.errors import SettingsError
from ureca.model.modeling import UrecaForConditionalGeneration


def add_adapter(model: UrecaForConditionalGeneration, *, rank: int, alpha: int, dropout: float, seed: int = 0) -> None:
    """Put an adapter into every linear layer of the language model's blocks; only adapters require a gradient.

    Args:
        model: changed in place; a layer's weights become those of its ``base_layer``.
        rank: of the adapters.
        alpha: adapters are scaled by ``alpha / rank``.
        dropout: share of an adapter's inputs that is dropped in training, from 0 to 1.
        seed: of the adapters' random factor; the other is zero, so that the model begins as it was.

    Raises:
        SettingsError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SettingsError("phase.kind: tune needs peft: pip install 'ureca-ray[train]'") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=linear_layers(model),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def linear_layers(model: UrecaForConditionalGeneration) -> str:
    """Pattern of the names of all linear layers of the language model's blocks; the vision encoder's are alike."""
    prefix = "model.language_model.layers."
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }
    return rf"{re.escape(prefix)}\d+\.(\w+\.)*({'|'.join(sorted(names))})"


def adapter_config(model: UrecaForConditionalGeneration) -> Any:
    """peft's configuration of the model's adapters; None if it has none."""
    return getattr(model, "peft_config", {}).get("default")
