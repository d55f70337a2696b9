"""Adapters on disk, in peft's format: the factors of LoRA, and which checkpoint they belong to."""

import json
from pathlib import Path

from ureca.errors import CheckpointError

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
