"""Settings for processes that work in other folders than the command was given in."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)

_MADE = frozenset({"output", "input", "captions"})
_LOADED = frozenset({"checkpoint", "folder"})


def with_absolute_paths(settings: Model) -> Model:
    """The settings with absolute paths in the place of relative ones: workers of a cluster have other working folders.

    Folders of datasets may be yet to be made. A checkpoint that is no folder here is a name on the hub, and stays;
    so do URIs.
    """
    # `model` is a checkpoint, but where an engine behind HTTP has a name of its own for it.
    loaded = _LOADED if "base_urls" in type(settings).model_fields else _LOADED | {"model"}
    changes: dict[str, object] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            changes[name] = with_absolute_paths(value)
        elif isinstance(value, str) and name in _MADE:
            changes[name] = value if "://" in value else str(Path(value).absolute())
        elif isinstance(value, str) and name in loaded and Path(value).exists():
            changes[name] = str(Path(value).absolute())
        elif isinstance(value, Path):
            changes[name] = value.absolute()
        elif isinstance(value, tuple) and value and isinstance(value[0], Path):
            changes[name] = tuple(path.absolute() for path in value)
    return settings.model_copy(update=changes)
