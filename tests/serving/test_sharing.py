"""Equal jobs in flight are computed once."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.pipelines.serving.requests import disc, square
from tests.serving.local import scene, tiny_captioner
from ureca.captioning.continuous import CaptionEngine
from ureca.captioning.engine import CaptionJob, GeneratedCaption
from ureca.masks import rle
from ureca.model.settings import CaptionSettings
from ureca.serving.decoding import exact_mask
from ureca.serving.sharing import SharedCaptions

MASKS = tuple(exact_mask(id, rle.encode(inside)) for id, inside in enumerate((disc(), square())))
JOB = CaptionJob(scene(), MASKS, CaptionSettings(max_new_tokens=6))


class CountingEngine:
    """An engine that yields a caption per region, each when it is told to, and counts its jobs."""

    def __init__(self) -> None:
        self.num_jobs = self.num_ended = 0
        self.begun: asyncio.Queue[CaptionJob] = asyncio.Queue()
        self.may_go_on = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def stream(self, job: CaptionJob) -> AsyncGenerator[GeneratedCaption]:
        self.num_jobs += 1
        self.begun.put_nowait(job)
        try:
            for index in reversed(range(len(job.masks))):
                await self.may_go_on.acquire()
                if self.error is not None:
                    raise self.error
                yield GeneratedCaption(index, f"caption {index}", 1, "stop")
        finally:
            self.num_ended += 1


def test_equal_jobs_share_one_pass_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    captioner = tiny_captioner()
    engine = CaptionEngine(captioner, 8)
    stream = engine.stream

    def counted(job: CaptionJob) -> Any:
        calls["jobs"] += 1
        return stream(job)

    monkeypatch.setattr(engine, "stream", counted)

    async def run() -> list[list[GeneratedCaption]]:
        shared = SharedCaptions(engine)
        equal = [replace(JOB, pixels=JOB.pixels.copy()) for _ in range(5)]
        return list(await asyncio.gather(*map(shared.caption, equal)))

    answers = asyncio.run(run())
    assert calls["jobs"] == 1
    assert all(answer == answers[0] for answer in answers) and len(answers[0]) == 2
    alone = asyncio.run(CaptionEngine(captioner, 8).caption(JOB))
    assert answers[0] == alone


def test_job_that_joins_later_gets_the_captions_from_the_first() -> None:
    async def run() -> None:
        engine = CountingEngine()
        shared = SharedCaptions(engine)
        async with aclosing(shared.stream(JOB)) as first:
            engine.may_go_on.release()
            assert (await anext(first)).index == 1
            later = asyncio.create_task(shared.caption(JOB))
            other = asyncio.create_task(shared.caption(replace(JOB, settings=CaptionSettings(max_new_tokens=5))))
            assert [len((await engine.begun.get()).masks) for _ in range(2)] == [2, 2]
            for _ in range(3):
                engine.may_go_on.release()
            assert [caption.index for caption in await later] == [0, 1]
            assert [caption.index for caption in await other] == [0, 1]
            assert [caption.index async for caption in first] == [0]
        assert (engine.num_jobs, engine.num_ended) == (2, 2)
        engine.may_go_on.release()
        engine.may_go_on.release()
        await shared.caption(JOB)  # not in flight any more
        assert engine.num_jobs == 3

    asyncio.run(run())


def test_computation_ends_with_the_last_job_that_waits_for_it() -> None:
    async def run() -> None:
        engine = CountingEngine()
        shared = SharedCaptions(engine)
        streams = [shared.stream(JOB) for _ in range(3)]
        engine.may_go_on.release()
        assert len({(await anext(stream)).text for stream in streams}) == 1
        await streams[0].aclose()
        await streams[1].aclose()
        assert (engine.num_jobs, engine.num_ended) == (1, 0)
        await streams[2].aclose()
        assert (engine.num_jobs, engine.num_ended) == (1, 1)

    asyncio.run(run())


def test_error_is_that_of_all_equal_jobs() -> None:
    async def run() -> None:
        engine = CountingEngine()
        engine.error = ValueError("no caption")
        shared = SharedCaptions(engine)
        tasks = [asyncio.create_task(shared.caption(JOB)) for _ in range(3)]
        await engine.begun.get()
        for _ in range(3):
            engine.may_go_on.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, ValueError) for result in results)

    asyncio.run(run())


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": np.flip(JOB.pixels, 0)},
        {"masks": MASKS[:1]},
        {"masks": MASKS[::-1]},
        {"settings": CaptionSettings(max_new_tokens=6, seed=4)},
        {"stop": ("a",)},
        {"partial": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_different_jobs_share_nothing(change: dict[str, Any]) -> None:
    async def run() -> None:
        engine = CountingEngine()
        for _ in range(8):
            engine.may_go_on.release()
        shared = SharedCaptions(engine)
        await asyncio.gather(shared.caption(JOB), shared.caption(replace(JOB, **change)))
        assert engine.num_jobs == 2

    asyncio.run(run())
