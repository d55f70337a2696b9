"""Masks from the Segment Anything Model, by its authors' own automatic mask generator ("segment everything").

Checkpoints are loaded without running code that the file may contain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ureca.errors import ImageError, SettingsError
from ureca.masks.generators.settings import AutomaticMaskSettings, ModelType, SamConfig, SamModelSettings
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam


_ENCODER_WIDTHS: dict[ModelType, int] = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768}
_WIDTH_KEY = "image_encoder.patch_embed.proj.weight"  # [width, 3, patch, patch]
_MAX_LISTED_KEYS = 5


class SamMaskGenerator:
    """Runs "segment everything" on an image.

    Attributes:
        name: name of the method and its checkpoint.
        model: network on its device, which can also be prompted with boxes or points.
    """

    def __init__(self, settings: SamConfig) -> None:
        """Build the model and load its weights.

        Raises:
            SettingsError: segment-anything or OpenCV is needed and missing, the checkpoint cannot be used, or the
                device does not exist.
        """
        self._set_up(load_sam(settings), settings, f"sam {settings.model_type} {settings.checkpoint.name}")

    @classmethod
    def from_model(cls, sam: Sam, settings: AutomaticMaskSettings, name: str = "sam") -> Self:
        """Use a network that is built already, on its present device.

        Raises:
            SettingsError: the settings need OpenCV and it is not installed.
        """
        mask_generator = cls.__new__(cls)
        mask_generator._set_up(sam, settings, name)
        return mask_generator

    def _set_up(self, sam: Sam, settings: AutomaticMaskSettings, name: str) -> None:
        if settings.min_mask_region_area > 0 and find_spec("cv2") is None:
            raise SettingsError(
                "min_mask_region_area above 0 needs OpenCV: pip install opencv-python-headless, or set it to 0"
            )
        arguments = {key: getattr(settings, key) for key in AutomaticMaskSettings.model_fields}
        if settings.point_grids is not None:
            arguments["point_grids"] = [np.asarray(grid, dtype=np.float64) for grid in settings.point_grids]
        self.name = name
        self.model = sam.eval()
        self._generator = _generator_class()(sam, **arguments, output_mode="coco_rle")

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Return the masks of an image, with ids from 1, in the order of SAM's generator.

        Boxes are inclusive: width and height are one less than the pixels spanned. ``extra`` has ``point_coords`` (the
        prompt, [[x, y]]) and ``crop_box`` (x, y, width, height), both in pixels. A mask without a pixel, which a model
        can predict when nothing is filtered, is left out. Layers of crops are skipped from the first one of which a
        crop would be empty, or so elongated that it vanishes at the model's input size.

        Args:
            image: uint8 RGB [H, W, 3], EXIF rotation applied.
            annotation: not used.

        Raises:
            ImageError: the image is so elongated that it vanishes at the model's input size.
        """
        check_proportions(self.model, image)
        generator = copy.copy(self._generator)  # of which only the number of layers depends on the image
        generator.crop_n_layers = self._num_crop_layers(image.shape[0], image.shape[1])
        records = [record for record in generator.generate(image) if record["area"] > 0]
        return [_as_mask(id, record) for id, record in enumerate(records, start=1)]

    def _num_crop_layers(self, height_px: int, width_px: int) -> int:
        from segment_anything.utils.amg import generate_crop_boxes

        generator = self._generator
        for num_layers in range(1, generator.crop_n_layers + 1):
            boxes, _ = generate_crop_boxes((height_px, width_px), num_layers, generator.crop_overlap_ratio)
            for left, top, right, bottom in boxes:
                if right <= left or bottom <= top or _vanishes(self.model, bottom - top, right - left):
                    return num_layers - 1
        return int(generator.crop_n_layers)


def load_sam(settings: SamModelSettings) -> Sam:
    """Load the network with its weights onto its device.

    Raises:
        SettingsError: segment-anything is missing, the checkpoint cannot be used, or the device does not exist.
    """
    require_segment_anything()
    device = _device(settings.device)
    return build_sam(settings.model_type, settings.checkpoint).to(device)


