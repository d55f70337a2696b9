"""Common batches across requests: the captions that each request gets alone, and nothing written for who has gone."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.serving.local import scene, tiny_captioner
from ureca.masks.mask import Mask
from ureca.model.captioner import RegionCaptioner
from ureca.model.prepared import PreparedImage
from ureca.model.region_batch import FinishedRegion, RegionBatch
from ureca.model.settings import CaptionSettings
from ureca.serving.engine import CaptionEngine, CaptionJob, Written

SETTINGS = CaptionSettings(max_new_tokens=6)


def masks(number: int) -> tuple[Mask, ...]:
    made = []
    for id in range(number):
        inside = np.zeros((60, 90), np.bool_)
        inside[3 * id : 3 * id + 20, 5 * id : 5 * id + 30] = True
        made.append(Mask.from_array(id, inside))
    return tuple(made)


def job(seed: int, number: int, settings: CaptionSettings = SETTINGS) -> CaptionJob:
    return CaptionJob(scene(seed=seed), masks(number), settings)


def alone(job: CaptionJob) -> list[Written]:
    decoded = [mask.decode() for mask in job.masks]
    (captions,) = tiny_captioner().describe([job.pixels], [decoded], job.settings)
    return [Written(index, item.text, item.num_tokens, item.finish_reason) for index, item in enumerate(captions)]


class WatchedBatch:
    """Notes who is in the batch at each step."""

    def __init__(self, batch: RegionBatch[Any], watched: "Watched") -> None:
        self._batch = batch
        self._watched = watched

    def __len__(self) -> int:
        return len(self._batch)

    def admit(self, regions: Iterable[tuple[Any, PreparedImage, int, CaptionSettings]]) -> None:
        joining = list(regions)
        self._watched.admitted += [(id(key[0]), key[1]) for key, *_ in joining]
        self._batch.admit(joining)

    def step(self, is_wanted: Callable[[Any], bool]) -> Iterator[FinishedRegion[Any]]:
        self._watched.sizes.append(len(self._batch))
        if self._watched.fail:
            self._watched.fail = False
            raise MemoryError("no room")
        return self._batch.step(is_wanted)


class Watched(RegionCaptioner):
    """Notes what is in its batches."""

    def __init__(self) -> None:
        tiny = tiny_captioner()
        super().__init__(tiny.model, tiny.processor, cached_images=2)
        self.admitted: list[tuple[int, int]] = []
        self.sizes: list[int] = []
        self.fail = False
        self.batch_class = WatchedBatch

    def open_batch(self) -> Any:
        return self.batch_class(super().open_batch(), self)


def test_captions_in_common_batches_are_those_of_each_request_alone() -> None:
    watched = Watched()
    jobs = [job(0, 3), job(1, 1), job(2, 11), job(3, 2, CaptionSettings(max_new_tokens=3)), job(4, 0)]

    async def run() -> list[list[Written]]:
        engine = CaptionEngine(watched, batch_size=4)
        return list(await asyncio.gather(*map(engine.caption, jobs)))

    for asked, written in zip(jobs, asyncio.run(run()), strict=True):
        assert written == alone(asked)
    assert len(watched.admitted) == len(set(watched.admitted)) == 17
    assert max(watched.sizes) == 4
    # One after another, 15 captions of 6 tokens and 2 of 3 would take 96 steps.
    assert len(watched.sizes) < 60


def test_a_request_with_many_regions_does_not_stop_the_others() -> None:
    order: list[str] = []

    async def run() -> None:
        engine = CaptionEngine(Watched(), batch_size=4)

        async def ask(name: str, asked: CaptionJob) -> None:
            await engine.caption(asked)
            order.append(name)

        await asyncio.gather(ask("many", job(0, 12)), ask("one", job(1, 1)), ask("two", job(2, 1)))

    asyncio.run(run())
    assert order[-1] == "many"


def test_what_nobody_waits_for_is_not_written() -> None:
    watched = Watched()

    async def run() -> None:
        engine = CaptionEngine(watched, batch_size=2)
        long = CaptionSettings(max_new_tokens=100_000)
        tasks = [asyncio.create_task(engine.caption(job(seed, 2, long))) for seed in range(2)]
        while not watched.sizes:  # noqa: ASYNC110 - the model's thread changes it
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        # The model gives up what it is on, and what has not begun never begins.
        assert await engine.caption(job(2, 1)) == alone(job(2, 1))
        engine.check(longest_s=60)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert len({work for work, _ in watched.admitted}) == 2


def test_a_stream_that_is_closed_gives_up_the_rest() -> None:
    watched = Watched()

    async def run() -> None:
        engine = CaptionEngine(watched, batch_size=1)
        stream = engine.stream(job(0, 11))
        await anext(stream)
        await stream.aclose()
        await engine.caption(job(1, 1))

    asyncio.run(run())
    assert len(watched.admitted) < 8  # what was read, perhaps what had begun meanwhile, and the other request's


def test_who_comes_later_joins_what_is_being_written() -> None:
    watched = Watched()

    async def run() -> None:
        engine = CaptionEngine(watched, batch_size=2)
        first = asyncio.create_task(engine.caption(job(0, 1, CaptionSettings(max_new_tokens=100_000))))
        while not watched.sizes:  # noqa: ASYNC110 - the model's thread changes it
            await asyncio.sleep(0.01)
        assert await engine.caption(job(1, 3)) == alone(job(1, 3))
        assert not first.done()
        first.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert max(watched.sizes) == 2


def test_a_failure_ends_the_requests_of_its_batch_and_no_other() -> None:
    watched = Watched()
    watched.fail = True

    async def run() -> list[list[Written] | BaseException]:
        engine = CaptionEngine(watched, batch_size=1)
        return await asyncio.gather(engine.caption(job(0, 1)), engine.caption(job(1, 1)), return_exceptions=True)

    first, second = asyncio.run(run())
    assert sorted([isinstance(first, MemoryError), isinstance(second, MemoryError)]) == [False, True]


def test_a_model_that_hangs_is_noticed() -> None:
    entered, released = threading.Event(), threading.Event()

    class Hanging(WatchedBatch):
        def step(self, is_wanted: Callable[[Any], bool]) -> Iterator[FinishedRegion[Any]]:
            entered.set()
            released.wait()
            return super().step(is_wanted)

    watched = Watched()
    watched.batch_class = Hanging

    async def run() -> None:
        engine = CaptionEngine(watched, batch_size=1)
        work = asyncio.create_task(engine.caption(job(0, 1)))
        await asyncio.to_thread(entered.wait)
        await asyncio.sleep(0.05)
        engine.check(longest_s=60)
        with pytest.raises(RuntimeError, match=r"more than 0\.01 seconds"):
            engine.check(longest_s=0.01)
        released.set()
        await work

    asyncio.run(run())
