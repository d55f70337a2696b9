"""What training leaves behind: a checkpoint like any other, or adapters alone in peft's own format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ureca.io import replacing_folder
from ureca.model.checkpoint_files import ADAPTER_WEIGHTS
from ureca.model.checkpoints import FACTOR, PEFT_PREFIX, merge_adapter
from ureca.model.lora import adapter_config
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor


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
    """Write the adapters alone, in peft's format, which `RegionCaptioner.from_pretrained` and peft load.

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
        PEFT_PREFIX + name.replace(".default.weight", ".weight"): tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if FACTOR.match(name)
    }
    before = config.base_model_name_or_path
    with replacing_folder(Path(directory), overwrite=overwrite) as folder:
        save_file(factors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config.base_model_name_or_path = base
        try:
            config.save_pretrained(folder)
        finally:
            config.base_model_name_or_path = before


def _configured(model: UrecaForConditionalGeneration) -> Any:
    config = adapter_config(model)
    if config is None:
        raise ValueError("the model has no adapters; write it whole with save_checkpoint")
    return config
