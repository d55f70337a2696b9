"""Which checkpoint it is, told without loading it.

[from] Names for the content of checkpoints, told without loading them.
[from] Adapters on disk, in peft's format: the factors of LoRA, and which checkpoint they belong to."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ureca.errors import CheckpointError
from ureca.hashing import content_digest, digest

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def base_of_adapter(directory: Path | str) -> Path | None:
    """The checkpoint that the adapters in a folder belong to; None: the folder holds none, or a whole checkpoint.

    Raises:
        CheckpointError: it is not said which that is, or it is not there.
    """
    folder = Path(directory)
    if (folder / "config.json").is_file() or not (folder / ADAPTER_CONFIG).is_file():
        return None
    try:
        said = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds adapters whose {ADAPTER_CONFIG} cannot be read ({error})") from error
    base = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    if not isinstance(base, str) or not Path(base, "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds adapters of the checkpoint {base}, which is not there. Name it in {ADAPTER_CONFIG} "
            "(base_model_name_or_path), or train with --export merged"
        )
    return Path(base)


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What captions regions.

    Attributes:
        kind: "ureca", or "mllm": any other model that sees images, which can serve as a baseline.
        name: for the rows: its folder's, with a fingerprint of the content; or its name on the hub.
        identity: the same wherever the folder is.
    """

    kind: Literal["ureca", "mllm"]
    name: str
    identity: str


def identify(model: str) -> Checkpoint:
    """Tell what a folder, or a name on the hub, holds.

    Raises:
        CheckpointError: there is no such folder and it is no name of the hub, or it holds no checkpoint.
    """
    folder = Path(model)
    if not folder.is_dir():
        if _HUB_NAME.fullmatch(model) and not folder.exists():
            return Checkpoint("mllm", model, model)
        raise CheckpointError(f"--model {model} is not a checkpoint: there is no such folder")
    kind: Literal["ureca", "mllm"] = "ureca" if _model_type(folder) == "ureca" else "mllm"
    digest = _digest(folder)
    return Checkpoint(kind, f"{folder.resolve().name} {digest}", digest)


def fingerprint(directory: Path | str) -> str:
    """A name for the content of a checkpoint of URECA, so that a dataset is not gone on with by other weights.

    Raises:
        CheckpointError: the directory is not a checkpoint of URECA.
    """
    folder = Path(directory)
    if (found := _model_type(folder)) != "ureca":
        raise CheckpointError(
            f"--model {directory} holds a {found} checkpoint, not a URECA. `ureca convert` makes one of the authors'"
        )
    return _digest(folder)


def _digest(folder: Path) -> str:
    """Of adapters, a name for them and for what they belong to."""
    own, base = content_digest(folder), base_of_adapter(folder)
    return own if base is None else digest([f"{own} {_digest(base)}"], num_bytes=8).hex()


def _model_type(folder: Path) -> Any:
    folder = base_of_adapter(folder) or folder
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--model {folder} is not a checkpoint: cannot read config.json ({error})") from error
    return config.get("model_type") if isinstance(config, dict) else None
