"""Checkpoints with LoRA's factors beside them, merged as they are loaded.

[from] Checkpoints on disk: loaded completely or not at all, and exported together with the code that they need."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import ureca.model.auto  # noqa: F401  the Auto classes know the model from here on
from ureca.errors import CheckpointError
from ureca.model.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of_adapter
from ureca.model.configuration import UrecaConfig
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor


def load_checkpoint(
    directory: Path | str, *, dtype: torch.dtype | str = "auto"
) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    """Load model and processor, on the CPU.

    `from_pretrained` of transformers only warns about missing weights and leaves them random; this refuses.

    Args:
        directory: holds what `save_pretrained` of a URECA model and of its processor wrote; or adapters, which are
            merged into the checkpoint that they name.
        dtype: type of the weights; "auto" takes the checkpoint's.

    Raises:
        CheckpointError: if it is no URECA checkpoint, or weights are missing, too many or of another shape; or if what
            adapters belong to is not there.
    """
    if (base := base_of_adapter(directory)) is not None:
        return load_with_adapter(base, directory, dtype=dtype)
    model_type = read_model_type(directory)
    if model_type != UrecaConfig.model_type:
        raise CheckpointError(
            f"{directory} holds a {model_type} checkpoint, not a URECA. `ureca convert` converts the authors' weights; "
            "ureca.model.from_internvl.from_internvl adds a mask encoder to an InternVL-hf checkpoint."
        )
    model, report = UrecaForConditionalGeneration.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    problems = [
        f"{what}: {', '.join(sorted(str(key) for key in report[kind]))}"
        for kind, what in (("missing_keys", "missing"), ("unexpected_keys", "unexpected"), ("mismatched_keys", "shape"))
        if report[kind]
    ]
    if problems:
        raise CheckpointError(f"the weights in {directory} do not fit their configuration; {'; '.join(problems)}")
    return model, UrecaProcessor.from_pretrained(directory)


def read_model_type(directory: Path | str) -> str:
    """The ``model_type`` that a checkpoint's config.json names.

    Raises:
        CheckpointError: if there is no readable config.json.
    """
    path = Path(directory) / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} is not a checkpoint: cannot read {path} ({error})") from error


def save_with_code(model: UrecaForConditionalGeneration, processor: UrecaProcessor, directory: Path | str) -> None:
    """Save a checkpoint that loads without this package, by ``from_pretrained(directory, trust_remote_code=True)``.

    The modules that define model and processor are copied beside the weights.
    """
    auto_classes: dict[Any, str] = {
        UrecaConfig: "AutoConfig",
        UrecaForConditionalGeneration: "AutoModelForImageTextToText",
        UrecaImageProcessor: "AutoImageProcessor",
        UrecaProcessor: "AutoProcessor",
    }
    for exported, auto_class in auto_classes.items():
        exported.register_for_auto_class(auto_class)
    try:
        model.save_pretrained(directory)
        processor.save_pretrained(directory)
    finally:
        # transformers remembers the wish: every later save would bring the code along, too.
        for exported in auto_classes:
            exported._auto_class = None
        saved: tuple[Any, ...] = (model.config, processor, processor.image_processor)
        for configured in saved:
            configured.__dict__.pop("auto_map", None)


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
