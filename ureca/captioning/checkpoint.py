"""Which checkpoint it is, told without loading it."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ureca.adapter_files import base_of_adapter
from ureca.errors import CheckpointError
from ureca.fingerprints import content_digest

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
    digest, base = content_digest(folder), base_of_adapter(folder)
    return digest if base is None else hashlib.blake2b(f"{digest} {_digest(base)}".encode(), digest_size=8).hexdigest()


def _model_type(folder: Path) -> Any:
    folder = base_of_adapter(folder) or folder
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--model {folder} is not a checkpoint: cannot read config.json ({error})") from error
    return config.get("model_type") if isinstance(config, dict) else None
