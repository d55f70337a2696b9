"""Masks of given boxes and points by the Segment Anything Model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt

from ureca.errors import AnnotationError
from ureca.hashing import digest
from ureca.masks.annotations import load_json, parse_annotations
from ureca.masks.frames import noted_as_ambiguous, stored_size, to_upright
from ureca.masks.generators.prompted_network import EmbeddedImage, PromptBatch, PromptedNetwork, check_proportions
from ureca.masks.generators.sam import SamNetwork, load_sam
from ureca.masks.generators.settings import Frame, PromptedSamConfig
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt, parse_prompts
from ureca.masks.rle import box_xywh
from ureca.memory import free_device_bytes, is_out_of_memory, release_memory

_MAX_CACHED_BYTES = 2**29
"""Features of the latest images: about 100 of SAM's, which take 4 MiB each, and 60 of SAM 2's in half precision."""


class PromptedSam:
    """Turns the boxes and points of an image's prompt file into masks; the image is encoded once for all of them.

    Attributes:
        name: name of the method and its checkpoint.
    """

    uses_orientation = True

    def __init__(self, settings: PromptedSamConfig) -> None:
        """Build the model and load its weights.

        Raises:
            SettingsError: segment-anything is missing, the checkpoint cannot be used, or there is no such device.
        """
        name = f"prompted sam {settings.model_type} {settings.checkpoint.name}"
        self._set_up(SamNetwork(load_sam(settings)), name, settings.frame)

    @classmethod
    def from_network(cls, network: PromptedNetwork, name: str = "prompted sam", frame: Frame = "auto") -> Self:
        """Use a network that is loaded already; of the latest images the features stay on its device."""
        prompted = cls.__new__(cls)
        prompted._set_up(network, name, frame)
        return prompted

    def _set_up(self, network: PromptedNetwork, name: str, frame: Frame) -> None:
        self.name = name
        self._frame = frame
        self._network = network
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
        pixel.

        Args:
            image: uint8 RGB [H, W, 3].
            prompts: prompts with their ids.

        Raises:
            ImageError: the image is so elongated that it vanishes at the model's input size.
        """
        check_proportions(self._network, image)
        if not prompts:
            return []
        encoded = self._encode(image)
        return [self._mask(id, prompt, encoded) for id, prompt in prompts]

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
            encoded = self._network.encode(image)
        except Exception as error:
            if not self._encoded or not is_out_of_memory(error):
                raise
            self._encoded.clear()
            release_memory(error)
            encoded = self._network.encode(image)
        cached = sum(each.num_bytes for each in self._encoded.values())
        budget = min(_MAX_CACHED_BYTES, (cached + free_device_bytes(self._network.device)) // 4)
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

    def _mask(self, id: int, prompt: Prompt, image: EmbeddedImage) -> Mask:
        height, width = image.height_px, image.width_px
        points = np.array(prompt.points_xy, dtype=np.float64).reshape(-1, 2)
        labels = np.array(prompt.labels or [1] * len(points), dtype=np.int64)
        box = None
        if prompt.bbox_xywh is not None:
            x, y, box_width, box_height = prompt.bbox_xywh
            corners = np.array([x, y, x + box_width, y + box_height], dtype=np.float64)
            box = np.clip(corners, 0, (width, height, width, height))
        inside = bool(((points >= 0) & (points <= (width, height))).all())
        if not inside or (box is not None and (box[2:] <= box[:2]).any()):
            return Mask.from_array(id, np.zeros((height, width), np.bool_))
        batch = PromptBatch(
            points_xy=points[None] if len(points) else None,
            labels=labels[None] if len(points) else None,
            boxes_xyxy=None if box is None else box[None],
        )
        logits, qualities = self._network.decode(image, batch, several=box is None and len(points) == 1)
        best = int(qualities[0].argmax())
        upscaled = self._network.upscale(logits[0, best : best + 1], image)[0]
        pixels = (upscaled > self._network.mask_threshold).cpu().numpy()
        return Mask.from_array(id, pixels, predicted_iou=float(qualities[0, best]))
