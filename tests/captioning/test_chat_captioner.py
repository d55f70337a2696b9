"""Baselines: chat models that see regions by the paper's region prompts."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.captioning.fakes import masked_partition
from tests.drawn import drawn_image
from tests.llm.tiny_models import internvl
from ureca.captioning.captioners import EngineCaptioner
from ureca.captioning.chat import ChatEngine
from ureca.captioning.stage import CaptionStage
from ureca.data.in_flight import ImagesInFlight
from ureca.errors import AnswerError, CheckpointError
from ureca.image_limits import ImageLimits
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import TransformersConfig
from ureca.llm.transformers import TransformersChatModel
from ureca.masks.mask import Mask
from ureca.model.checkpoint_files import identify
from ureca.model.prepared import region_view
from ureca.model.prompt import RegionPrompt
from ureca.model.settings import CaptionSettings

SETTINGS = CaptionSettings(question="What is it?", max_new_tokens=7, temperature=0.5, batch_size=2)


class FakeChatModel:
    """Remembers what it is asked, and answers with the mean of the picture's red."""

    name = "asked"

    def __init__(self, error: AnswerError | None = None) -> None:
        self.requests: list[ChatRequest] = []
        self.error = error
        self.at_once = self.most_at_once = 0
        self.two_at_once = asyncio.Event()

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.at_once > 1:
            self.two_at_once.set()
        await asyncio.wait_for(self.two_at_once.wait(), timeout=60)
        self.at_once -= 1
        self.requests.append(request)
        if self.error is not None and len(self.requests) == 1:
            raise self.error
        return ChatAnswer(f" {request.images[0][..., 0].mean():.6f}\n", 11, 5)


def caption(tmp_path: Path, model: Any, prompt: RegionPrompt, masks: tuple[Mask, ...] = ()) -> tuple[list[Any], Any]:
    partition = masked_partition(tmp_path, 0, 2)
    first, second = partition.images
    partition = replace(partition, images=(replace(first, masks=(*first.masks, *masks)), second))
    captioner = EngineCaptioner(ChatEngine(model, prompt, 2 * SETTINGS.batch_size), SETTINGS)
    stage = CaptionStage(captioner, "asked", ImagesInFlight(2, ImageLimits()))
    return asyncio.run(stage(partition))  # type: ignore[return-value]


@pytest.mark.parametrize("prompt", ["none", "contour", "crop"])
def test_chat_captioner_shows_the_view_of_the_region_prompt(tmp_path: Path, prompt: RegionPrompt) -> None:
    model = FakeChatModel()
    empty = Mask.from_array(9, np.zeros((60, 80), np.bool_))
    rows, report = caption(tmp_path, model, prompt, (empty,))
    assert [row["status"] for row in rows[0]["captions"]] == ["ok"] * 4 + ["skipped:empty"]
    for seed, row in enumerate(rows):
        pixels, masks = drawn_image(seed)
        expected = [f"{region_view(pixels, mask.decode(), prompt)[..., 0].mean():.6f}" for mask in masks]
        assert [region["caption"] for region in row["captions"][:4]] == expected
        assert (len(set(expected)) == 1) == (prompt == "none")
    request = model.requests[0]
    assert (request.system, request.text, request.answer_schema) == ("", "What is it?", {})
    assert (request.temperature, request.max_new_tokens) == (0.5, 7)
    assert 1 < model.most_at_once <= 2 * SETTINGS.batch_size
    assert (report.num_calls, report.num_prompt_tokens, report.num_new_tokens) == (8, 88, 40)


def test_chat_captioner_with_failed_answer_fails_only_its_region(tmp_path: Path) -> None:
    rows, report = caption(tmp_path, FakeChatModel(AnswerError("too_long", "it is")), "crop")
    statuses = [region["status"] for row in rows for region in row["captions"]]
    assert sorted(statuses) == ["failed:caption:too_long", *["ok"] * 7]
    assert report.num_calls == 7


@pytest.mark.parametrize(
    ("said", "is_cut_off", "expected"),
    [
        ("<think>A door? Yes.</think>\n\nA red door.", False, ("A red door.", "stop", "ok")),
        ("A red\ndoor\x00 with", True, ("A red door with", "length", "ok")),
        ("<think>Let me look at", True, (None, None, "failed:caption:cut_off")),
        ("<think>Let me look at", False, (None, None, "failed:caption:cut_off")),
        ("", True, (None, None, "failed:caption:cut_off")),
        (" \n", False, (None, None, "failed:caption:no_text")),
    ],
)
def test_chat_captioner_takes_the_answer_without_thinking_and_tells_how_it_ended(
    tmp_path: Path, said: str, is_cut_off: bool, expected: tuple[str | None, str | None, str]
) -> None:
    class Saying:
        name = "saying"

        async def answer(self, request: ChatRequest) -> ChatAnswer:
            return ChatAnswer(said, 11, 5, is_cut_off=is_cut_off)

    rows, _ = caption(tmp_path, Saying(), "crop")
    for row in rows:
        for region in row["captions"]:
            assert (region["caption"], region["finish_reason"], region["status"]) == expected


def test_caption_stage_with_chat_checkpoint_captions(tmp_path: Path) -> None:
    folder = tmp_path / "internvl"
    internvl(folder)
    model = TransformersChatModel(TransformersConfig(checkpoint=str(folder), device="cpu"))
    rows, _ = caption(tmp_path, model, "crop")
    captions = [region["caption"] for row in rows for region in row["captions"]]
    assert len(set(captions)) > 1
    model.close()
    checkpoint = identify(str(folder))
    assert (checkpoint.kind, checkpoint.name) == ("mllm", f"internvl {checkpoint.identity}")
    assert identify("OpenGVLab/InternVL3-1B-hf").identity == "OpenGVLab/InternVL3-1B-hf"
    (folder / "config.json").write_text(json.dumps({"model_type": "ureca"}))
    assert identify(str(folder)).kind == "ureca"
    for missing in (tmp_path / "missing", "a/b/c", "checkpoint"):
        with pytest.raises(CheckpointError, match="there is no such folder"):
            identify(str(missing))
