"""The service's HTTP interface over a stand-in for its replicas: captions say what pixels prove."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import uvicorn

from tests.drawn import disc
from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.app import build_app
from ureca.pipelines.serving.middleware import digest_of
from ureca.serving.engine import CaptionJob, Written
from ureca.serving.schemas import ApiError
from ureca.serving.segmenter import among_masks
from ureca.serving.service import Service, lookalikes

HEIGHT, WIDTH = 200, 300
COLOURS = {"grey": (150, 150, 150), "blue": (40, 60, 210), "yellow": (230, 210, 40), "red": (200, 40, 40)}


def picture() -> tuple[Pixels, list[Mask]]:
    """Two like blue squares, each with a yellow disc in it, and a red disc between them that nobody proposes."""
    pixels = np.full((HEIGHT, WIDTH, 3), COLOURS["grey"], np.uint8)
    left, right = np.zeros((2, HEIGHT, WIDTH), np.bool_)
    left[60:140, 30:110] = right[60:140, 190:270] = True
    in_left, in_right, between = (
        disc(row, column, radius, HEIGHT, WIDTH)
        for row, column, radius in ((80, 55, 14), (120, 250, 14), (100, 150, 20))
    )
    coloured = ((left, "blue"), (right, "blue"), (in_left, "yellow"), (in_right, "yellow"), (between, "red"))
    for shape, colour in coloured:
        pixels[shape] = COLOURS[colour]
    numbered = ((1, left), (2, right), (5, in_left), (6, in_right))
    return pixels, [Mask.from_array(id, shape) for id, shape in numbered]


class PageBackend:
    """A ``Backend`` whose captions name the colour and the side of a region. It knows the masks of ``picture``.

    Attributes:
        say: what is said instead, if anything.
        refusal: is raised by the next call.
        room: captions that may be given before ``stream`` waits for more room.
        stopped: streams that nobody listened to until their end.
    """

    segmenter_name = "drawn"

    def __init__(self) -> None:
        self.say: str | None = None
        self.api_error: ApiError | None = None
        self.room = threading.Semaphore(10_000)
        self.stopped = 0
        self._segmenter = SegmentsMaskGenerator()

    async def generate(self, pixels: Pixels) -> list[Mask]:
        self._refuse()
        return self._masks(pixels)

    async def find(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        self._refuse()
        return among_masks(self._masks(pixels), prompts, *pixels.shape[:2])

    async def compare(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        return lookalikes(pixels, masks)

    async def caption(self, job: CaptionJob) -> list[Written]:
        return [item async for item in self.stream(job)]

    async def stream(self, job: CaptionJob) -> AsyncGenerator[Written]:
        self._refuse()
        done = False
        try:
            for index, mask in enumerate(job.masks):
                await asyncio.to_thread(self.room.acquire)
                text = described(job.pixels, mask) if self.say is None else self.say
                yield Written(index, text, len(text.split()), "stop")
            done = True
        finally:
            self.stopped += not done

    async def ready(self) -> dict[str, bool]:
        return {"captioner": True, "segmenter": True}

    def _masks(self, pixels: Pixels) -> list[Mask]:
        known, masks = picture()
        return masks if np.array_equal(pixels, known) else self._segmenter.generate(pixels)

    def _refuse(self) -> None:
        api_error, self.api_error = self.api_error, None
        if api_error is not None:
            raise api_error


def described(pixels: Pixels, mask: Mask) -> str:
    """The side of a region, and the colour that it has most of."""
    inside = rle_codec.decode(mask.rle)
    named = {
        name: int((pixels[inside] == np.array(colour, np.uint8)).all(axis=1).sum()) for name, colour in COLOURS.items()
    }
    centre = np.flatnonzero(inside.any(axis=0)).mean() / pixels.shape[1]
    side = "left" if centre < 0.45 else "right" if centre > 0.55 else "middle"
    return f"The {side} {max(named, key=lambda name: named[name])} thing."


@contextmanager
def serving(backend: PageBackend, token: str | None = None, **settings: object) -> Iterator[str]:
    """Serves on a free port of this machine while the context lasts; gives the address."""
    service = Service(ServeSettings.model_validate({"model": "none", **settings}), backend)
    app = build_app(service, [] if token is None else [digest_of(token)])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    server.force_exit = True
    thread.join(10)
