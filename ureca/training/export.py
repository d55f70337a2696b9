"""What training leaves behind: a checkpoint like any other, or adapters alone in peft's own format."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ureca.atomic import replacing_folder
from ureca.model.checkpoints import CheckpointError, load_checkpoint
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor
from ureca.training.lora import adapter_config

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

_FACTOR = re.compile(r"^(?P<layer>.+)\.lora_(?P<factor>[AB])\.default\.weight$")
_PEFT_PREFIX = "base_model.model."


def save_checkpoint(
    model: UrecaForConditionalGeneration,
    processor: UrecaProcessor,
    directory: Path | str,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint that `RegionCaptioner.from_pretrained` loads; adapters are merged into the weights.

    The model is not changed, so training can go on.

    Args:
        model: in training or not, with adapters or without.
        processor: of the model.
        directory: appears complete or not at all.
        state_dict: the model's tensors, gathered from all ranks where they are sharded; the model's own if not given.
        overwrite: replace what is in the directory.

    Raises:
        OutputError: the directory is not empty and ``overwrite`` is not set, or is a file.
    """
    tensors = merge_adapter(model, model.state_dict() if state_dict is None else state_dict)
    with replacing_folder(Path(directory), overwrite=overwrite) as folder:
        model.save_pretrained(folder, state_dict=tensors)
        processor.save_pretrained(folder)


def save_adapter(
    model: UrecaForConditionalGeneration,
    directory: Path | str,
    *,
    base: str | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the adapters alone, in peft's format; `load_with_adapter` and `peft.PeftModel.from_pretrained` load them.

    Args:
        model: with adapters.
        directory: as for `save_checkpoint`.
        base: where the checkpoint is that the adapters belong to; written down for whoever loads them.
        state_dict, overwrite: as for `save_checkpoint`.

    Raises:
        ValueError: the model has no adapters.
        OutputError: as for `save_checkpoint`.
    """
    from safetensors.torch import save_file

    config = _configured(model)
    tensors = model.state_dict() if state_dict is None else state_dict
    factors = {
        _PEFT_PREFIX + name.replace(".default.weight", ".weight"): tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if _FACTOR.match(name)
    }
    before = config.base_model_name_or_path
    with replacing_folder(Path(directory), overwrite=overwrite) as folder:
        save_file(factors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config.base_model_name_or_path = base
        try:
            config.save_pretrained(folder)
        finally:
            config.base_model_name_or_path = before


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
    expected = {name: tensor for name, tensor in model.state_dict().items() if _FACTOR.match(name)}
    found = {
        name.removeprefix(_PEFT_PREFIX).replace(".weight", ".default.weight"): tensor
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
    plain = {name.replace(".base_layer.", "."): t for name, t in state_dict.items() if not _FACTOR.match(name)}
    modules: dict[str, Any] = dict(model.named_modules())
    for name, first in state_dict.items():
        match = _FACTOR.match(name)
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


def _configured(model: UrecaForConditionalGeneration) -> Any:
    config = adapter_config(model)
    if config is None:
        raise ValueError("the model has no adapters; write it whole with save_checkpoint")
    return config


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
