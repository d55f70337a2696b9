"""What does the work of a request, wherever it runs."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from ureca.images import Pixels
from ureca.regions.mask import Mask
from ureca.regions.prompts import Prompt
from ureca.serving.engine import CaptionJob, Written


class Backend(Protocol):
    """The segmenter and the captioner. Every call may raise ``Refusal`` (queues are full, or a replica was lost)."""

    segmenter_name: str

    async def propose(self, pixels: Pixels) -> list[Mask]:
        """All masks of an image, see ``Segmenter.propose``."""
        ...

    async def find(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        """Masks of boxes and points, see ``Segmenter.find``."""
        ...

    async def compare(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        """Look-alikes of each mask, see ``ureca.serving.regions.lookalikes``."""
        ...

    async def caption(self, job: CaptionJob) -> list[Written]:
        """All captions of a job, in the order of its masks."""
        ...

    def stream(self, job: CaptionJob) -> AsyncGenerator[Written]:
        """Each caption of a job as soon as it is finished."""
        ...

    async def ready(self) -> dict[str, bool]:
        """Which parts can take a request, by name."""
        ...
