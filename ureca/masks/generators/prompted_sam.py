"""Masks of given boxes and points, by Segment Anything and its successors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from ureca.errors import AnnotationError
from ureca.hashing import digest
from ureca.masks.annotations import load_json, parse_annotations
from ureca.masks.frames import noted_as_ambiguous, stored_size, to_upright
from ureca.masks.generators.everything import max_upscaled_masks
from ureca.masks.generators.mask_tensors import inclusive_boxes, run_lengths
from ureca.masks.generators.prompted_network import EmbeddedImage, PromptBatch, PromptedNetwork, check_proportions
from ureca.masks.generators.settings import Frame, PromptedSamConfig, SamModelSettings
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt, parse_prompts
from ureca.masks.rle import Rle, area_px, box_xywh, inclusive_box_xywh
from ureca.memory import free_device_bytes, in_parts_that_fit, is_out_of_memory, release_memory

if TYPE_CHECKING:
    import torch

_MAX_CACHED_BYTES = 2**29
"""Features of the latest images: about 100 of SAM's, which take 4 MiB each, and 60 of SAM 2's in half precision."""

_MAX_PROMPTS = 64
"""Prompts of one image that are decoded at a time, on a GPU."""


class PromptedSam:
    """Turns the boxes and points of an image's prompt file into masks; the image is encoded once for all of them.

    Attributes:
        name: name of the method and its checkpoint.
    """

    uses_orientation = True

    def __init__(self, settings: PromptedSamConfig) -> None:
        """Build the model and load its weights.

        Raises:
            SettingsError: segment-anything or transformers is missing, the checkpoint cannot be used, or there is no
                such device.
        """
        if settings.network == "sam":
            from ureca.masks.generators.sam import load_sam

            network: PromptedNetwork = load_sam(
                SamModelSettings(
                    model_type=settings.model_type,
                    checkpoint=Path(settings.checkpoint),
                    device=settings.device,
                    dtype=settings.dtype,
                )
            )
            name = f"prompted sam {settings.model_type} {Path(settings.checkpoint).name}"
        else:
            from ureca.masks.generators.transformers_sam import load_network

            network = load_network(settings.network, settings.checkpoint, settings.device, settings.dtype)
            name = f"prompted {settings.network} {settings.checkpoint}"
        self._set_up(network, name, settings.frame)

    @classmethod
    def from_network(cls, network: PromptedNetwork, name: str = "prompted sam", frame: Frame = "auto") -> Self:
        """Use a network that is loaded already; of the latest images the features stay on its device."""
        prompted = cls.__new__(cls)
        prompted._set_up(network, name, frame)
        return prompted

    def _set_up(self, network: PromptedNetwork, name: str, frame: Frame) -> None:
        self.name = name
        self._frame = frame
        self.network = network
        self._encoded: OrderedDict[bytes, EmbeddedImage] = OrderedDict()

    def generate(
        self, image: npt.NDArray[np.uint8], annotation: bytes | None = None, *, orientation: int = 1
    ) -> list[Mask]:
        """Return the masks of a prompt file (``ureca.masks.prompts``), with its ids and in its order.

        An annotation file (``ureca.masks.annotations``) is a prompt file, too: its boxes without a segmentation are
        prompts, and other masks stay as they are.

        Args:
            image: uint8 RGB [H, W, 3], EXIF rotation applied.
            annotation: content of the prompt file; None: the image has none.
            orientation: EXIF orientation of the image file, 1 to 8.

        Raises:
            AnnotationError: ``missing_annotation``, or a kind of ``parse_prompts`` or ``parse_annotations``.
            ImageError: the image is so elongated that it vanishes at the model's input size.
        """
        if annotation is None:
            raise AnnotationError("missing_annotation", "the image has no prompt file")
        content = load_json(annotation)
        if isinstance(content, dict) and "annotations" in content and "prompts" not in content:
            return self._masks_of_boxes(image, annotation, orientation)
        prompts = parse_prompts(annotation)
        if orientation != 1 and self._frame == "stored":
            size = (image.shape[0], image.shape[1])
            prompts = [(id, prompt.turned(size, orientation)) for id, prompt in prompts]
        masks = self.masks(image, prompts)
        return noted_as_ambiguous(masks, orientation) if orientation != 1 and self._frame == "auto" else masks

    def masks(self, image: npt.NDArray[np.uint8], prompts: Sequence[tuple[int, Prompt]]) -> list[Mask]:
        """Return a mask for each prompt.

        A single point can mean a part, an object or a group: of SAM's three masks it gets the one with the highest
        predicted quality. A prompt outside the image has an empty mask, and so has one for which SAM sets no
        pixel. Prompts of the same form are decoded together.

        Args:
            image: uint8 RGB [H, W, 3].
            prompts: prompts with their ids, which are distinct.

        Raises:
            ImageError: the image is so elongated that it vanishes at the model's input size.
            DataError: ``out_of_memory``: there is not enough memory even for one prompt.
        """
        check_proportions(self.network, image)
        if not prompts:
            return []
        height, width = image.shape[:2]
        found: dict[int, Mask] = {}
        of_form: dict[tuple[bool, int], list[_PromptArrays]] = {}
        for id, prompt in prompts:
            arrays = _PromptArrays.of(id, prompt, height, width)
            if arrays is None:
                found[id] = Mask.from_array(id, np.zeros((height, width), np.bool_))
            else:
                of_form.setdefault((arrays.box_xyxy is None, len(arrays.points_xy)), []).append(arrays)
        encoded = self._encode(image)
        for same_form in of_form.values():
            for _, masks in in_parts_that_fit(
                lambda part: self._decode(part, encoded),
                same_form,
                self.network.max_prompts or _MAX_PROMPTS,
                "the mask decoder with one prompt",
            ):
                found |= {mask.id: mask for mask in masks}
        return [found[id] for id, _ in prompts]

    def _decode(self, prompts: Sequence[_PromptArrays], image: EmbeddedImage) -> list[Mask]:
        """Return the masks of prompts that have the same number of points, and all a box or none."""
        import torch

        size = (image.height_px, image.width_px)
        num_points, boxes = len(prompts[0].points_xy), [each.box_xyxy for each in prompts if each.box_xyxy is not None]
        batch = PromptBatch(
            points_xy=np.stack([each.points_xy for each in prompts]) if num_points else None,
            labels=np.stack([each.labels for each in prompts]) if num_points else None,
            boxes_xyxy=np.stack(boxes) if boxes else None,
        )
        logits, qualities = self.network.decode(image, batch, several=not boxes and num_points == 1)
        best = qualities.argmax(dim=1)
        chosen = logits[torch.arange(len(prompts), device=logits.device), best]
        predicted = qualities.amax(dim=1).float().cpu().numpy()
        rles = []
        for _, of_part in in_parts_that_fit(
            lambda part: _run_lengths(self.network.upscale(part, image) > self.network.mask_threshold),
            chosen,
            max_upscaled_masks(self.network, size),
            f"the upscaling of one mask to {size[1]} x {size[0]} px",
        ):
            rles += of_part
        return [
            Mask(
                id=prompt.id,
                rle=rle,
                bbox_xywh=inclusive_box_xywh(rle),
                area_px=area_px(rle),
                predicted_iou=float(quality),
            )
            for prompt, rle, quality in zip(prompts, rles, predicted, strict=True)
        ]

    def _encode(self, image: npt.NDArray[np.uint8]) -> EmbeddedImage:
        """Encode an image, or find its features: clicks on one image encode it once.

        The features that are kept take at most ``_MAX_CACHED_BYTES`` and a quarter of the memory that is free; where
        an image lacks memory, it is encoded again without them.
        """
        key = digest([image])
        if (found := self._encoded.get(key)) is not None:
            self._encoded.move_to_end(key)
            return found
        try:
            encoded = self.network.encode(image)
        except Exception as error:
            if not self._encoded or not is_out_of_memory(error):
                raise
            self._encoded.clear()
            release_memory(error)
            encoded = self.network.encode(image)
        cached = sum(each.num_bytes for each in self._encoded.values())
        budget = min(_MAX_CACHED_BYTES, (cached + free_device_bytes(self.network.device)) // 4)
        while self._encoded and cached + encoded.num_bytes > budget:
            _, oldest = self._encoded.popitem(last=False)
            cached -= oldest.num_bytes
        if encoded.num_bytes <= budget:
            self._encoded[key] = encoded
        return encoded

    def _masks_of_boxes(self, image: npt.NDArray[np.uint8], annotation: bytes, orientation: int) -> list[Mask]:
        upright_size = (image.shape[0], image.shape[1])
        size = stored_size(upright_size, orientation) if self._frame == "stored" else upright_size
        annotations = parse_annotations(annotation, size=size, boxes=True)
        size = (annotations.height_px, annotations.width_px)
        masks = to_upright(annotations, size, upright_size, orientation, self._frame)
        boxes = {mask.id: box_xywh(mask.rle) for mask in masks if "box_as_mask" in mask.notes and mask.area_px}
        if not boxes:
            return masks
        segmented = self.masks(image, [(id, Prompt(bbox_xywh=box)) for id, box in boxes.items()])
        found = {mask.id: mask for mask in segmented}
        for place, mask in enumerate(masks):
            if mask.id in found:
                notes = {kind: message for kind, message in mask.notes.items() if kind != "box_as_mask"}
                notes["segmented_box"] = "the mask is that of Segment Anything for its box"
                masks[place] = replace(found[mask.id], category=mask.category, extra=mask.extra, notes=notes)
        return masks


@dataclass(frozen=True, eq=False)
class _PromptArrays:
    """A prompt inside its image.

    Attributes:
        id: id of the prompt.
        points_xy: points in pixels, float64 [P, 2].
        labels: 1 for points inside the object and 0 for points outside, int64 [P].
        box_xyxy: left, top, right and bottom within the image, float64 [4]; None: points alone.
    """

    id: int
    points_xy: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    box_xyxy: npt.NDArray[np.float64] | None

    @classmethod
    def of(cls, id: int, prompt: Prompt, height_px: int, width_px: int) -> Self | None:
        """Return the arrays of a prompt; None if it is outside the image."""
        points = np.array(prompt.points_xy, dtype=np.float64).reshape(-1, 2)
        if not ((points >= 0) & (points <= (width_px, height_px))).all():
            return None
        box = None
        if prompt.bbox_xywh is not None:
            x, y, width, height = prompt.bbox_xywh
            corners = np.array([x, y, x + width, y + height], dtype=np.float64)
            box = np.clip(corners, 0, (width_px, height_px, width_px, height_px))
            if (box[2:] <= box[:2]).any():
                return None
        return cls(id, points, np.array(prompt.labels or [1] * len(points), dtype=np.int64), box)


def _run_lengths(masks: torch.Tensor) -> list[Rle]:
    """Encode masks of whole images, bool [M, H, W]."""
    _, height, width = masks.shape
    return run_lengths(masks, inclusive_boxes(masks), (0, 0, width, height), (height, width))
