"""Loading the encoders that judge captions: folders, or names on the hub, in transformers' format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from ureca.errors import SettingsError

if TYPE_CHECKING:
    import torch


def load_encoder(checkpoint: str, companion: str, device: str) -> tuple[Any, Any, torch.device]:
    """A network of ``AutoModel`` in evaluation mode, its tokenizer or processor, and where it runs.

    No code from a checkpoint is run, and no pickled object in it.

    Args:
        checkpoint: folder or name on the hub.
        companion: "AutoTokenizer" or "AutoProcessor".
        device: as torch names it (cpu, cuda:1); auto: a GPU if there is one.

    Raises:
        SettingsError: transformers or torch is not installed, the checkpoint cannot be loaded, or there is no such
            device.
    """
    reader = check_checkpoint(checkpoint, companion)
    place = _device(device)
    import transformers

    with _loading(checkpoint, companion):
        network = transformers.AutoModel.from_pretrained(checkpoint, trust_remote_code=False, weights_only=True)
    return network.to(place).eval(), reader, place


def check_checkpoint(checkpoint: str, companion: str) -> Any:
    """The tokenizer or processor of a checkpoint that ``AutoModel`` knows; its weights are not loaded.

    Args:
        checkpoint, companion: as ``load_encoder`` takes them.

    Raises:
        SettingsError: transformers or torch is not installed, or there is no such checkpoint.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise SettingsError(
            f"an encoder needs the package '{error.name}', which is not installed: pip install 'ureca-ray[model]'"
        ) from error
    with _loading(checkpoint, companion):
        transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        return getattr(transformers, companion).from_pretrained(checkpoint, trust_remote_code=False)


@contextmanager
def _loading(checkpoint: str, companion: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError, UnpicklingError, ImportError) as error:
        raise SettingsError(
            f"checkpoint '{checkpoint}' cannot be loaded: it must be a folder, or the name of a model on the hub, that "
            f"transformers' AutoModel and {companion} read ({_first_line(error)})"
        ) from error


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device '{name}' cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
