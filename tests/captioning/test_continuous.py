"""Continuous batching: captions equal to those of each request alone, and no decoding for cancelled requests."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.local import scene, tiny_captioner
from ureca.captioning.continuous import CaptionEngine
from ureca.captioning.engine import CaptionJob, GeneratedCaption, cut_at_stop, load_engine
from ureca.captioning.settings import VllmCaptioningSettings
from ureca.masks.mask import Mask
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import save_tiny
from ureca.model.prepared import PreparedImage
from ureca.model.region_batch import FinishedRegion, RegionBatch
from ureca.model.settings import CaptionSettings

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


def alone(job: CaptionJob) -> list[GeneratedCaption]:
    decoded = [mask.decode() for mask in job.masks]
    (captions,) = tiny_captioner().describe([job.pixels], [decoded], job.settings)
    return [
        GeneratedCaption(index, item.text, item.num_tokens, item.finish_reason) for index, item in enumerate(captions)
    ]


class RecordingBatch:
    """Records the admitted regions and the batch size at each step."""

    def __init__(self, batch: RegionBatch[Any], recorder: "RecordingCaptioner") -> None:
        self._batch = batch
        self._recorder = recorder

    def __len__(self) -> int:
        return len(self._batch)

    def admit(self, regions: Iterable[tuple[Any, PreparedImage, int, CaptionSettings]]) -> None:
        admitted = list(regions)
        self._recorder.admitted += [(id(key[0]), key[1]) for key, *_ in admitted]
        self._batch.admit(admitted)

    def step(self, is_wanted: Callable[[Any], bool]) -> Iterator[FinishedRegion[Any]]:
        self._recorder.sizes.append(len(self._batch))
        if self._recorder.fail:
            self._recorder.fail = False
            raise MemoryError("no room")
        return self._batch.step(is_wanted)

    def unfinished(self, is_wanted: Callable[[Any], bool]) -> Iterator[FinishedRegion[Any]]:
        return self._batch.unfinished(is_wanted)


class RecordingCaptioner(RegionCaptioner):
    """A captioner that records what its batches contain."""

    def __init__(self) -> None:
        tiny = tiny_captioner()
        super().__init__(tiny.model, tiny.processor, cached_images=2)
        self.admitted: list[tuple[int, int]] = []
        self.sizes: list[int] = []
        self.fail = False
        self.batch_class = RecordingBatch

    def open_batch(self) -> Any:
        return self.batch_class(super().open_batch(), self)


def test_engine_concurrent_jobs_give_the_captions_of_each_alone() -> None:
    captioner = RecordingCaptioner()
    jobs = [job(0, 3), job(1, 1), job(2, 11), job(3, 2, CaptionSettings(max_new_tokens=3)), job(4, 0)]

    async def run() -> list[list[GeneratedCaption]]:
        engine = CaptionEngine(captioner, batch_size=4)
        return list(await asyncio.gather(*map(engine.caption, jobs)))

    for one, captions in zip(jobs, asyncio.run(run()), strict=True):
        assert captions == alone(one)
    assert len(captioner.admitted) == len(set(captioner.admitted)) == 17
    assert max(captioner.sizes) == 4
    # One after another, 15 captions of 6 tokens and 2 of 3 would take 96 steps.
    assert len(captioner.sizes) < 60


def test_engine_job_with_many_regions_does_not_block_others() -> None:
    order: list[str] = []

    async def run() -> None:
        engine = CaptionEngine(RecordingCaptioner(), batch_size=4)

        async def caption(name: str, one: CaptionJob) -> None:
            await engine.caption(one)
            order.append(name)

        await asyncio.gather(caption("many", job(0, 12)), caption("one", job(1, 1)), caption("two", job(2, 1)))

    asyncio.run(run())
    assert order[-1] == "many"


def test_engine_cancelled_job_is_not_decoded() -> None:
    captioner = RecordingCaptioner()

    async def run() -> None:
        engine = CaptionEngine(captioner, batch_size=2)
        long = CaptionSettings(max_new_tokens=100_000)
        tasks = [asyncio.create_task(engine.caption(job(seed, 2, long))) for seed in range(2)]
        while not captioner.sizes:  # noqa: ASYNC110 - the model's thread changes it
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        # Decoding of the running job stops, and the queued job never starts.
        assert await engine.caption(job(2, 1)) == alone(job(2, 1))
        engine.check_progress(max_step_s=60)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert len({work for work, _ in captioner.admitted}) == 2


def test_engine_closed_stream_stops_decoding() -> None:
    captioner = RecordingCaptioner()

    async def run() -> None:
        engine = CaptionEngine(captioner, batch_size=1)
        stream = engine.stream(job(0, 11))
        await anext(stream)
        await stream.aclose()
        await engine.caption(job(1, 1))

    asyncio.run(run())
    assert len(captioner.admitted) < 8  # one was read, some may have started, and one is of the other job


def test_engine_later_job_is_admitted_to_the_running_batch() -> None:
    captioner = RecordingCaptioner()

    async def run() -> None:
        engine = CaptionEngine(captioner, batch_size=2)
        first = asyncio.create_task(engine.caption(job(0, 1, CaptionSettings(max_new_tokens=100_000))))
        while not captioner.sizes:  # noqa: ASYNC110 - the model's thread changes it
            await asyncio.sleep(0.01)
        assert await engine.caption(job(1, 3)) == alone(job(1, 3))
        assert not first.done()
        first.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert max(captioner.sizes) == 2


def test_engine_failed_step_fails_only_jobs_of_its_batch() -> None:
    captioner = RecordingCaptioner()
    captioner.fail = True

    async def run() -> list[list[GeneratedCaption] | BaseException]:
        engine = CaptionEngine(captioner, batch_size=1)
        return await asyncio.gather(engine.caption(job(0, 1)), engine.caption(job(1, 1)), return_exceptions=True)

    first, second = asyncio.run(run())
    assert sorted([isinstance(first, MemoryError), isinstance(second, MemoryError)]) == [False, True]


def test_check_progress_hanging_step_raises() -> None:
    entered, released = threading.Event(), threading.Event()
    now_s = 100.0

    class HangingBatch(RecordingBatch):
        def step(self, is_wanted: Callable[[Any], bool]) -> Iterator[FinishedRegion[Any]]:
            entered.set()
            released.wait()
            return super().step(is_wanted)

    captioner = RecordingCaptioner()
    captioner.batch_class = HangingBatch

    async def run() -> None:
        nonlocal now_s
        engine = CaptionEngine(captioner, batch_size=1, clock=lambda: now_s)
        work = asyncio.create_task(engine.caption(job(0, 1)))
        await asyncio.to_thread(entered.wait)
        now_s += 60
        engine.check_progress(max_step_s=60)
        now_s += 1
        with pytest.raises(RuntimeError, match="more than 60 seconds"):
            engine.check_progress(max_step_s=60)
        released.set()
        await work
        engine.check_progress(max_step_s=60)

    asyncio.run(run())


def test_engine_partial_stream_grows_by_words_to_the_caption() -> None:
    wanted = job(3, 2, CaptionSettings(max_new_tokens=40))

    async def run() -> dict[int, list[GeneratedCaption]]:
        items: dict[int, list[GeneratedCaption]] = {0: [], 1: []}
        async for item in CaptionEngine(tiny_captioner(), 4).stream(replace(wanted, partial=True)):
            items[item.index].append(item)
        return items

    items, whole = asyncio.run(run()), alone(wanted)
    for index in (0, 1):
        *partial, last = items[index]
        assert last == whole[index]
        assert last.num_prompt_tokens > len(wanted.settings.question.split())
        assert {item.finish_reason for item in partial} <= {None}
        texts = [item.text for item in partial] + [last.text]
        assert len(partial) >= 2
        assert all(len(a) < len(b) and b.startswith(a) for a, b in pairwise(texts))


def test_engine_stop_string_ends_the_caption_before_it() -> None:
    settings = CaptionSettings(max_new_tokens=40)
    (whole,) = alone(job(3, 1, settings))
    stop = whole.text[len(whole.text) // 4 :][:3]
    cut = whole.text[: whole.text.index(stop)].rstrip()
    recorder = RecordingCaptioner()

    async def run() -> list[GeneratedCaption]:
        stopping = replace(job(3, 1, settings), stop=(stop, "never"), partial=True)
        return [item async for item in CaptionEngine(recorder, 4).stream(stopping)]

    *partial, last = asyncio.run(run())
    assert (last.text, last.finish_reason) == (cut, "stop")
    assert all(cut.startswith(item.text) for item in partial)
    assert last.num_prompt_tokens > 0
    assert len(recorder.sizes) < 40  # decoding ends, too


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [("a red car", ("car",), "a red"), ("a red car", ("red", "a"), ""), ("a red car", (" ",), "a"), ("ab", (), "ab")],
)
def test_cut_at_stop_keeps_the_text_before_the_first(text: str, stop: tuple[str, ...], kept: str) -> None:
    assert cut_at_stop(text, stop) == kept


def test_engine_region_that_fails_alone_fails_only_its_job() -> None:
    # The prompt of one region cannot be encoded, and the probabilities of another are not numbers.
    captioner = RecordingCaptioner()
    good = [job(seed, 2, CaptionSettings(max_new_tokens=30)) for seed in range(4)]
    bad_prompt = job(4, 1, SETTINGS.model_copy(update={"question": "<MASK_CONTEXT>?"}))
    bad_sampling = job(5, 1, SETTINGS.model_copy(update={"temperature": float("nan")}))

    async def run() -> list[list[GeneratedCaption] | BaseException]:
        engine = CaptionEngine(captioner, batch_size=16)
        return await asyncio.gather(*map(engine.caption, [*good, bad_prompt, bad_sampling]), return_exceptions=True)

    *answers, first, second = asyncio.run(run())
    assert answers == [alone(one) for one in good]
    assert isinstance(first, ValueError) and "mask" in str(first)
    assert isinstance(second, ValueError) and "temperature" in str(second)


def test_engine_lowest_temperatures_give_the_greedy_caption() -> None:
    greedy = alone(job(0, 1))

    async def run(temperature: float) -> list[GeneratedCaption]:
        settings = CaptionSettings(max_new_tokens=6, temperature=temperature)
        return await CaptionEngine(tiny_captioner(), batch_size=2).caption(job(0, 1, settings))

    for temperature in (5e-324, 1e-308, 1e-39, 1e-9):
        assert asyncio.run(run(temperature)) == greedy


@pytest.mark.parametrize("stage", ["admit", "step"])
def test_engine_batch_that_fails_is_retried_without_the_suspect(stage: str) -> None:
    class PoisonedBatch(RecordingBatch):
        """Fails as a whole while it has a region with the question."""

        poisoned = False

        def admit(self, regions: Iterable[tuple[Any, PreparedImage, int, CaptionSettings]]) -> None:
            admitted = list(regions)
            self.poisoned |= any(settings.question == "poison" for *_, settings in admitted)
            if self.poisoned and stage == "admit":
                raise MemoryError("no room")
            super().admit(admitted)

        def step(self, is_wanted: Callable[[Any], bool]) -> Iterator[FinishedRegion[Any]]:
            if self.poisoned and len(self._recorder.sizes) > 2:
                raise MemoryError("no room")
            return super().step(is_wanted)

    captioner = RecordingCaptioner()
    captioner.batch_class = PoisonedBatch
    good = [job(seed, 2, CaptionSettings(max_new_tokens=20)) for seed in range(5)]
    poison = job(9, 3, CaptionSettings(max_new_tokens=20, question="poison"))

    async def run() -> list[list[GeneratedCaption] | BaseException]:
        engine = CaptionEngine(captioner, batch_size=12)
        return await asyncio.gather(*map(engine.caption, [*good[:3], poison, *good[3:]]), return_exceptions=True)

    answers = asyncio.run(asyncio.wait_for(run(), 120))
    assert isinstance(answers.pop(3), MemoryError)
    assert answers == [alone(one) for one in good]


def test_check_progress_after_failures_in_a_row_raises_until_one_succeeds() -> None:
    captioner = RecordingCaptioner()
    bad = [job(seed, 1, SETTINGS.model_copy(update={"question": "<MASK_CONTEXT>?"})) for seed in range(3)]

    async def run() -> None:
        engine = CaptionEngine(captioner, batch_size=2, max_failures=2)
        for _ in range(2):
            engine.check_progress(60)
            captioner.fail = True
            with pytest.raises(MemoryError):
                await engine.caption(job(0, 1))
        with pytest.raises(RuntimeError, match="2 regions in a row have failed, the last: MemoryError: no room"):
            engine.check_progress(60)
        await engine.caption(job(0, 1))
        engine.check_progress(60)
        # Requests that no model could answer say nothing about the health of this one.
        for one in bad:
            with pytest.raises(ValueError, match="mask"):
                await engine.caption(one)
        engine.check_progress(60)

    asyncio.run(run())


def test_load_engine_bounds_cached_images_by_this_process_s_part_of_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path)
    monkeypatch.setattr("ureca.model.captioner.free_device_bytes", lambda device: 10 * 2**30)
    engine: Any = load_engine(
        str(tmp_path),
        CaptionSettings(),
        engine="transformers",
        vllm=VllmCaptioningSettings(),
        dtype="auto",
        on_gpu=False,
        serves_requests=True,
        cache_fraction=0.3,
        memory_fraction=0.25,
    )
    assert engine.captioner.encoder.max_cached_bytes == int(0.3 * 0.25 * 10 * 2**30)


def test_engine_out_of_memory_drops_cached_images_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has room for no more than two encoded images, wherever they are kept."""
    model, processor = tiny_captioner().model, tiny_captioner().processor
    captioner = RegionCaptioner(model, processor, cached_images=64)
    encoder = captioner.encoder
    encode = model.get_image_features
    failures = []

    def encode_some(pixel_values: Any, **options: Any) -> Any:
        if encoder.num_cached >= 2:
            failures.append(encoder.num_cached)
            raise MemoryError("64 cached prefixes")
        return encode(pixel_values, **options)

    monkeypatch.setattr(model, "get_image_features", encode_some)

    async def run() -> list[list[GeneratedCaption]]:
        engine = CaptionEngine(captioner, batch_size=8, max_failures=1)
        captions = []
        for seed in range(6):
            captions.append(await engine.caption(job(seed, 2)))
            engine.check_progress(60)
        return captions

    captions = asyncio.run(run())
    monkeypatch.undo()
    assert failures
    assert captions == [alone(job(seed, 2)) for seed in range(6)]
