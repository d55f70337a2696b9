"""The HTTP app with a fake backend, whose captions state facts of the pixels."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import uvicorn

from tests.drawn import disc
from ureca.captioning.engine import CaptionJob, GeneratedCaption
from ureca.images import Pixels
from ureca.masks import rle as rle_codec
from ureca.masks.generators.segments import SegmentsMaskGenerator
from ureca.masks.mask import Mask
from ureca.masks.prompts import Prompt
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.app import build_app
from ureca.pipelines.serving.middleware import digest_token
from ureca.serving.schemas import ApiError
from ureca.serving.segmenter import lookalike_ids, match_prompts

HEIGHT, WIDTH = 200, 300
COLOURS = {"grey": (150, 150, 150), "blue": (40, 60, 210), "yellow": (230, 210, 40), "red": (200, 40, 40)}


def picture() -> tuple[Pixels, list[Mask]]:
    """Draw two similar blue squares with a yellow disc each, and a red disc between them that has no mask."""
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
        text: text of every caption; None: the facts.
        api_error: error that the next call raises.
        lasting_error: error that every call raises; None: no error.
        slots: captions that ``stream`` may yield before it waits.
        words: words of unfinished captions that ``stream`` may yield before it waits.
        poison: id of the region whose caption fails its whole request, whenever it is in one; None: no region.
        jobs: the jobs of all captions so far.
        stopped: number of streams that were closed before their end.
    """

    segmenter_name = "drawn"

    def __init__(self) -> None:
        self.text: str | None = None
        self.api_error: ApiError | None = None
        self.lasting_error: ApiError | None = None
        self.slots = threading.Semaphore(10_000)
        self.words = threading.Semaphore(100_000)
        self.poison: int | None = None
        self.jobs: list[CaptionJob] = []
        self.stopped = 0
        self._segmenter = SegmentsMaskGenerator()

    async def generate(self, pixels: Pixels) -> list[Mask]:
        self._raise_error()
        return self._masks(pixels)

    async def segment_prompts(self, pixels: Pixels, prompts: Mapping[int, Prompt]) -> list[Mask]:
        self._raise_error()
        return match_prompts(self._masks(pixels), prompts, *pixels.shape[:2])

    async def lookalike_ids(self, pixels: Pixels, masks: Sequence[Mask]) -> dict[int, list[int]]:
        return lookalike_ids(pixels, masks)

    async def caption(self, job: CaptionJob) -> list[GeneratedCaption]:
        return [item async for item in self.stream(job)]

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        self._raise_error()
        self.jobs.append(job)
        done = False
        try:
            for index, mask in enumerate(job.masks):
                await asyncio.to_thread(self.slots.acquire)
                if mask.id == self.poison:
                    raise ApiError(500, "internal_error", "this region cannot be captioned")
                text = describe(job.pixels, mask) if self.text is None else self.text
                words = text.split()
                for end in range(1, len(words) if job.partial else 1):
                    await asyncio.to_thread(self.words.acquire)
                    yield GeneratedCaption(index, " ".join(words[:end]), end, None)
                yield GeneratedCaption(index, text, len(text.split()), "stop")
            done = True
        finally:
            self.stopped += not done

    async def ready(self) -> dict[str, bool]:
        return {"captioner": True, "segmenter": True}

    def _masks(self, pixels: Pixels) -> list[Mask]:
        known, masks = picture()
        return masks if np.array_equal(pixels, known) else self._segmenter.generate(pixels)

    def _raise_error(self) -> None:
        api_error, self.api_error = self.api_error or self.lasting_error, None
        if api_error is not None:
            raise api_error


def describe(pixels: Pixels, mask: Mask) -> str:
    """Describe a region by its side and its most frequent colour."""
    inside = rle_codec.decode(mask.rle)
    named = {
        name: int((pixels[inside] == np.array(colour, np.uint8)).all(axis=1).sum()) for name, colour in COLOURS.items()
    }
    centre = np.flatnonzero(inside.any(axis=0)).mean() / pixels.shape[1]
    side = "left" if centre < 0.45 else "right" if centre > 0.55 else "middle"
    return f"The {side} {max(named, key=lambda name: named[name])} thing."


@contextmanager
def serving(backend: PageBackend, token: str | None = None, **settings: object) -> Iterator[str]:
    """Serve on a free port of this machine within the context; yields the base URL."""
    app = build_app(
        ServeSettings.model_validate({"model": "none", **settings}),
        backend,
        [] if token is None else [digest_token(token)],
    )
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
