"""Masks from the Segment Anything Model, by its authors' own package.

Checkpoints are loaded without running code that the file may contain. On a CPU in float32 the network computes what the
package does, to the bit. On a GPU, and in half precision, attention runs in PyTorch's fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ureca.devices import DtypeName, torch_device, torch_dtype
from ureca.errors import SettingsError
from ureca.extras import not_installed
from ureca.masks.generators.everything import EverythingGenerator
from ureca.masks.generators.prompted_network import EmbeddedImage, PromptBatch, vanishes_at
from ureca.masks.generators.settings import AutomaticMaskSettings, ModelType, SamConfig, SamModelSettings
from ureca.masks.mask import Mask
from ureca.wording import first_line

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam


_ENCODER_WIDTHS: dict[ModelType, int] = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768}
_WIDTH_KEY = "image_encoder.patch_embed.proj.weight"  # [width, 3, patch, patch]
_MAX_LISTED_KEYS = 5


class SamNetwork:
    """Segment Anything as a ``PromptedNetwork``, by its authors' package.

    Args:
        sam: network on its device. Its encoder and mask decoder are converted in place.
        dtype: data type of the encoder and the mask decoder. Prompts stay in float32: in bfloat16 a coordinate of
            1000 px is off by up to 2 px.
    """

    def __init__(self, sam: Sam, dtype: DtypeName = "auto") -> None:
        import torch
        from segment_anything.utils.transforms import ResizeLongestSide

        self.model = sam.eval()
        self.device = sam.device
        self._dtype = torch_dtype(dtype, self.device)
        for part in (sam.image_encoder, sam.mask_decoder):
            part.to(self._dtype)
        if self.device.type != "cpu" or self._dtype != torch.float32:
            use_fused_attention(sam)
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
            return EmbeddedImage((self.model.image_encoder(values.to(self._dtype)),), *pixels.shape[:2])

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
                self._positions = self.model.prompt_encoder.get_dense_pe().to(self._dtype)
            sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=None)
            logits, qualities = self.model.mask_decoder(
                image_embeddings=image.features[0],
                image_pe=self._positions,
                sparse_prompt_embeddings=sparse.to(self._dtype),
                dense_prompt_embeddings=dense.to(self._dtype),
                multimask_output=several,
            )
        return logits, qualities.float()

    def upscale(self, logits: torch.Tensor, image: EmbeddedImage) -> torch.Tensor:
        """Upscale logits [M, h, w] to the size of the image, float32 [M, H, W]."""
        size = (image.height_px, image.width_px)
        input_size = self._resizing.get_preprocess_shape(*size, self.input_side_px)
        upscaled: torch.Tensor = self.model.postprocess_masks(logits[:, None].float(), input_size, size)[:, 0]
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
        network = load_sam(settings)
        self._set_up(network, settings, f"sam {settings.model_type} {settings.checkpoint.name}")
        self.images_in_flight = 1 if self.network.device.type == "cpu" else settings.images_in_flight

    @classmethod
    def from_model(
        cls, sam: Sam, settings: AutomaticMaskSettings, name: str = "sam", dtype: DtypeName = "auto"
    ) -> Self:
        """Use a network that is built already, on its present device; see ``SamNetwork``.

        Raises:
            SettingsError: the settings need OpenCV and it is not installed.
        """
        mask_generator = cls.__new__(cls)
        mask_generator._set_up(SamNetwork(sam, dtype), settings, name)
        return mask_generator

    def _set_up(self, network: SamNetwork, settings: AutomaticMaskSettings, name: str) -> None:
        self.name = name
        self.network = network
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


def load_sam(settings: SamModelSettings) -> SamNetwork:
    """Load the network with its weights onto its device, in its data type.

    Raises:
        SettingsError: segment-anything is missing, the checkpoint cannot be used, or the device does not exist.
    """
    require_segment_anything()
    device = torch_device(settings.device)
    return SamNetwork(build_sam(settings.model_type, settings.checkpoint).to(device), settings.dtype)


def use_fused_attention(sam: Sam) -> None:
    """Have all layers of a network attend by ``scaled_dot_product_attention``, in place.

    The package's own layers keep all scores of a layer, in the image encoder of vit_h 1 GiB in float32, and softmax
    reads and writes them. The relative positions of the image encoder are a bias of the scores: the only tensor of that
    size that is left.
    """
    from segment_anything.modeling import image_encoder, transformer

    for module in sam.modules():
        if isinstance(module, image_encoder.Attention):
            module.forward = partial(_attend_within_image, module)
        elif isinstance(module, transformer.Attention):
            module.forward = partial(_attend_to_tokens, module)


def _attend_within_image(layer: Any, values: torch.Tensor) -> torch.Tensor:
    """Attend among the positions of windows or images, [B, H, W, C], as ``image_encoder.Attention`` does."""
    import torch
    from segment_anything.modeling.image_encoder import get_rel_pos

    num, height, width, num_channels = values.shape
    projected = layer.qkv(values).reshape(num, height * width, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys, contents = projected.unbind(0)
    bias = None
    if layer.use_rel_pos:
        if (found := getattr(layer, "positions_of_size", None)) is None or found[0] != (height, width):
            # The package looks them up again in every pass, by indices on the host: each look-up waits for the GPU.
            rows, columns = get_rel_pos(height, height, layer.rel_pos_h), get_rel_pos(width, width, layer.rel_pos_w)
            layer.positions_of_size = found = (height, width), rows, columns
        _, rows, columns = found
        at = queries.unflatten(2, (height, width))
        by_row = torch.einsum("bnhwc,hkc->bnhwk", at, rows)[..., :, None]
        by_column = torch.einsum("bnhwc,wkc->bnhwk", at, columns)[..., None, :]
        bias = (by_row + by_column).flatten(4).flatten(2, 3)
    attended = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, contents, attn_mask=bias, scale=layer.scale
    )
    projected_back: torch.Tensor = layer.proj(attended.transpose(1, 2).reshape(num, height, width, num_channels))
    return projected_back


def _attend_to_tokens(layer: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend between prompts and image, [B, N, C], as ``transformer.Attention`` does, with its argument names."""
    import torch

    queries, keys, contents = (
        projection(values).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
        for projection, values in ((layer.q_proj, q), (layer.k_proj, k), (layer.v_proj, v))
    )
    attended = torch.nn.functional.scaled_dot_product_attention(queries, keys, contents)
    projected: torch.Tensor = layer.out_proj(attended.transpose(1, 2).flatten(2))
    return projected


def require_segment_anything() -> None:
    """Check that the optional packages are installed.

    Raises:
        SettingsError: a package is missing; the message says how to install it.
    """
    try:
        import segment_anything  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise not_installed("the mask generator 'sam'", error, "sam") from error


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
        reason = first_line(error)
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
