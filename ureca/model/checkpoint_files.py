"""Identification of checkpoints without loading them: kind, content digest, base of adapters."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ureca.errors import CheckpointError
from ureca.hashing import content_digest, digest

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


SHIPPED = ("scenes",)
"""Names of the checkpoints that are part of this package."""


def folder_of(model: Path | str) -> Path | str:
    """Return the folder of a shipped checkpoint for its name, unless there is a folder of that name; else ``model``."""
    if str(model) in SHIPPED and not Path(model).exists():
        return Path(__file__).parent / "shipped" / str(model)
    return model


def default_dtype(model: Path | str) -> str:
    """Return the data type that "auto" stands for, in all engines.

    Returns:
        "auto", the type that the checkpoint's configuration names; or "float32" for a shipped checkpoint, which is
        stored in half precision to be small.
    """
    return "float32" if folder_of(model) != model else "auto"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that captions regions.

    Attributes:
        kind: "ureca", or "mllm" for any other model that sees images, which can serve as a baseline.
        name: name for rows and reports: the folder's with a digest of its content, or the name on the hub.
        identity: digest of the content, independent of the folder's location; or the name on the hub.
    """

    kind: Literal["ureca", "mllm"]
    name: str
    identity: str


def identify(model: str) -> Checkpoint:
    """Identify a folder, or a name on the hub.

    Raises:
        CheckpointError: there is no such folder and it is no name of the hub, or it contains no checkpoint.
    """
    folder = Path(folder_of(model))
    if not folder.is_dir():
        if _HUB_NAME.fullmatch(model) and not folder.exists():
            return Checkpoint("mllm", model, model)
        raise CheckpointError(f"--model {model} is not a checkpoint: there is no such folder")
    kind: Literal["ureca", "mllm"] = "ureca" if _model_type(folder) == "ureca" else "mllm"
    identity = _digest(folder)
    return Checkpoint(kind, f"{folder.resolve().name} {identity}", identity)


def fingerprint(directory: Path | str) -> str:
    """Return the digest of a URECA checkpoint, by which a dataset is only continued with the same weights.

    Raises:
        CheckpointError: the directory is not a URECA checkpoint.
    """
    folder = Path(folder_of(directory))
    if (found := _model_type(folder)) != "ureca":
        raise CheckpointError(
            f"--model {directory} holds a {found} checkpoint, not a URECA. `ureca convert` makes one of the authors'"
        )
    return _digest(folder)


def base_of_adapter(directory: Path | str) -> Path | None:
    """Return the checkpoint that the adapters in a folder belong to; None if the folder contains no bare adapters.

    Raises:
        CheckpointError: the base is not named, or it is missing.
    """
    folder = Path(directory)
    if (folder / "config.json").is_file() or not (folder / ADAPTER_CONFIG).is_file():
        return None
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds adapters whose {ADAPTER_CONFIG} cannot be read ({error})") from error
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not Path(base, "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds adapters of the checkpoint {base}, which is not there. Name it in {ADAPTER_CONFIG} "
            "(base_model_name_or_path), or train with --export merged"
        )
    return Path(base)


def _digest(folder: Path) -> str:
    """Hash a checkpoint; for adapters, together with their base."""
    own, base = content_digest(folder), base_of_adapter(folder)
    return own if base is None else digest([f"{own} {_digest(base)}"], num_bytes=8).hex()


def _model_type(folder: Path) -> Any:
    folder = base_of_adapter(folder) or folder
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--model {folder} is not a checkpoint: cannot read config.json ({error})") from error
    return config.get("model_type") if isinstance(config, dict) else None
