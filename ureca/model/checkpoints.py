"""Checkpoints on disk: loaded completely or not at all, and exported together with the code that they need."""

import json
from pathlib import Path
from typing import Any

import torch

from ureca.adapter_files import base_of_adapter
from ureca.errors import CheckpointError
from ureca.model.configuration import UrecaConfig
from ureca.model.image_processing import UrecaImageProcessor
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor

__all__ = ["CheckpointError", "load_checkpoint", "read_model_type", "save_with_code"]


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
        from ureca.model.adapters import load_with_adapter

        return load_with_adapter(base, directory, dtype=dtype)
    model_type = read_model_type(directory)
    if model_type != UrecaConfig.model_type:
        raise CheckpointError(
            f"{directory} holds a {model_type} checkpoint, not a URECA. `ureca convert` converts the authors' weights; "
            "ureca.model.training_start.from_internvl adds a mask encoder to an InternVL-hf checkpoint."
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
