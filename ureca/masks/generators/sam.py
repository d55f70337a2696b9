"""Masks from the Segment Anything Model, by its authors' own automatic mask generator ("segment everything").

[from] Building a Segment Anything Model and loading its checkpoint, without running what the file may contain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ureca.config import MAY_CHANGE
from ureca.errors import ImageError, SettingsError
from ureca.masks.mask import Mask
from ureca.masks.rle import Rle

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


Fraction = Annotated[float, Field(ge=0, le=1)]


class MaskGeneratorSettings(BaseModel):
    """The arguments of ``segment_anything.SamAutomaticMaskGenerator``, with its names and defaults.

    Attributes:
        points_per_side: points of the prompt grid along one side of the image; None: ``point_grids`` says where.
        points_per_batch: points that the mask decoder takes at once; more is faster and takes more memory.
        pred_iou_thresh: masks stay whose quality, as the model predicts it, is above; 0 keeps all.
        stability_score_thresh: masks stay whose stability (0 to 1) is at least this; 0 keeps all.
        stability_score_offset: by how much the mask logits' threshold moves to and fro to measure stability.
        box_nms_thresh: box IoU from which two masks of one crop are duplicates.
        crop_n_layers: how many times to run again on crops; layer i has 2^i x 2^i of them.
        crop_nms_thresh: box IoU from which two masks of different crops are duplicates.
        crop_overlap_ratio: overlap of the first layer's crops, as a share of the image's side.
        crop_n_points_downscale_factor: layer i has 1 / factor^i of the points per side.
        point_grids: for each layer the points (x, y) in 0 to 1 of its crops, instead of ``points_per_side``.
        min_mask_region_area: islands and holes of fewer pixels are removed; above 0 it needs OpenCV.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    points_per_side: int | None = Field(default=32, ge=1)
    points_per_batch: int = Field(default=64, ge=1)
    pred_iou_thresh: float = Field(default=0.88, ge=0)
    stability_score_thresh: Fraction = 0.95
    stability_score_offset: float = Field(default=1.0, ge=0)
    box_nms_thresh: Fraction = 0.7
    crop_n_layers: int = Field(default=0, ge=0)
    crop_nms_thresh: Fraction = 0.7
    crop_overlap_ratio: float = Field(default=512 / 1500, ge=0, lt=1)
    crop_n_points_downscale_factor: int = Field(default=1, ge=1)
    point_grids: tuple[tuple[tuple[Fraction, Fraction], ...], ...] | None = None
    min_mask_region_area: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _has_one_source_of_points(self) -> Self:
        num_layers = self.crop_n_layers + 1
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ValueError("give exactly one of points_per_side and point_grids, and set the other to null")
        if self.point_grids is not None and (len(self.point_grids) != num_layers or not all(self.point_grids)):
            raise ValueError(f"point_grids needs {num_layers} non-empty grids, one for the image and each crop layer")
        factor = self.crop_n_points_downscale_factor**self.crop_n_layers
        if self.points_per_side is not None and self.points_per_side < factor:
            raise ValueError("crop_n_points_downscale_factor leaves the last crop layer without points")
        return self


class SamModelSettings(BaseModel):
    """Which model to run where.

    Attributes:
        model_type: the image encoder.
        checkpoint: the file of weights, as its authors released it (a state dict).
        device: "auto" (CUDA where there is one, else the CPU) or a PyTorch device such as "cpu" or "cuda:1".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_type: ModelType = "vit_h"
    checkpoint: Annotated[Path, MAY_CHANGE]
    device: str = "auto"


class SamSettings(MaskGeneratorSettings, SamModelSettings):
    """Which model to run where, and how to generate masks with it."""


class SamMaskGenerator:
    """Runs "segment everything" on an image.

    Attributes:
        name: what it is, with its checkpoint.
        model: the network, on its device, for prompting with boxes or points.
    """

    def __init__(self, settings: SamSettings) -> None:
        """Build the model and load its weights.

        Raises:
            SettingsError: segment-anything or OpenCV is needed and missing, the checkpoint cannot be used, or the
                device does not exist.
        """
        self._set_up(load_sam(settings), settings, f"sam {settings.model_type} {settings.checkpoint.name}")

    @classmethod
    def from_model(cls, sam: Sam, settings: MaskGeneratorSettings, name: str = "sam") -> Self:
        """Use a network that is built already, on the device it is on.

        Raises:
            SettingsError: the settings need OpenCV and it is not installed.
        """
        mask_generator = cls.__new__(cls)
        mask_generator._set_up(sam, settings, name)
        return mask_generator

    def _set_up(self, sam: Sam, settings: MaskGeneratorSettings, name: str) -> None:
        if settings.min_mask_region_area > 0 and find_spec("cv2") is None:
            raise SettingsError(
                "min_mask_region_area above 0 needs OpenCV: pip install opencv-python-headless, or set it to 0"
            )
        arguments = {key: getattr(settings, key) for key in MaskGeneratorSettings.model_fields}
        if settings.point_grids is not None:
            arguments["point_grids"] = [np.asarray(grid, dtype=np.float64) for grid in settings.point_grids]
        self.name = name
        self.model = sam.eval()
        self._generator = _generator_class()(sam, **arguments, output_mode="coco_rle")

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Masks of an image [H, W, 3] uint8 RGB, with ids from 1, in the generator's order.

        The box is the generator's: inclusive, so that width and height are one less than the pixels spanned. ``extra``
        has ``point_coords`` (the prompt, [[x, y]]) and ``crop_box`` (x, y, width, height), both in pixels. A mask
        without a pixel, which a model can predict when nothing is filtered, is left out.

        Args:
            image: the pixels, EXIF rotation applied.
            annotation: not used.

        Raises:
            ImageError: the image is so elongated that it vanishes at the model's input size.
        """
        check_proportions(self.model, image)
        records = [record for record in self._generator.generate(image) if record["area"] > 0]
        return [_as_mask(id, record) for id, record in enumerate(records, start=1)]


def load_sam(settings: SamModelSettings) -> Sam:
    """The network with its weights, on its device.

    Raises:
        SettingsError: segment-anything is missing, the checkpoint cannot be used, or the device does not exist.
    """
    require_segment_anything()
    device = _device(settings.device)
    return build_sam(settings.model_type, settings.checkpoint).to(device)


def check_proportions(sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    """Refuse an image [H, W, 3] of which nothing is left when it is resized to the network's input.

    Raises:
        ImageError: ``too_elongated``.
    """
    height, width = image.shape[:2]
    input_side = sam.image_encoder.img_size
    if min(height, width) * input_side / max(height, width) < 0.5:
        raise ImageError("too_elongated", f"SAM sees at most {input_side} px a side: {width} x {height} px vanishes")


def _generator_class() -> type[Any]:
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.utils.amg import MaskData

    class MaskGenerator(SamAutomaticMaskGenerator):  # type: ignore[misc]
        def _process_crop(self, *arguments: Any) -> MaskData:
            crop = super()._process_crop(*arguments)
            # Without a mask the package makes this [0] instead of [0, 4], and fails where no crop has any.
            crop["crop_boxes"] = crop["crop_boxes"].reshape(-1, 4)
            return crop

    return MaskGenerator


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
        # A small allocation is what proves that the device exists.
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
