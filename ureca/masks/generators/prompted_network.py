"""Networks that segment the object at a point or in a box, and the prompts that they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ureca.errors import ImageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class EmbeddedImage:
    """Features of an image, or of a crop of one, on the device of its network.

    Attributes:
        features: tensors that the decoder of the network takes.
        height_px: height of the image before it was resized.
        width_px: width of the image before it was resized.
    """

    features: Sequence[torch.Tensor]
    height_px: int
    width_px: int

    @property
    def num_bytes(self) -> int:
        """Memory of the features on their device."""
        return sum(each.numel() * each.element_size() for each in self.features)


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """N prompts for one image, each of the same number of points, in pixels of the image.

    Attributes:
        points_xy: points, float64 [N, P, 2]; None: the prompts are boxes alone.
        labels: 1 for points inside the object and 0 for points outside, int64 [N, P]; None without points.
        boxes_xyxy: left, top, right and bottom, float64 [N, 4]; None: the prompts are points alone.
    """

    points_xy: npt.NDArray[np.float64] | None = None
    labels: npt.NDArray[np.int64] | None = None
    boxes_xyxy: npt.NDArray[np.float64] | None = None


class PromptedNetwork(Protocol):
    """Network that encodes an image once, and then decodes masks from prompts.

    Attributes:
        device: device of the network.
        input_side_px: larger side of the image that the encoder sees.
        mask_threshold: logit from which a pixel is inside a mask.
        max_prompts: largest number of prompts that are decoded at a time on this device; None: no limit.
    """

    device: torch.device
    input_side_px: int
    mask_threshold: float
    max_prompts: int | None

    def encode(self, pixels: npt.NDArray[np.uint8]) -> EmbeddedImage:
        """Encode an image, uint8 RGB [H, W, 3]."""
        ...

    def decode(self, image: EmbeddedImage, prompts: PromptBatch, *, several: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the masks of prompts.

        Args:
            image: the encoded image.
            prompts: N prompts.
            several: True: masks of several granularities for each prompt, M = 3; False: M = 1.

        Returns:
            Logits at the resolution of the decoder, [N, M, h, w], and the predicted IoU of each mask, float [N, M].
        """
        ...

    def upscale(self, logits: torch.Tensor, image: EmbeddedImage) -> torch.Tensor:
        """Upscale logits [M, h, w] to the size of the image, float32 [M, H, W]."""
        ...

    def vanishes(self, height_px: int, width_px: int) -> bool:
        """Return True for an image so elongated that its shorter side has no pixel at the size of the input."""
        ...


def check_proportions(network: PromptedNetwork, pixels: npt.NDArray[np.uint8]) -> None:
    """Check that an image [H, W, 3] does not vanish when it is resized to the network's input.

    Raises:
        ImageError: ``too_elongated``.
    """
    height, width = pixels.shape[:2]
    if network.vanishes(height, width):
        side = network.input_side_px
        raise ImageError("too_elongated", f"SAM sees at most {side} px a side: {width} x {height} px vanishes")


def vanishes_at(input_side_px: int, height_px: int, width_px: int) -> bool:
    """Return True if an image whose larger side is resized to ``input_side_px`` keeps no pixel of its shorter side."""
    return min(height_px, width_px) * input_side_px / max(height_px, width_px) < 0.5
