"""Checkpoints on disk: loaded completely or not at all, saved with or without adapters or the code that they need."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ureca.errors import CheckpointError
from ureca.io import replacing_folder
from ureca.model.auto import UrecaConfig, UrecaForConditionalGeneration, UrecaImageProcessor, UrecaProcessor
from ureca.model.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of_adapter, default_dtype, folder_of
from ureca.model.lora import FACTOR_NAME, PEFT_PREFIX, adapter_config, merge_adapter, merge_adapter_in_place


@dataclass(frozen=True)
class WeightSharding:
    """Division of the weights among ranks while a model is loaded, so that no rank holds them all.

    Attributes:
        construction: context in which transformers builds and fills models whose weights are sharded.
        gathered: context in which all ranks hold some weights whole; those of rank 0 are sharded again at its end.
    """

    construction: Callable[[], AbstractContextManager[Any]]
    gathered: Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]


def load_checkpoint(
    directory: Path | str, *, dtype: torch.dtype | str = "auto", sharding: WeightSharding | None = None
) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    """Load model and processor, on the CPU unless the weights are sharded.

    `from_pretrained` of transformers only warns about missing weights and leaves them random; this raises.

    Args:
        directory: a folder written by `save_pretrained` of a URECA model and of its processor; or adapters, which are
            merged into the checkpoint that they name; or the name of a shipped checkpoint ("scenes").
        dtype: data type of the weights; "auto" for the checkpoint's, or float32 for a shipped one, see
            `ureca.model.checkpoint_files.default_dtype`.
        sharding: division of the weights among ranks, which must all call; None for whole weights.

    Raises:
        CheckpointError: if it is no URECA checkpoint, if weights are missing, unexpected or of another shape, or if the
            base checkpoint of adapters is missing; on all ranks alike.
    """
    if dtype == "auto":
        dtype = default_dtype(directory)
    directory = folder_of(directory)
    if (base := base_of_adapter(directory)) is not None:
        return load_with_adapter(base, directory, dtype=dtype, sharding=sharding)
    model_type = read_model_type(directory)
    if model_type != UrecaConfig.model_type:
        raise CheckpointError(
            f"{directory} holds a {model_type} checkpoint, not a URECA. `ureca convert` converts the authors' weights; "
            "ureca.model.initialization.from_internvl adds a mask encoder to an InternVL-hf checkpoint."
        )
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    try:
        processor = UrecaProcessor.from_pretrained(directory)
        if sharding is None:
            model, report = UrecaForConditionalGeneration.from_pretrained(directory, **options)
        else:
            # Sharded loading compares only names, and a rank that fails alone leaves the others waiting. On the meta
            # device every rank compares all names and shapes by itself, without reading a weight.
            model, report = UrecaForConditionalGeneration.from_pretrained(directory, device_map="meta", **options)
    except MemoryError:
        raise
    except Exception as error:  # the libraries raise dozens of kinds for damaged files
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(
            f"the checkpoint in {directory} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error
    problems = _listed(
        missing=report["missing_keys"], unexpected=report["unexpected_keys"], shape=report["mismatched_keys"]
    )
    if problems:
        raise CheckpointError(f"the weights in {directory} do not fit their configuration; {problems}")
    if sharding is not None:
        with sharding.construction():
            model = UrecaForConditionalGeneration.from_pretrained(directory, dtype=dtype)
    return model, processor


def load_with_adapter(
    base: Path | str,
    adapter: Path | str,
    *,
    dtype: torch.dtype | str = "auto",
    sharding: WeightSharding | None = None,
) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    """Load a checkpoint with adapters merged into its weights, on the CPU unless the weights are sharded.

    Args:
        base: the checkpoint that the adapters were trained on.
        adapter: a folder with adapter_model.safetensors and adapter_config.json, by `save_adapter` or by peft.
        dtype: data type of the weights; "auto" for the checkpoint's.
        sharding: see `load_checkpoint`.

    Raises:
        CheckpointError: the base is no checkpoint, files of the adapter are missing, or it does not fit the base.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from safetensors.torch import load_file

    folder = Path(adapter)
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no adapter: there is no {name}")
    model, processor = load_checkpoint(base, dtype=dtype, sharding=sharding)
    config = LoraConfig.from_pretrained(str(folder))
    if config.use_dora or config.modules_to_save or config.bias != "none":
        raise CheckpointError(f"{folder}: only plain LoRA can be merged, without DoRA, biases and modules_to_save")
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise CheckpointError(f"the adapter in {folder} does not fit {base}: {error}") from error
    expected = {name: tensor for name, tensor in model.state_dict().items() if FACTOR_NAME.match(name)}
    found = {
        name.removeprefix(PEFT_PREFIX).replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()
    }
    problems = _listed(
        missing=expected.keys() - found.keys(),
        unexpected=found.keys() - expected.keys(),
        shape=(name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape),
    )
    if problems:
        raise CheckpointError(f"the adapter in {folder} does not fit {base}; {problems}")
    del expected
    merge_adapter_in_place(model, found, nullcontext if sharding is None else sharding.gathered)
    return model.eval(), processor


def _listed(**problems: Iterable[object]) -> str:
    """Join the names of tensors by problem, without empty ones."""
    names = {problem: sorted(map(str, tensors)) for problem, tensors in problems.items()}
    return "; ".join(f"{problem}: {', '.join(of_problem)}" for problem, of_problem in names.items() if of_problem)


def read_model_type(directory: Path | str) -> str:
    """Return the ``model_type`` in a checkpoint's config.json.

    Raises:
        CheckpointError: if there is no readable config.json.
    """
    path = Path(directory) / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} is not a checkpoint: cannot read {path} ({error})") from error


def save_checkpoint(
    model: UrecaForConditionalGeneration,
    processor: UrecaProcessor,
    directory: Path | str,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    overwrite: bool = False,
) -> None:
    """Save a checkpoint for `load_checkpoint`, with adapters merged into the weights.

    The model is not changed, so that training can continue.

    Args:
        model: in training or not, with or without adapters.
        processor: processor of the model.
        directory: appears complete or not at all.
        state_dict: tensors of the model, gathered from all ranks if they are sharded; None for the model's own.
        overwrite: replace the content of the directory.

    Raises:
        OutputError: the directory is a file, or it is not empty and ``overwrite`` is not set.
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
    """Save only the adapters, in peft's format, for `load_checkpoint` and peft.

    Args:
        model: with adapters.
        directory: see `save_checkpoint`.
        base: path of the checkpoint that the adapters belong to, for the adapter's configuration.
        state_dict, overwrite: see `save_checkpoint`.

    Raises:
        ValueError: the model has no adapters.
        OutputError: see `save_checkpoint`.
    """
    from safetensors.torch import save_file

    config = adapter_config(model)
    if config is None:
        raise ValueError("the model has no adapters; write it whole with save_checkpoint")
    tensors = model.state_dict() if state_dict is None else state_dict
    factors = {
        PEFT_PREFIX + name.replace(".default.weight", ".weight"): tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if FACTOR_NAME.match(name)
    }
    original_base = config.base_model_name_or_path
    with replacing_folder(Path(directory), overwrite=overwrite) as folder:
        save_file(factors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config.base_model_name_or_path = base
        try:
            config.save_pretrained(folder)
        finally:
            config.base_model_name_or_path = original_base


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
        # transformers keeps the registration: without this, every later save would include the code, too.
        for exported in auto_classes:
            exported._auto_class = None
        saved: tuple[Any, ...] = (model.config, processor, processor.image_processor)
        for configured in saved:
            configured.__dict__.pop("auto_map", None)
