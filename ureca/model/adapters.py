"""Checkpoints with LoRA's factors beside them, merged as they are loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ureca.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ureca.errors import CheckpointError
from ureca.model.checkpoints import load_checkpoint
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor

FACTOR = re.compile(r"^(?P<layer>.+)\.lora_(?P<factor>[AB])\.default\.weight$")
"""Names of a model's tensors that are factors."""

PEFT_PREFIX = "base_model.model."
"""Of the same names in files of peft."""


def load_with_adapter(
    base: Path | str, adapter: Path | str, *, dtype: torch.dtype | str = "auto"
) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    """Load a checkpoint with adapters merged into its weights, on the CPU.

    Args:
        base: the checkpoint that the adapters were trained on.
        adapter: holds adapter_model.safetensors and adapter_config.json, by `save_adapter` or by peft.
        dtype: type of the weights; "auto" takes the checkpoint's.

    Raises:
        CheckpointError: the base is no checkpoint, files of the adapter are missing, or it does not fit the base.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from safetensors.torch import load_file

    folder = Path(adapter)
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no adapter: there is no {name}")
    model, processor = load_checkpoint(base, dtype=dtype)
    config = LoraConfig.from_pretrained(str(folder))
    if config.use_dora or config.modules_to_save or config.bias != "none":
        raise CheckpointError(f"{folder}: only plain LoRA can be merged, without DoRA, biases and modules_to_save")
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise CheckpointError(f"the adapter in {folder} does not fit {base}: {error}") from error
    expected = {name: tensor for name, tensor in model.state_dict().items() if FACTOR.match(name)}
    found = {
        name.removeprefix(PEFT_PREFIX).replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()
    }
    _check_fit(expected, found, f"the adapter in {folder} does not fit {base}")
    merged = merge_adapter(model, {**model.state_dict(), **found})
    _remove_adapters(model)
    model.load_state_dict(merged)
    return model.eval(), processor


def merge_adapter(
    model: UrecaForConditionalGeneration, state_dict: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a model without adapters that computes what the model with them does: W + alpha / rank B A.

    Args:
        model: with adapters or without.
        state_dict: its tensors.
    """
    plain = {name.replace(".base_layer.", "."): t for name, t in state_dict.items() if not FACTOR.match(name)}
    modules: dict[str, Any] = dict(model.named_modules())
    for name, first in state_dict.items():
        match = FACTOR.match(name)
        if match is None or match["factor"] != "A":
            continue
        layer = match["layer"]
        second = state_dict[f"{layer}.lora_B.default.weight"]
        weight = plain[f"{layer}.weight"]
        update = modules[layer].scaling["default"] * (second.float() @ first.float())
        plain[f"{layer}.weight"] = (weight.float() + update.to(weight.device)).to(weight.dtype)
    return plain


def _remove_adapters(model: UrecaForConditionalGeneration) -> None:
    for name, module in [*model.named_modules()]:
        if hasattr(module, "base_layer"):
            model.set_submodule(name, module.base_layer)
    del model.peft_config


def _check_fit(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], what: str) -> None:
    problems = [
        f"{kind}: {', '.join(names)}"
        for kind, names in (
            ("missing", sorted(expected.keys() - found.keys())),
            ("unexpected", sorted(found.keys() - expected.keys())),
            ("shape", sorted(n for n in expected.keys() & found.keys() if expected[n].shape != found[n].shape)),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{what}; {'; '.join(problems)}")
