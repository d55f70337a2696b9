"""Masks from SAM 2, SAM 3 and HQ-SAM, through the classes of transformers.

No code and no pickled object of a checkpoint is loaded. The encoder and the mask decoder run in half precision on a
GPU, with PyTorch's fused attention. Prompts stay in float32: in bfloat16 a coordinate of 1000 px is off by up to 2 px.
"""

from __future__ import annotations

from dataclasses import replace
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ureca.devices import DtypeName, torch_device, torch_dtype
from ureca.errors import SettingsError
from ureca.extras import not_installed
from ureca.masks import rle as rle_codec
from ureca.masks.generators.everything import MAX_UPSCALED_BYTES, EverythingGenerator
from ureca.masks.generators.mask_tensors import inclusive_boxes, not_suppressed, run_lengths
from ureca.masks.generators.prompted_network import EmbeddedImage, PromptBatch, vanishes_at
from ureca.masks.generators.settings import (
    Sam2Config,
    Sam3Config,
    SamHqConfig,
    TransformersSamSettings,
)
from ureca.masks.mask import Mask
from ureca.memory import in_parts_that_fit
from ureca.wording import first_line

if TYPE_CHECKING:
    import torch

ModelName = Literal["sam2", "sam3", "sam-hq"]

_MODEL_CLASSES: dict[ModelName, str] = {"sam2": "Sam2Model", "sam3": "Sam3TrackerModel", "sam-hq": "SamHQModel"}
"""Classes of transformers that take points and boxes."""

_BYTES_PER_TEXT_PIXEL = 10
"""Probabilities in float32, bool masks and run lengths."""


