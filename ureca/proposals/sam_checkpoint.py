"""Building a Segment Anything Model and loading its checkpoint, without running what the file may contain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, get_args

from ureca.errors import SettingsError

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

ModelType = Literal["vit_h", "vit_l", "vit_b"]
"""Image encoders that checkpoints were released for: huge, large, base."""

_ENCODER_WIDTHS: dict[ModelType, int] = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768}
_WIDTH_KEY = "image_encoder.patch_embed.proj.weight"  # [width, 3, patch, patch]
_KEYS_SHOWN = 5


def require_segment_anything() -> None:
    """Check that the optional packages are there.

    Raises:
        SettingsError: one is missing; the message says what to install.
    """
    try:
        import segment_anything  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"the proposer 'sam' needs the package '{error.name}', which is not installed: pip install 'ureca-ray[sam]'"
        ) from error


def build_sam(model_type: ModelType, checkpoint: Path) -> Sam:
    """Build a released architecture and load its checkpoint, on the CPU, in evaluation mode.

    Raises:
        SettingsError: segment-anything is not installed, or the checkpoint is unreadable or of another model type.
    """
    require_segment_anything()
    from segment_anything import sam_model_registry

    state = read_state(checkpoint)
    found = _model_type_of(state)
    if found is not None and found != model_type:
        raise SettingsError(f"checkpoint {checkpoint} is a {found}, model_type says {model_type}")
    return load_state(sam_model_registry[model_type], state, str(checkpoint))


def read_state(checkpoint: Path) -> Mapping[str, torch.Tensor]:
    """Read a state dict; nothing but tensors and plain containers is unpickled.

    Raises:
        SettingsError: there is no such file, it is damaged, or it holds something else than a state dict.
    """
    import torch

    if not checkpoint.is_file():
        raise SettingsError(f"checkpoint {checkpoint} does not exist or is not a file")
    try:
        # segment-anything's own loader would unpickle, that is run, anything that the file holds.
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SettingsError(f"checkpoint {checkpoint} is not a readable PyTorch file: {reason}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SettingsError(f"checkpoint {checkpoint} is not a state dict (tensors by parameter name)")
    return state


def load_state(build: Callable[[], Sam], state: Mapping[str, torch.Tensor], source: str) -> Sam:
    """Build a model and fill it, in evaluation mode.

    Args:
        build: makes the architecture, with weights that are about to be replaced.
        state: tensors by parameter name.
        source: what the tensors came from, for messages.

    Raises:
        SettingsError: names or shapes are not the model's; the message says which.
    """
    sam = build()
    expected = sam.state_dict()
    problems = [
        ("missing", expected.keys() - state.keys()),
        ("unknown", state.keys() - expected.keys()),
        (
            "of another shape",
            {key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape},
        ),
    ]
    if any(keys for _, keys in problems):
        found = "; ".join(f"{len(keys)} {what}: {_listed(keys)}" for what, keys in problems if keys)
        raise SettingsError(f"checkpoint {source} does not fit the model: {found}")
    sam.load_state_dict(state)
    return sam.eval()


def _model_type_of(state: Mapping[str, Any]) -> ModelType | None:
    if _WIDTH_KEY not in state:
        return None
    width = state[_WIDTH_KEY].shape[0]
    return next((name for name in get_args(ModelType) if _ENCODER_WIDTHS[name] == width), None)


def _listed(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:_KEYS_SHOWN]) + (", ..." if len(names) > _KEYS_SHOWN else "")
