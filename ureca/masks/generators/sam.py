"""Masks from the Segment Anything Model, by its authors' own package.

Checkpoints are loaded without running code that the file may contain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from ureca.devices import torch_device
from ureca.errors import SettingsError
from ureca.masks.generators.everything import EverythingGenerator
from ureca.masks.generators.prompted_network import EmbeddedImage, PromptBatch, vanishes_at
from ureca.masks.generators.settings import AutomaticMaskSettings, ModelType, SamConfig, SamModelSettings
from ureca.masks.mask import Mask

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam


_ENCODER_WIDTHS: dict[ModelType, int] = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768}
_WIDTH_KEY = "image_encoder.patch_embed.proj.weight"  # [width, 3, patch, patch]
_MAX_LISTED_KEYS = 5


class SamNetwork:
    """Segment Anything as a ``PromptedNetwork``, by its authors' package.

    Args:
        sam: network on its device.
    """

    def __init__(self, sam: Sam) -> None:
        from segment_anything.utils.transforms import ResizeLongestSide

        self.model = sam.eval()
        self.device = sam.device
        self.input_side_px = int(sam.image_encoder.img_size)
        self.mask_threshold = float(sam.mask_threshold)
        # A decoder's activations of more points leave the caches of a processor, and its time a point doubles.
        self.max_prompts = 4 if self.device.type == "cpu" else None
        self._resizing = ResizeLongestSide(self.input_side_px)
        self._positions: torch.Tensor | None = None

    def encode(self, pixels: npt.NDArray[np.uint8]) -> EmbeddedImage:
        """Encode an image, uint8 RGB [H, W, 3]."""
        import torch

        with torch.inference_mode():
            resized = torch.as_tensor(self._resizing.apply_image(pixels), device=self.device)
            values = self.model.preprocess(resized.permute(2, 0, 1).contiguous()[None])
            return EmbeddedImage((self.model.image_encoder(values),), *pixels.shape[:2])

    def decode(self, image: EmbeddedImage, prompts: PromptBatch, *, several: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the masks of prompts; see ``PromptedNetwork``."""
        import torch

        points = boxes = None
        size = (image.height_px, image.width_px)
        if prompts.points_xy is not None:
            coordinates = self._resizing.apply_coords(prompts.points_xy, size)
            labels = torch.as_tensor(prompts.labels, dtype=torch.int, device=self.device)
            points = (torch.as_tensor(coordinates, device=self.device), labels)
        if prompts.boxes_xyxy is not None:
            resized = self._resizing.apply_boxes(prompts.boxes_xyxy, size)
            boxes = torch.as_tensor(resized, dtype=torch.float, device=self.device)
        with torch.inference_mode():
            if self._positions is None:
                self._positions = self.model.prompt_encoder.get_dense_pe()
            sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=None)
            logits, qualities = self.model.mask_decoder(
                image_embeddings=image.features[0],
                image_pe=self._positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=several,
            )
        return logits, qualities

    def upscale(self, logits: torch.Tensor, image: EmbeddedImage) -> torch.Tensor:
        """Upscale logits [M, h, w] to the size of the image, float32 [M, H, W]."""
        size = (image.height_px, image.width_px)
        input_size = self._resizing.get_preprocess_shape(*size, self.input_side_px)
        upscaled: torch.Tensor = self.model.postprocess_masks(logits[:, None], input_size, size)[:, 0]
        return upscaled

    def vanishes(self, height_px: int, width_px: int) -> bool:
        """Return True if the shorter side has no pixel at the network's input size."""
        return vanishes_at(self.input_side_px, height_px, width_px)


class SamMaskGenerator:
    """Runs "segment everything" on an image.

    Attributes:
        name: name of the method and its checkpoint.
        network: network on its device, which can also be prompted with boxes or points.
    """

    def __init__(self, settings: SamConfig) -> None:
        """Build the model and load its weights.

        Raises:
            SettingsError: segment-anything or OpenCV is needed and missing, the checkpoint cannot be used, or the
                device does not exist.
        """
        self._set_up(load_sam(settings), settings, f"sam {settings.model_type} {settings.checkpoint.name}")
        self.images_in_flight = 1 if self.network.device.type == "cpu" else settings.images_in_flight

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
        self.name = name
        self.network = SamNetwork(sam)
        self.images_in_flight = 1
        self._generator = EverythingGenerator(self.network, settings)

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Return the masks of an image; see ``EverythingGenerator.generate``.

        Args:
            image: uint8 RGB [H, W, 3], EXIF rotation applied.
            annotation: not used.

        Raises:
            ImageError: the image is so elongated that it vanishes at the model's input size.
            DataError: ``out_of_memory``.
        """
        return self._generator.generate(image)


def load_sam(settings: SamModelSettings) -> Sam:
    """Load the network with its weights onto its device.

    Raises:
        SettingsError: segment-anything is missing, the checkpoint cannot be used, or the device does not exist.
    """
    require_segment_anything()
    device = torch_device(settings.device)
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
