"""Common batches for images that arrive one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ureca.captioning.images import ReadyImage, caption_ready, make_ready
from ureca.data.processing import MaskedImage
from ureca.images import Pixels
from ureca.llm.load import process_load
from ureca.model.settings import CaptionSettings

if TYPE_CHECKING:
    from ureca.model.captioner import RegionCaptioner

_BATCHES_AT_ONCE = 4  # the last batch of a call is not full: of several, it is a smaller share


@dataclass(eq=False)
class _Waiting:
    image: ReadyImage
    rows: asyncio.Future[tuple[list[dict[str, Any]], float]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher:
    """Runs the model on what waits, images of like size together, for one event loop; an ``ImageWriter``.

    The model never waits for a batch to fill: what arrives while it works makes the next batch.
    """

    def __init__(self, captioner: RegionCaptioner, settings: CaptionSettings) -> None:
        self._captioner = captioner
        self._settings = settings
        self._waiting: list[_Waiting] = []
        self._work: asyncio.Task[None] | None = None
        self._load = process_load()
        self._load.set_slots(self, 1)

    def make_ready(self, pixels: Pixels, image: MaskedImage) -> ReadyImage:
        """Cut an image and its masks; in any thread."""
        return make_ready(self._captioner, pixels, image.masks, image.parents)

    async def write(self, image: ReadyImage) -> tuple[list[dict[str, Any]], float]:
        """The rows of an image, see ``caption_image``, and the seconds of the model that they took."""
        waiting = _Waiting(image)
        self._waiting.append(waiting)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        with self._load.asked():
            return await waiting.rows

    async def _run(self) -> None:
        while self._waiting:
            batch = self._take()
            try:
                await asyncio.to_thread(self._caption, batch, asyncio.get_running_loop())
            except BaseException as error:
                # It is raised where each image is waited for.
                for waiting in batch:
                    _fail(waiting.rows, error)

    def _take(self) -> list[_Waiting]:
        """The oldest image, with those nearest to it in size, as many as fill some batches."""
        size = self._waiting[0].image.prepared.num_tiles
        nearest = sorted(self._waiting, key=lambda waiting: abs(waiting.image.prepared.num_tiles - size))
        taken: list[_Waiting] = []
        num_regions = 0
        for waiting in nearest:
            taken.append(waiting)
            num_regions += waiting.image.prepared.num_regions
            if num_regions >= _BATCHES_AT_ONCE * self._settings.batch_size:
                break
        self._waiting = [waiting for waiting in self._waiting if waiting not in taken]
        return taken

    def _caption(self, batch: Sequence[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        since = time.monotonic()

        def on_finished(index: int, rows: list[dict[str, Any]]) -> None:
            nonlocal since
            # What passed since the image before was finished: shares add up to the time of the model.
            seconds, since = time.monotonic() - since, time.monotonic()
            loop.call_soon_threadsafe(_succeed, batch[index].rows, (rows, seconds))

        with self._load.busy():
            caption_ready(self._captioner, [waiting.image for waiting in batch], self._settings, on_finished)


def _succeed(
    future: asyncio.Future[tuple[list[dict[str, Any]], float]], result: tuple[list[dict[str, Any]], float]
) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[tuple[list[dict[str, Any]], float]], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