def require_segment_anything() -> None:
    """Check that the optional packages are installed.

    Raises:
        SettingsError: a package is missing; the message says how to install it.
    """
    try:
        import segment_anything  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"the mask generator 'sam' needs the package '{error.name}', which is not installed: "
            "pip install 'ureca-ray[sam]'"
        ) from error


def build_sam(model_type: ModelType, checkpoint: Path) -> Sam:
    """Build a released architecture and load its checkpoint, on the CPU, in evaluation mode.

    Raises:
        SettingsError: segment-anything is not installed, or the checkpoint is unreadable or of another model type.
    """
    require_segment_anything()
    from segment_anything import sam_model_registry

    state = read_state(checkpoint)
    width = state[_WIDTH_KEY].shape[0] if _WIDTH_KEY in state else None
    found = next((name for name, of_type in _ENCODER_WIDTHS.items() if of_type == width), None)
    if found is not None and found != model_type:
        raise SettingsError(f"checkpoint {checkpoint} is a {found}, model_type says {model_type}")
    return load_state(sam_model_registry[model_type], state, str(checkpoint))


def read_state(checkpoint: Path) -> Mapping[str, torch.Tensor]:
    """Read a state dict, unpickling nothing but tensors and plain containers.

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
        build: function that builds the architecture, with weights that are about to be replaced.
        state: tensors by parameter name.
        source: origin of the tensors, for messages.

    Raises:
        SettingsError: names or shapes are not the model's; the message says which.
    """
    sam = build()
    expected = sam.state_dict()
    reshaped = {key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape}
    problems = []
    for keys, problem in (
        (expected.keys() - state.keys(), "missing"),
        (state.keys() - expected.keys(), "unknown"),
        (reshaped, "of another shape"),
    ):
        if keys:
            listed = ", ".join(sorted(keys)[:_MAX_LISTED_KEYS]) + (", ..." if len(keys) > _MAX_LISTED_KEYS else "")
            problems.append(f"{len(keys)} {problem}: {listed}")
    if problems:
        raise SettingsError(f"checkpoint {source} does not fit the model: {'; '.join(problems)}")
    sam.load_state_dict(state)
    return sam.eval()


def check_proportions(sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    """Check that an image [H, W, 3] does not vanish when it is resized to the network's input.

    Raises:
        ImageError: ``too_elongated``.
    """
    height, width = image.shape[:2]
    if _vanishes(sam, height, width):
        side = sam.image_encoder.img_size
        raise ImageError("too_elongated", f"SAM sees at most {side} px a side: {width} x {height} px vanishes")


def _vanishes(sam: Sam, height_px: int, width_px: int) -> bool:
    """Tell whether the shorter side has no pixel at the network's input size."""
    return bool(min(height_px, width_px) * sam.image_encoder.img_size / max(height_px, width_px) < 0.5)


def _generator_class() -> type[Any]:
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.utils.amg import MaskData

    class _FixedMaskGenerator(SamAutomaticMaskGenerator):  # type: ignore[misc]
        def _process_crop(self, *arguments: Any) -> MaskData:
            crop = super()._process_crop(*arguments)
            # Without a mask the package makes this [0] instead of [0, 4], and fails where no crop has any.
            crop["crop_boxes"] = crop["crop_boxes"].reshape(-1, 4)
            return crop

    return _FixedMaskGenerator


def _as_mask(id: int, record: dict[str, Any]) -> Mask:
    x, y, width, height = (float(value) for value in record["bbox"])
    segmentation = record["segmentation"]
    return Mask(
        id=id,
        rle=Rle(size=[int(side) for side in segmentation["size"]], counts=segmentation["counts"]),
        bbox_xywh=(x, y, width, height),
        area_px=int(record["area"]),
        predicted_iou=record["predicted_iou"],
        stability_score=record["stability_score"],
        extra={"point_coords": record["point_coords"], "crop_box": record["crop_box"]},
    )


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # A small allocation proves that the device exists.
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