class TransformersSamNetwork:
    """A model of transformers that is prompted with points and boxes, as a ``PromptedNetwork``.

    Args:
        model: ``Sam2Model``, ``Sam3TrackerModel`` or ``SamHQModel``.
        processor: image processor of its checkpoint.
        device: device to run on.
        dtype: data type of the encoder and the mask decoder.
    """

    mask_threshold = 0.0

    def __init__(self, model: Any, processor: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model.to(device).eval()
        for part in (model.vision_encoder, model.mask_decoder):
            part.to(dtype)
        self._processor = processor
        self._dtype = dtype
        self._positions: torch.Tensor | None = None
        self.device = device
        # HQ-SAM keeps the proportions of an image and pads it, as SAM does; the others stretch it to a square.
        self._keeps_proportions = processor.size.get("longest_edge") is not None
        self.input_side_px = int(processor.size["longest_edge" if self._keeps_proportions else "height"])
        self.max_prompts = 4 if device.type == "cpu" else None

    def encode(self, pixels: npt.NDArray[np.uint8]) -> EmbeddedImage:
        """Encode an image, uint8 RGB [H, W, 3]; it is resized and normalized on the device."""
        import torch

        with torch.inference_mode():
            inputs = self._processor(
                images=pixels, return_tensors="pt", input_data_format="channels_last", device=self.device
            )
            encoded = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device, self._dtype))
            # HQ-SAM's decoder takes the features of the first layer with global attention, too.
            features = (encoded[0], encoded[1][0]) if self._keeps_proportions else tuple(encoded)
            return EmbeddedImage([each.to(self._dtype) for each in features], *pixels.shape[:2])

    def decode(self, image: EmbeddedImage, prompts: PromptBatch, *, several: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the masks of prompts; see ``PromptedNetwork``."""
        import torch

        scale = np.array([size / side for size, side in zip(self._input_size(image), _size(image), strict=True)])[::-1]
        points = labels = boxes = None
        if prompts.points_xy is not None:
            points = torch.as_tensor(prompts.points_xy * scale, dtype=torch.float32, device=self.device)[None]
            labels = torch.as_tensor(prompts.labels, dtype=torch.int32, device=self.device)[None]
        if prompts.boxes_xyxy is not None:
            corners = prompts.boxes_xyxy * np.concatenate([scale, scale])
            boxes = torch.as_tensor(corners, dtype=torch.float32, device=self.device)[None]
        with torch.inference_mode():
            if self._positions is None:
                self._positions = self.model.get_image_wide_positional_embeddings().to(self._dtype)
            sparse, dense = self.model.prompt_encoder(
                input_points=points, input_labels=labels, input_boxes=boxes, input_masks=None
            )
            if self._keeps_proportions:
                first, *more = image.features
                arguments = {"hq_token_only": False, "intermediate_embeddings": more}
            else:
                *more, first = image.features
                arguments = {"high_resolution_features": more}
            logits, qualities, *_ = self.model.mask_decoder(
                image_embeddings=first,
                image_positional_embeddings=self._positions,
                sparse_prompt_embeddings=sparse.to(self._dtype),
                dense_prompt_embeddings=dense.to(self._dtype),
                multimask_output=several,
                **arguments,
            )
        return logits[0], qualities[0].float()

    def upscale(self, logits: torch.Tensor, image: EmbeddedImage) -> torch.Tensor:
        """Upscale logits [M, h, w] to the size of the image, float32 [M, H, W]."""
        from torch.nn.functional import interpolate

        maps = logits[:, None].float()
        if self._keeps_proportions:
            maps = interpolate(maps, (self.input_side_px,) * 2, mode="bilinear", align_corners=False)
            height, width = self._input_size(image)
            maps = maps[..., :height, :width]
        return interpolate(maps, _size(image), mode="bilinear", align_corners=False)[:, 0]

    def vanishes(self, height_px: int, width_px: int) -> bool:
        """Return True if the shorter side has no pixel at the network's input size."""
        return self._keeps_proportions and vanishes_at(self.input_side_px, height_px, width_px)

    def _input_size(self, image: EmbeddedImage) -> tuple[int, int]:
        """Return height and width of the image at the input of the encoder, without the padding."""
        if not self._keeps_proportions:
            return self.input_side_px, self.input_side_px
        scale = self.input_side_px / max(_size(image))
        return int(image.height_px * scale + 0.5), int(image.width_px * scale + 0.5)


def _size(image: EmbeddedImage) -> tuple[int, int]:
    return image.height_px, image.width_px


class TransformersSamGenerator:
    """Runs "segment everything" on an image, by a model of transformers.

    Attributes:
        name: name of the method and its checkpoint.
        network: network on its device, which can also be prompted with boxes or points.
        images_in_flight: images that overlap.
    """

    _model: ModelName

    def __init__(self, settings: TransformersSamSettings) -> None:
        """Load the checkpoint.

        Raises:
            SettingsError: transformers or torchvision is missing or too old, the checkpoint cannot be used, or the
                device does not exist.
        """
        self.name = f"{self._model} {settings.checkpoint}"
        self.network = load_network(self._model, settings.checkpoint, settings.device, settings.dtype)
        self.images_in_flight = 1 if self.network.device.type == "cpu" else settings.images_in_flight
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


class Sam2MaskGenerator(TransformersSamGenerator):
    """Masks of everything by SAM 2 (Ravi et al. 2024)."""

    _model: ModelName = "sam2"

    def __init__(self, settings: Sam2Config) -> None:
        """Load the checkpoint; see ``TransformersSamGenerator``."""
        super().__init__(settings)


class SamHqMaskGenerator(TransformersSamGenerator):
    """Masks of everything by HQ-SAM (Ke et al. 2023)."""

    _model: ModelName = "sam-hq"

    def __init__(self, settings: SamHqConfig) -> None:
        """Load the checkpoint; see ``TransformersSamGenerator``."""
        super().__init__(settings)


class Sam3MaskGenerator(TransformersSamGenerator):
    """Masks by SAM 3: of everything, or of all instances of phrases."""

    _model: ModelName = "sam3"

    def __init__(self, settings: Sam3Config) -> None:
        """Load the checkpoint; see ``TransformersSamGenerator``."""
        self.text_network = None
        if not settings.text:
            super().__init__(settings)
            return
        self.name = f"sam3 {settings.checkpoint}: {', '.join(settings.text)}"
        _require_packages()
        device = torch_device(settings.device)
        model, processor = _load("Sam3Model", settings.checkpoint, "AutoProcessor")
        self.text_network = _TextPrompted(model.to(device, torch_dtype(settings.dtype, device)), processor, settings)
        self.images_in_flight = 1 if device.type == "cpu" else settings.images_in_flight

    def generate(self, image: npt.NDArray[np.uint8], annotation: bytes | None = None) -> list[Mask]:
        """Return the masks of everything; with ``text``, of all instances of the phrases, with the class of each.

        An instance that fits two phrases has the class that fits it better (``box_nms_thresh``).

        Args:
            image: uint8 RGB [H, W, 3], EXIF rotation applied.
            annotation: not used.

        Raises:
            DataError: ``out_of_memory``.
        """
        return self._generator.generate(image) if self.text_network is None else self.text_network.generate(image)


class _TextPrompted:
    """SAM 3 with phrases; the text is encoded once, and each image once for all phrases."""

    def __init__(self, model: Any, processor: Any, settings: Sam3Config) -> None:
        import torch

        self.model, self._processor, self._settings = model.eval(), processor, settings
        self._phrases = []
        with torch.inference_mode():
            for phrase in settings.text:
                tokens = processor.tokenizer(
                    phrase, return_tensors="pt", padding="max_length", max_length=32, truncation=True
                ).to(model.device)
                # Only the text: an attention mask is used again beside it.
                embedded = model.get_text_features(**tokens, return_dict=True)
                self._phrases.append((phrase, embedded, tokens["attention_mask"]))

    def generate(self, pixels: npt.NDArray[np.uint8]) -> list[Mask]:
        import torch

        size = (pixels.shape[0], pixels.shape[1])
        rles, boxes, scores, classes = [], [np.zeros((0, 4), np.int64)], [np.zeros(0, np.float32)], []
        with torch.inference_mode():
            inputs = self._processor.image_processor(
                images=pixels, return_tensors="pt", input_data_format="channels_last", device=self.model.device
            )
            values = inputs["pixel_values"].to(self.model.device, self.model.dtype)
            features = self.model.get_vision_features(pixel_values=values)
            for phrase, embedded, attended in self._phrases:
                outputs = self.model(vision_embeds=features, text_embeds=embedded, attention_mask=attended)
                found = outputs.pred_logits[0].float().sigmoid()
                if outputs.presence_logits is not None:
                    found = found * outputs.presence_logits[0].float().sigmoid()
                kept = (found > self._settings.text_score_thresh).nonzero()[:, 0]
                num_masks = max(1, MAX_UPSCALED_BYTES // (_BYTES_PER_TEXT_PIXEL * size[0] * size[1]))
                for _, (of_part, boxes_of_part) in in_parts_that_fit(
                    lambda part: _instances(part, size),
                    outputs.pred_masks[0][kept],
                    num_masks,
                    f"the upscaling of one mask to {size[1]} x {size[0]} px",
                ):
                    rles += of_part
                    boxes.append(boxes_of_part)
                scores.append(found[kept].cpu().numpy())
                classes += [phrase] * len(kept)
        all_scores, all_boxes = np.concatenate(scores), np.concatenate(boxes)
        masks: list[Mask] = []
        for position in not_suppressed(all_boxes, all_scores, self._settings.box_nms_thresh).tolist():
            mask = Mask(
                id=len(masks) + 1,
                rle=rles[position],
                bbox_xywh=rle_codec.inclusive_box_xywh(rles[position]),
                area_px=rle_codec.area_px(rles[position]),
                predicted_iou=float(all_scores[position]),
            )
            if mask.area_px:
                masks.append(replace(mask, category=classes[position]))
        return masks


def _instances(logits: torch.Tensor, size: tuple[int, int]) -> tuple[list[rle_codec.Rle], npt.NDArray[np.int64]]:
    """Return run lengths and boxes of the instances of logits, [M, h, w], in an image of a size, (height, width)."""
    from torch.nn.functional import interpolate

    probabilities = logits.float().sigmoid()[None]
    masks = interpolate(probabilities, size, mode="bilinear", align_corners=False)[0] > 0.5
    boxes = inclusive_boxes(masks)
    return run_lengths(masks, boxes, (0, 0, size[1], size[0]), size), boxes


def load_network(model: ModelName, checkpoint: str, device: str, dtype: DtypeName) -> TransformersSamNetwork:
    """Load a network that is prompted with points and boxes onto its device.

    Args:
        model: SAM 2, SAM 3 or HQ-SAM.
        checkpoint: folder or name on the hub, in transformers' format.
        device: ``auto`` or name of a torch device.
        dtype: data type of the encoder and the mask decoder.

    Raises:
        SettingsError: transformers or torchvision is missing or too old, the checkpoint cannot be used, or the
            device does not exist.
    """
    _require_packages()
    on_device = torch_device(device)
    loaded, processor = _load(_MODEL_CLASSES[model], checkpoint, "AutoImageProcessor")
    return TransformersSamNetwork(loaded, processor, on_device, torch_dtype(dtype, on_device))


def _load(model_class: str, checkpoint: str, companion: str) -> tuple[Any, Any]:
    """Load a model and its processor, on the CPU and in float32.

    Raises:
        SettingsError: transformers is too old, or the checkpoint is unreadable or that of another model.
    """
    import transformers
    from safetensors import SafetensorError

    if not hasattr(transformers, model_class):
        raise SettingsError(
            f"transformers {transformers.__version__} has no {model_class}: pip install --upgrade transformers"
        )
    try:
        processor = getattr(transformers, companion).from_pretrained(checkpoint, trust_remote_code=False)
        model, report = getattr(transformers, model_class).from_pretrained(
            checkpoint, attn_implementation="sdpa", dtype="float32", weights_only=True, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise SettingsError(_cannot_be_loaded(checkpoint, model_class, reason)) from error
    except UnpicklingError as error:
        raise SettingsError(_cannot_be_loaded(checkpoint, model_class, "its weights are no plain tensors")) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise SettingsError(
            _cannot_be_loaded(checkpoint, model_class, f"{len(missing)} weights are missing, such as {missing[0]}")
        )
    return model, processor


def _cannot_be_loaded(checkpoint: str, model_class: str, reason: str) -> str:
    return (
        f"checkpoint '{checkpoint}' cannot be loaded: it must be a folder, or the name of a model on the hub, that "
        f"transformers' {model_class} reads ({reason})"
    )


def _require_packages() -> None:
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise not_installed("this mask generator", error, "model") from error
