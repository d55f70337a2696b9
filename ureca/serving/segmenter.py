"""What finds masks for the service: all of an image, or those of boxes and points."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ureca.images import Pixels
from ureca.proposals.protocol import Proposer
from ureca.regions.mask import Mask
from ureca.regions.prompts import Prompt
from ureca.serving.prompted_masks import among_masks
from ureca.settings.proposals import FromSam, FromSegments

_KEPT_IMAGES = 8

PromptedMasks = Callable[[Pixels, Sequence[tuple[int, Prompt]]], list[Mask]]


class Segmenter:
    """Finds masks; one image at a time, whatever the number of threads.

    The masks of the latest images are kept, so that clicking around in an image does not segment it again.

    Args:
        proposer: proposes the masks of an image.
        prompted: turns boxes and points into masks; None: by the proposer's masks, see ``among_masks``.
    """

    def __init__(self, proposer: Proposer, prompted: PromptedMasks | None = None) -> None:
        self.name = proposer.name
        self._proposer = proposer
        self._prompted = prompted
        self._one_at_a_time = threading.Lock()
        self._proposed: OrderedDict[bytes, list[Mask]] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: FromSegments | FromSam) -> Segmenter:
        """Load it.

        Raises:
            SettingsError: a package or the checkpoint is missing, or the device does not exist.
        """
        if isinstance(settings, FromSegments):
            from ureca.proposals.segments import SegmentsProposer

            return cls(SegmentsProposer(settings))
        from ureca.proposals.prompted_sam import PromptedSam
        from ureca.proposals.sam import SamProposer

        proposer = SamProposer(settings)
        return cls(proposer, PromptedSam.from_model(proposer.model, proposer.name).masks)

    def propose(self, pixels: Pixels) -> list[Mask]:
        """Masks of an image, uint8 RGB [H, W, 3], in the proposer's order.

        Raises:
            ImageError: the proposer cannot work on an image of this shape.
        """
        key = _fingerprint(pixels)
        with self._one_at_a_time:
            if key not in self._proposed:
                self._proposed[key] = self._proposer.propose(pixels)
            self._proposed.move_to_end(key)
            if len(self._proposed) > _KEPT_IMAGES:
                self._proposed.popitem(last=False)
            return self._proposed[key]

    def find(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """A mask for each prompt, in order and with its id; without a pixel where nothing fits.

        Raises:
            ImageError: the segmenter cannot work on an image of this shape.
        """
        if self._prompted is None:
            return among_masks(self.propose(pixels), prompts, *pixels.shape[:2])
        with self._one_at_a_time:
            return self._prompted(pixels, list(prompts.items()))


def _fingerprint(pixels: Pixels) -> bytes:
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
