"""Common batches across requests: the captions that each request gets alone, and nothing written for who has gone."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from tests.serving.local import scene, tiny_captioner
from ureca.model.captioner import RegionCaption, RegionCaptioner
from ureca.regions.mask import Mask
from ureca.serving.engine import CaptionEngine, CaptionJob, Written
from ureca.settings.captioner import CaptionSettings

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


class Watched(RegionCaptioner):
    """Notes the batches."""

    def __init__(self) -> None:
        tiny = tiny_captioner()
        super().__init__(tiny.model, tiny.processor, cached_images=2)
        self.batches: list[list[tuple[int, int]]] = []
        self.fail = False

    def _write(self, batch, *rest) -> Iterator[RegionCaption]:  # type: ignore[no-untyped-def]
        self.batches.append([(image, mask) for image, mask, _ in batch])
        if self.fail:
            self.fail = False
            raise MemoryError("no room")
        yield from super()._write(batch, *rest)


def test_captions_in_common_batches_are_those_of_each_request_alone() -> None:
    watched = Watched()
    jobs = [job(0, 3), job(1, 1), job(2, 11), job(3, 2, CaptionSettings(max_new_tokens=3)), job(4, 0)]

    async def run() -> list[list[Written]]:
        engine = CaptionEngine(watched, batch_size=4)
        return list(await asyncio.gather(*map(engine.caption, jobs)))

    for asked, written in zip(jobs, asyncio.run(run()), strict=True):
        assert written == alone(asked)
    assert max(map(len, watched.batches)) == 4
    assert any(len({image for image, _ in batch}) > 1 for batch in watched.batches)
    assert sum(map(len, watched.batches)) == 17


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
        first = asyncio.create_task(engine.caption(job(0, 2, long)))
        second = asyncio.create_task(engine.caption(job(1, 2, long)))
        while not watched.batches or engine.num_waiting != 1:  # noqa: ASYNC110 - the model's thread changes it
            await asyncio.sleep(0.01)
        second.cancel()
        first.cancel()
        # The model gives up what it is on, and what has not begun never begins.
        assert await engine.caption(job(2, 1)) == alone(job(2, 1))
        engine.check(longest_s=60)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert len(watched.batches) == 2


def test_a_stream_that_is_closed_gives_up_the_rest() -> None:
    watched = Watched()

    async def run() -> None:
        engine = CaptionEngine(watched, batch_size=1)
        stream = engine.stream(job(0, 5))
        await anext(stream)
        await stream.aclose()
        await engine.caption(job(1, 1))

    asyncio.run(run())
    assert len(watched.batches) <= 3  # the one that was read, perhaps one that had begun, and the other request's


def test_a_failure_ends_the_requests_of_its_batch_and_no_other() -> None:
    watched = Watched()
    watched.fail = True

    async def run() -> list[list[Written] | BaseException]:
        engine = CaptionEngine(watched, batch_size=1)
        return await asyncio.gather(engine.caption(job(0, 1)), engine.caption(job(1, 1)), return_exceptions=True)

    first, second = asyncio.run(run())
    assert sorted([isinstance(first, MemoryError), isinstance(second, MemoryError)]) == [False, True]


def test_a_model_that_hangs_is_noticed() -> None:
    async def run() -> None:
        engine = CaptionEngine(Watched(), batch_size=1)
        work = asyncio.create_task(engine.caption(job(0, 1, CaptionSettings(max_new_tokens=100_000))))
        await asyncio.sleep(0.2)
        engine.check(longest_s=60)
        with pytest.raises(RuntimeError, match=r"more than 0\.01 seconds"):
            engine.check(longest_s=0.01)
        work.cancel()

    asyncio.run(run())
