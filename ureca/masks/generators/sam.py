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
from ureca.memory import in_parts_that_fit

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam


_ENCODER_WIDTHS: dict[ModelType, int] = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768}
_WIDTH_KEY = "image_encoder.patch_embed.proj.weight"  # [width, 3, patch, patch]
_MAX_LISTED_KEYS = 5

_MAX_UPSCALED_BYTES = 2**30
"""Bytes that the masks take which are upscaled to the size of the image at a time."""

_BYTES_PER_UPSCALED_PIXEL = 10
"""Logits in float32, and the bool masks and run lengths that are made of them."""


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
    import torch
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.utils import amg
    from torchvision.ops.boxes import batched_nms

    class _BoundedMaskGenerator(SamAutomaticMaskGenerator):  # type: ignore[misc]
        """The package's generator, with the same masks in bounded memory.

        The package upscales the three masks of all points of a batch to the size of the image before it filters them:
        64 points on an image of 40 megapixels take 28 GiB. Here the predicted quality filters the masks at the size of
        the decoder's output, and the others are upscaled, filtered and encoded a few at a time. Where memory runs out
        even so, fewer points and fewer masks are tried.
        """

        def _process_crop(
            self, image: Any, crop_box: list[int], crop_layer_idx: int, orig_size: tuple[int, ...]
        ) -> amg.MaskData:
            left, top, right, bottom = crop_box
            self.predictor.set_image(image[top:bottom, left:right, :])
            try:
                crop_size = (bottom - top, right - left)
                points = self.point_grids[crop_layer_idx] * np.array(crop_size)[None, ::-1]
                found = amg.MaskData()
                for _, of_points in in_parts_that_fit(
                    lambda part: self._process_batch(part, crop_size, crop_box, orig_size),
                    points,
                    self.points_per_batch,
                    "SAM's mask decoder with one point",
                ):
                    found.cat(of_points)
            finally:
                self.predictor.reset_image()
            none = torch.zeros(len(found["boxes"]))  # the masks have no categories
            found.filter(batched_nms(found["boxes"].float(), found["iou_preds"], none, self.box_nms_thresh))
            found["boxes"] = amg.uncrop_boxes_xyxy(found["boxes"], crop_box)
            found["points"] = amg.uncrop_points(found["points"], crop_box)
            # Without a mask this must be [0, 4] for crops to be concatenated.
            found["crop_boxes"] = torch.tensor([crop_box for _ in found["rles"]]).reshape(-1, 4)
            return found

        def _process_batch(
            self, points: Any, im_size: tuple[int, ...], crop_box: list[int], orig_size: tuple[int, ...]
        ) -> amg.MaskData:
            predictor, sam = self.predictor, self.predictor.model
            coordinates = torch.as_tensor(predictor.transform.apply_coords(points, im_size), device=predictor.device)
            labels = torch.ones(len(coordinates), dtype=torch.int, device=predictor.device)
            sparse, dense = sam.prompt_encoder(points=(coordinates[:, None], labels[:, None]), boxes=None, masks=None)
            low, quality = sam.mask_decoder(
                image_embeddings=predictor.features,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            batch = amg.MaskData(
                low=low.flatten(0, 1),
                iou_preds=quality.flatten(0, 1),
                points=torch.as_tensor(points.repeat(low.shape[1], axis=0)),
            )
            del low
            if self.pred_iou_thresh > 0.0:
                batch.filter(batch["iou_preds"] > self.pred_iou_thresh)
            bytes_per_mask = _BYTES_PER_UPSCALED_PIXEL * (orig_size[0] * orig_size[1] + sam.image_encoder.img_size**2)
            found = amg.MaskData()
            start = 0
            for length, upscaled in in_parts_that_fit(
                lambda part: self._upscale(part, crop_box, orig_size),
                batch["low"],
                max(1, _MAX_UPSCALED_BYTES // bytes_per_mask),
                f"the upscaling of one mask to {orig_size[1]} x {orig_size[0]} px",
            ):
                of_part, kept = upscaled
                rows = torch.arange(start, start + length, device=predictor.device)[kept]
                of_part["iou_preds"] = batch["iou_preds"][rows]
                of_part["points"] = batch["points"][rows.cpu()]
                found.cat(of_part)
                start += length
            if not start:  # the package's generator needs the names
                found = amg.MaskData(
                    boxes=torch.zeros(0, 4, dtype=torch.long, device=predictor.device),
                    stability_score=batch["iou_preds"][:0],
                    rles=[],
                    iou_preds=batch["iou_preds"][:0],
                    points=batch["points"][:0],
                )
            return found

        def _upscale(
            self, low: torch.Tensor, crop_box: list[int], orig_size: tuple[int, ...]
        ) -> tuple[amg.MaskData, torch.Tensor]:
            """Upscale logits [N, h, w], and encode the masks that are stable and not cut off by their crop.

            Returns:
                Boxes, scores and run lengths of these masks, and their indices among the N.
            """
            predictor, threshold = self.predictor, self.predictor.model.mask_threshold
            logits = predictor.model.postprocess_masks(low[:, None], predictor.input_size, predictor.original_size)
            logits = logits[:, 0]
            scores = amg.calculate_stability_score(logits, threshold, self.stability_score_offset)
            kept = torch.arange(len(logits), device=logits.device)
            if self.stability_score_thresh > 0.0:
                kept = kept[scores >= self.stability_score_thresh]
            masks = logits[kept] > threshold
            del logits
            boxes = amg.batched_mask_to_box(masks)
            inside = ~amg.is_box_near_crop_edge(boxes, crop_box, [0, 0, orig_size[1], orig_size[0]])
            kept, boxes, masks = kept[inside], boxes[inside], masks[inside]
            masks = amg.uncrop_masks(masks, crop_box, *orig_size)
            return amg.MaskData(boxes=boxes, stability_score=scores[kept], rles=_run_lengths(masks)), kept

    return _BoundedMaskGenerator


def _run_lengths(masks: torch.Tensor) -> list[dict[str, Any]]:
    """Encode masks, bool [N, H, W], as uncompressed COCO run lengths, with one transfer from their device.

    ``segment_anything`` does the same with a comparison, a transfer and a synchronization for each mask.
    """
    count, height, width = masks.shape
    columns = masks.transpose(1, 2).flatten(1)  # COCO counts down the columns
    if columns.device.type == "cpu":
        rows, positions = np.nonzero(columns[:, 1:].numpy() != columns[:, :-1].numpy())
    else:
        changes = (columns[:, 1:] ^ columns[:, :-1]).nonzero()
        rows, positions = changes.T.cpu().numpy()
    starts_inside = columns[:, 0].tolist() if height * width else [False] * count
    del columns
    ends = np.searchsorted(rows, np.arange(count + 1))
    encoded = []
    for index in range(count):
        borders = np.concatenate([[0], positions[ends[index] : ends[index + 1]] + 1, [height * width]])
        counts = np.diff(borders).tolist()
        encoded.append({"size": [height, width], "counts": [0, *counts] if starts_inside[index] else counts})
    return encoded


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
