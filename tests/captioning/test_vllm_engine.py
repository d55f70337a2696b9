"""The vLLM engine of a checkpoint: requests, streams, failures and health, against a fake with vLLM's interface."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.drawn import drawn_image
from tests.llm import fake_vllm
from ureca.captioning.engine import CaptionJob, GeneratedCaption, load_engine
from ureca.captioning.settings import VllmCaptioningSettings
from ureca.captioning.vllm import VllmCaptionEngine
from ureca.errors import AnswerError, EngineError
from ureca.model.checkpoints import load_checkpoint
from ureca.model.initialization import save_tiny
from ureca.model.processing import UrecaProcessor
from ureca.model.settings import CaptionSettings

TEXT = "A red disc near the left edge of the picture"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


@pytest.fixture
def answers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let the fake write ``TEXT`` token by token; an exception that the test appends is raised instead."""
    fake_vllm.install(monkeypatch)
    token_ids = UrecaProcessor.from_pretrained(checkpoint).tokenizer(TEXT, add_special_tokens=False).input_ids
    raised: list[Any] = []

    async def generate(
        self: fake_vllm.AsyncLLM, prompt: Any, parameters: Any, request_id: str, **_: Any
    ) -> AsyncIterator[Any]:
        self.asked.append((prompt, parameters, request_id))
        if raised:
            self.is_dead = isinstance(raised[0], fake_vllm.EngineDeadError)
            raise raised.pop()
        first = 1 if parameters.output_kind is fake_vllm.RequestOutputKind.CUMULATIVE else len(token_ids)
        for end in range(first, len(token_ids) + 1):
            await asyncio.sleep(0)
            self.most_in_flight = end
            reason = "length" if end == len(token_ids) else None
            written = fake_vllm.CompletionOutput("", token_ids[:end])
            written.finish_reason = reason  # type: ignore[attr-defined]
            yield fake_vllm.RequestOutput([0] * 7, [written])

    monkeypatch.setattr(fake_vllm.AsyncLLM, "generate", generate)
    return raised


def loaded(checkpoint: Path, *, serves_requests: bool = True) -> tuple[VllmCaptionEngine, fake_vllm.AsyncLLM]:
    engine = load_engine(
        str(checkpoint),
        CaptionSettings(),
        engine="vllm",
        vllm=VllmCaptioningSettings(),
        dtype="float32",
        on_gpu=False,
        serves_requests=serves_requests,
    )
    assert isinstance(engine, VllmCaptionEngine)
    return engine, fake_vllm.AsyncLLM.made[-1]


def job(**changes: Any) -> CaptionJob:
    pixels, masks = drawn_image(0)
    return replace(CaptionJob(pixels, tuple(masks[:3]), CaptionSettings(max_new_tokens=64, seed=5)), **changes)


async def collect(engine: VllmCaptionEngine, wanted: CaptionJob) -> list[GeneratedCaption]:
    return [caption async for caption in engine.stream(wanted)]


@pytest.mark.usefixtures("answers")
def test_vllm_engine_requests_each_region_of_an_image_with_its_mask(checkpoint: Path) -> None:
    engine, fake = loaded(checkpoint)
    wanted = job()
    captions = asyncio.run(engine.caption(wanted))
    num_tokens = captions[0].num_tokens
    assert captions == [GeneratedCaption(index, TEXT, num_tokens, "length") for index in range(3)]
    assert {caption.num_prompt_tokens for caption in captions} == {7}
    masks = [np.packbits(prompt["multi_modal_data"]["mask"]).tobytes() for prompt, *_ in fake.asked]
    assert sorted(masks) == sorted(np.packbits(mask.decode()).tobytes() for mask in wanted.masks)
    uuids = [prompt["multi_modal_uuids"] for prompt, *_ in fake.asked]
    assert len({uuid["image"][0] for uuid in uuids}) == 1
    assert len({uuid["mask"][0] for uuid in uuids}) == 3
    assert fake.arguments.limit_mm_per_prompt == {"image": 1, "mask": 1, "video": 0}


@pytest.mark.usefixtures("answers")
def test_vllm_engine_partial_stream_grows_by_words_and_ends_at_a_stop_string(checkpoint: Path) -> None:
    engine, fake = loaded(checkpoint)
    captions = asyncio.run(collect(engine, job(masks=job().masks[:1], partial=True, stop=(" left",))))
    *partial, last = captions
    assert (last.text, last.finish_reason) == ("A red disc near the", "stop")
    texts = [caption.text for caption in partial]
    assert texts == sorted(set(texts), key=len) and "A red disc" in texts
    assert all(last.text.startswith(text) for text in texts)
    assert fake.most_in_flight < len(TEXT)  # the generation is closed at the stop string


@pytest.mark.usefixtures("answers")
def test_vllm_engine_sampling_has_a_seed_of_each_region(checkpoint: Path) -> None:
    engine, fake = loaded(checkpoint)
    sampled = job(settings=CaptionSettings(max_new_tokens=64, seed=5, temperature=0.7))
    for wanted in (sampled, job()):
        asyncio.run(engine.caption(wanted))
    seeds = {np.packbits(prompt["multi_modal_data"]["mask"]).tobytes(): sent.seed for prompt, sent, _ in fake.asked[:3]}
    assert [seeds[np.packbits(mask.decode()).tobytes()] for mask in sampled.masks] == [5, 6, 7]
    assert [sent.seed for _, sent, _ in fake.asked[3:]] == [None] * 3  # greedy


@pytest.mark.usefixtures("answers")
def test_vllm_engine_auto_type_is_that_of_transformers(checkpoint: Path) -> None:
    for model in ("scenes", str(checkpoint)):  # stored in float16 and in float32
        VllmCaptionEngine(model, VllmCaptioningSettings())
        dtype = fake_vllm.AsyncLLM.made[-1].arguments.dtype
        assert f"torch.{dtype}" == str(load_checkpoint(model)[0].dtype) == "torch.float32"


def test_vllm_engine_rejected_region_fails_its_request(checkpoint: Path, answers: list[Any]) -> None:
    engine, _ = loaded(checkpoint)
    answers.append(fake_vllm.VLLMClientError("the prompt is too long"))
    with pytest.raises(AnswerError, match="unusable_request: region 0 has no caption: vLLM rejects it: the prompt"):
        asyncio.run(engine.caption(job(masks=job().masks[:1])))
    assert len(asyncio.run(engine.caption(job()))) == 3
    engine.check_progress(1.0)


def test_vllm_engine_of_a_replica_stays_dead_and_fails_its_health(checkpoint: Path, answers: list[Any]) -> None:
    engine, fake = loaded(checkpoint)
    answers.append(fake_vllm.EngineDeadError("EngineCore encountered an issue.\nSee stack trace (above)."))
    with pytest.raises(EngineError, match="EngineCore encountered an issue"):
        asyncio.run(engine.caption(job(masks=job().masks[:1])))
    with pytest.raises(RuntimeError, match="died"):
        engine.check_progress(1.0)
    assert fake_vllm.AsyncLLM.made[-1] is fake
    idle, fake = loaded(checkpoint)
    fake.is_dead = True  # killed without a request
    with pytest.raises(RuntimeError, match="died"):
        idle.check_progress(1.0)


def test_vllm_engine_of_a_batch_job_is_started_again(checkpoint: Path, answers: list[Any]) -> None:
    engine, fake = loaded(checkpoint, serves_requests=False)
    answers.append(fake_vllm.EngineDeadError("gone"))
    captions = asyncio.run(engine.caption(job()))
    assert [caption.text for caption in captions] == [TEXT] * 3
    assert fake.is_shut_down and fake_vllm.AsyncLLM.made[-1] is not fake
    engine.check_progress(1.0)


def test_vllm_engine_that_writes_nothing_fails_its_health(
    checkpoint: Path, answers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del answers
    now_s = 100.0
    settings = VllmCaptioningSettings()
    engine = VllmCaptionEngine(str(checkpoint), settings, max_restarts=0, clock=lambda: now_s)
    entered, released = asyncio.Event(), asyncio.Event()

    async def generate(*_: Any, **__: Any) -> AsyncIterator[Any]:
        entered.set()
        await released.wait()
        written = fake_vllm.CompletionOutput("", [1])
        written.finish_reason = "length"  # type: ignore[attr-defined]
        yield fake_vllm.RequestOutput([0], [written])

    monkeypatch.setattr(fake_vllm.AsyncLLM, "generate", generate)

    async def run() -> None:
        nonlocal now_s
        async with aclosing(engine.stream(job(masks=job().masks[:1]))) as captions:
            waiting = asyncio.ensure_future(anext(captions))
            await entered.wait()
            now_s += 60
            engine.check_progress(60)
            now_s += 1
            with pytest.raises(RuntimeError, match="nothing for more than 60 seconds"):
                engine.check_progress(60)
            released.set()
            await waiting
        engine.check_progress(60)

    asyncio.run(run())
