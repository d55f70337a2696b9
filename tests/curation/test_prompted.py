"""The prompted annotator: its views, questions and accepted answers."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from tests.curation.fakes import NothingAlike, RecordingAnnotator, ScriptedChatModel, caption_json
from ureca.curation import prompts
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.protocols import CurationImage, LookAlike, Verdict
from ureca.curation.rules import check_caption
from ureca.curation.settings import CaptionRules, PromptedConfig, UniquenessSettings
from ureca.curation.walk import caption_regions
from ureca.errors import AnswerError
from ureca.llm.fake import FakeChatModel
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.llm.settings import FakeConfig
from ureca.llm.usage import metered
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import TARGET_BLUE, YELLOW, Views

Answer = TypeVar("Answer")

HEIGHT, WIDTH = 60, 100
RED, GREEN, WHITE = (200, 0, 0), (0, 200, 0), (250, 250, 250)
CAT, EAR, NOSE, CUP = 1, 2, 3, 4


def rectangle(top: int, bottom: int, left: int, right: int) -> npt.NDArray[np.bool_]:
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[top:bottom, left:right] = True
    return pixels


@pytest.fixture
def image() -> CurationImage:
    """On white: a red cat of 40 x 50 pixels with a green ear of 20 x 20 and a nose, and a white cup of 20 x 20."""
    shapes = {
        CAT: rectangle(10, 50, 10, 60),
        EAR: rectangle(20, 40, 20, 40),
        NOSE: rectangle(20, 30, 45, 55),
        CUP: rectangle(20, 40, 70, 90),
    }
    pixels = np.full((HEIGHT, WIDTH, 3), WHITE, np.uint8)
    pixels[shapes[CAT]] = RED
    pixels[shapes[EAR]] = GREEN
    masks = {id: Mask.from_array(id, shape) for id, shape in shapes.items()}
    tree = MaskTree.build(list(masks.values()))
    return CurationImage(pixels, masks, tree, (CAT, CUP), (CAT, EAR, NOSE, CUP), Views(pixels, masks, min_crop_px=0))


def annotator_of(model: ScriptedChatModel, **settings: Any) -> PromptedAnnotator:
    return PromptedAnnotator(model, PromptedConfig(**settings))


def run(question: Coroutine[Any, Any, Answer]) -> Answer:
    return asyncio.run(question)


def short_caption(
    annotator: PromptedAnnotator, image: CurationImage, region_id: int = CAT, *siblings: str, parent: str | None = None
) -> str:
    return run(annotator.short_caption(image, region_id, parent_caption=parent, sibling_captions=siblings))


def num_pixels(view: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((view == colour).all(axis=2).sum())


def is_whole_with_contour(view: npt.NDArray[np.uint8]) -> bool:
    return view.shape == (HEIGHT, WIDTH, 3) and num_pixels(view, YELLOW) > 0


class TestViews:
    def test_short_caption_of_a_main_object_shows_image_and_crop(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        short_caption(annotator_of(model), image, CAT)
        whole, crop = model.requests[0].images
        assert is_whole_with_contour(whole)
        assert num_pixels(whole, WHITE) > HEIGHT * WIDTH / 4  # nothing is blurred
        assert crop.shape == (40, 50, 3)
        assert num_pixels(crop, GREEN) == 400
        assert num_pixels(crop, YELLOW) == 0

    def test_short_caption_of_a_part_shows_parent_and_crop(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        short_caption(annotator_of(model), image, EAR)
        in_parent, crop = model.requests[0].images
        assert in_parent.shape == (40, 50, 3)
        assert num_pixels(in_parent, YELLOW) == 22**2 - 16**2
        assert num_pixels(in_parent, RED) == 40 * 50 - 22**2
        assert crop.shape == (20, 20, 3)
        assert num_pixels(crop, GREEN) == 400

    def test_detailed_caption_shows_the_image_with_contour(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        run(annotator_of(model).detailed_caption(image, EAR, short_caption="An ear.", child_captions=["Fur."]))
        (view,) = model.requests[0].images
        assert is_whole_with_contour(view)
        assert num_pixels(view, YELLOW) == 22**2 - 16**2

    def test_unique_caption_shows_the_image_and_lookalikes_with_the_region_in_blue(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        run(annotator_of(model).unique_caption(image, CUP, caption="A cup.", lookalikes=[LookAlike(EAR, "An ear.")]))
        whole, view = model.requests[0].images
        np.testing.assert_array_equal(whole, image.pixels)
        assert view.shape == (20, 70, 3)
        assert tuple(view[0, 60]) == TARGET_BLUE
        assert tuple(view[0, 10]) not in {TARGET_BLUE, GREEN}

    def test_verify_shows_image_contour_and_crop(self, image: CurationImage) -> None:
        model = ScriptedChatModel(['{"is_true": true, "reason": "So it is."}'])
        run(annotator_of(model).verify(image, EAR, caption="A green ear."))
        whole, contour, crop = model.requests[0].images
        np.testing.assert_array_equal(whole, image.pixels)
        assert is_whole_with_contour(contour)
        assert crop.shape == (20, 20, 3)


class TestQuestions:
    def test_short_caption_gives_parent_and_sibling_captions(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        short_caption(annotator_of(model), image, NOSE, "Its left ear.", "Its right ear.", parent="A cat.")
        text = model.requests[0].text
        assert text.index("A cat.") < text.index("Its left ear.") < text.index("Its right ear.")

    def test_short_caption_of_a_main_object_gives_no_parent(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        short_caption(annotator_of(model), image)
        assert "part of" not in model.requests[0].text
        assert "neighbours" not in model.requests[0].text

    @pytest.mark.parametrize(("limit", "named"), [(0, []), (1, ["c"]), (2, ["b", "c"]), (3, ["a", "b", "c"])])
    def test_short_caption_gives_the_nearest_siblings(self, image: CurationImage, limit: int, named: list[str]) -> None:
        model = ScriptedChatModel()
        short_caption(annotator_of(model, max_sibling_captions=limit), image, NOSE, "a", "b", "c")
        assert [line[2:] for line in model.requests[0].text.splitlines() if line.startswith("- ")] == named

    def test_detailed_caption_gives_all_parts(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        parts = [f"Part {index}." for index in range(40)]
        run(annotator_of(model).detailed_caption(image, CAT, short_caption="A cat.", child_captions=parts))
        text = model.requests[0].text
        assert [line[2:] for line in text.splitlines() if line.startswith("- ")] == parts
        assert "A cat." in text

    def test_unique_caption_gives_the_first_lookalikes_with_numbers(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        lookalikes = [LookAlike(NOSE, "A nose."), LookAlike(EAR, "An ear."), LookAlike(CAT, "A cat.")]
        annotator = annotator_of(model, max_lookalikes=2)
        run(annotator.unique_caption(image, CUP, caption="A cup.", lookalikes=lookalikes))
        text = model.requests[0].text
        assert "A cup." in text
        assert [line for line in text.splitlines() if line[:1].isdigit()] == ["1: A nose.", "2: An ear."]
        _, view = model.requests[0].images
        assert view.shape == (20, 70, 3)  # the cat would make it larger

    def test_questions_say_the_limits_of_words(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        annotator = annotator_of(model, rules={"max_short_words": 33, "max_words": 144})
        short_caption(annotator, image)
        run(annotator.detailed_caption(image, CAT, short_caption="A cat.", child_captions=["An ear."]))
        run(annotator.unique_caption(image, CUP, caption="A cup.", lookalikes=[LookAlike(EAR, "An ear.")]))
        short, detailed, unique = (request.text for request in model.requests)
        assert "one sentence of at most 33 words" in short
        assert "at most 144 words" in detailed and "at most 144 words" in unique

    def test_detailed_caption_bounds_number_and_length_of_parts(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        annotator = annotator_of(model, max_child_captions=5, max_context_words=100)
        parts = ["A window.", *(" ".join([f"Window {index} has panes of glass."] * 30) for index in range(1, 20))]
        run(annotator.detailed_caption(image, CAT, short_caption="A facade.", child_captions=parts))
        listed = [line[2:] for line in model.requests[0].text.splitlines() if line.startswith("- ")]
        assert listed[0] == "A window."
        assert [caption[:9] for caption in listed[1:]] == [f"Window {index} " for index in range(1, 5)]
        assert all(caption.endswith("glass.") for caption in listed[1:])
        assert 70 <= sum(len(caption.split()) for caption in listed) <= 100
        assert "(and 15 smaller parts)" in model.requests[0].text

    def test_unique_caption_bounds_the_length_of_lookalike_captions(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        annotator = annotator_of(model, max_context_words=50)
        long = LookAlike(EAR, " ".join(f"word{index}" for index in range(400)))
        run(annotator.unique_caption(image, CUP, caption="A cup.", lookalikes=[LookAlike(NOSE, "A nose."), long]))
        lines = model.requests[0].text.splitlines()
        assert "1: A nose." in lines
        (shortened,) = (line for line in lines if line.startswith("2: "))
        assert shortened.endswith("word47 ...")

    def test_short_caption_that_repeats_the_example_is_invalid(self, image: CurationImage) -> None:
        for repeated in (prompts.EXAMPLE, f"a{prompts.EXAMPLE[3:-1]}"):
            model = ScriptedChatModel([caption_json(repeated), caption_json("A cat.")])
            assert short_caption(annotator_of(model), image) == "A cat."
        check_caption(CaptionRules(), prompts.EXAMPLE, short=True)

    @pytest.mark.parametrize(
        "system", [prompts.SHORT_CAPTION, prompts.DETAILED_CAPTION, prompts.UNIQUE_CAPTION], ids=["1", "2", "3"]
    )
    def test_system_message_has_one_example_and_asks_for_quotes(self, system: str) -> None:
        assert system.count(prompts.EXAMPLE) == 1
        assert "in single quotes" in system

    def test_verify_gives_the_caption(self, image: CurationImage) -> None:
        model = ScriptedChatModel(['{"is_true": true}'])
        run(annotator_of(model).verify(image, EAR, caption="A green ear."))
        assert "A green ear." in model.requests[0].text

    def test_prompted_system_message_is_constant_within_a_stage(self, image: CurationImage) -> None:
        """It comes first, so that an engine's prefix cache serves it; all that differs comes after it."""
        model = _ByContent()
        annotator = PromptedAnnotator(model, PromptedConfig())
        uniqueness = UniquenessSettings(include_nested=True, similarity_threshold=-1)
        run(caption_regions(image, annotator, NothingAlike(), uniqueness, verifier=annotator))
        stages: dict[str, set[str]] = {}
        for request in model.requests:
            stages.setdefault(request.system, set()).add(request.text)
        constant = [prompts.SHORT_CAPTION, prompts.DETAILED_CAPTION, prompts.UNIQUE_CAPTION, prompts.VERIFICATION]
        assert list(stages) == constant
        assert [len(texts) for texts in stages.values()] == [4, 1, 4, 4]
        assert len({json.dumps(request.answer_schema) for request in model.requests}) == 2
        for request in model.requests:
            # Each picture follows its label, and the question follows them all.
            kinds = ["text" if isinstance(part, str) else "picture" for part in request.parts]
            assert kinds == ["text", "picture"] * len(request.images) + ["text"]
            assert all(str(label).endswith(":") for label in request.parts[:-1:2])

    def test_prompted_captions_use_temperature_and_limit_of_the_settings(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        short_caption(annotator_of(model, temperature=0.7, max_new_tokens=99), image)
        assert (model.requests[0].temperature, model.requests[0].max_new_tokens) == (0.7, 99)

    def test_verify_is_greedy(self, image: CurationImage) -> None:
        model = ScriptedChatModel(['{"is_true": true}'])
        run(annotator_of(model, temperature=0.7).verify(image, EAR, caption="A green ear."))
        assert model.requests[0].temperature == 0

    def test_prompted_request_has_the_answer_schema(self, image: CurationImage) -> None:
        model = ScriptedChatModel()
        short_caption(annotator_of(model), image)
        schema = model.requests[0].answer_schema
        assert schema["required"] == ["caption"]
        assert schema["properties"]["caption"]["type"] == "string"

    def test_prompted_name_has_model_and_prompt_version(self) -> None:
        assert annotator_of(ScriptedChatModel()).name == f"prompted-{prompts.VERSION}:scripted"


class _ByContent(FakeChatModel):
    def __init__(self) -> None:
        super().__init__(FakeConfig())
        self.requests: list[ChatRequest] = []

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        self.requests.append(request)
        return await super().answer(request)


class TestAnswers:
    @pytest.mark.parametrize(
        ("text", "caption"),
        [
            ('{"caption": "A cat."}', "A cat."),
            ('```json\n{"caption": "A cat."}\n```', "A cat."),
            ('Sure, here it is:\n{"caption": "A cat."}\nAnything else?', "A cat."),
            ('{"caption": "  A cat\\n on\\ta mat. "}', "A cat on a mat."),
            ('{"caption": "A {black} cat."}', "A {black} cat."),
            ('{"caption": "A cat.", "confidence": 0.3}', "A cat."),
            ('{"caption": "Eine Katze: \\u00fc \\ud83d\\ude3a"}', "Eine Katze: ü 😺"),
        ],
    )
    def test_prompted_caption_is_found_in_the_answer(self, image: CurationImage, text: str, caption: str) -> None:
        assert short_caption(annotator_of(ScriptedChatModel([text])), image) == caption

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "A cat.",
            "}{",
            '{"caption": "A cat."',
            '{"caption": "A cat.}',
            '{"caption": ""}',
            '{"caption": " \\n "}',
            '{"caption": "\\u001c"}',
            '{"caption": null}',
            '{"caption": 3}',
            '{"caption": ["A cat."]}',
            '["A cat."]',
            '{"caption": "a \\ud800"}',
            caption_json("x" * 8001),
            '{"caption": ' * 50_000 + "1" + "}" * 50_000,
            '{"caption": ' + "9" * 5000 + "}",
        ],
    )
    def test_prompted_invalid_responses_are_retried(self, image: CurationImage, text: str) -> None:
        model = ScriptedChatModel([text, caption_json("A cat.")])
        assert short_caption(annotator_of(model), image) == "A cat."
        assert len(model.requests) == 2

    def test_prompted_temperature_of_retries_rises_up_to_two(self, image: CurationImage) -> None:
        model = ScriptedChatModel(["no"])
        with pytest.raises(AnswerError):
            short_caption(annotator_of(model, temperature=1.7, max_attempts=4), image)
        assert [request.temperature for request in model.requests] == pytest.approx([1.7, 1.9, 2.0, 2.0])
        first, *others = model.requests
        assert all(other.system == first.system for other in others)
        assert all(other.parts[:-1] == first.parts for other in others)  # what was asked before comes from the cache
        assert all("there is no JSON object in it" in str(other.parts[-1]) for other in others)

    @pytest.mark.parametrize("max_attempts", [1, 3])
    def test_prompted_last_invalid_response_fails(self, image: CurationImage, max_attempts: int) -> None:
        model = ScriptedChatModel(["I would rather not say"])
        with pytest.raises(
            AnswerError, match=f"{max_attempts} answers could not be used; the last one: there is no JSON"
        ) as failed:
            short_caption(annotator_of(model, max_attempts=max_attempts), image)
        assert failed.value.kind == "unusable_answer"
        assert len(model.requests) == max_attempts

    def test_prompted_answer_error_is_not_retried(self, image: CurationImage) -> None:
        class Refusing(ScriptedChatModel):
            async def answer(self, request: ChatRequest) -> ChatAnswer:
                await super().answer(request)
                raise AnswerError("too_long", "the prompt does not fit")

        model = Refusing()
        with pytest.raises(AnswerError, match="too_long"):
            short_caption(annotator_of(model), image)
        assert len(model.requests) == 1

    @pytest.mark.parametrize(
        ("text", "verdict"),
        [
            ('{"is_true": true, "reason": "It is."}', Verdict(True, "It is.")),
            ('{"is_true": false, "reason": "It is red."}', Verdict(False, "It is red.")),
            ('{"is_true": "False", "reason": " So\\n it is. "}', Verdict(False, "So it is.")),
            ('{"is_true": true}', Verdict(True, "")),
        ],
    )
    def test_verify_returns_verdict_and_reason(self, image: CurationImage, text: str, verdict: Verdict) -> None:
        annotator = annotator_of(ScriptedChatModel([text]))
        assert run(annotator.verify(image, EAR, caption="A green ear.")) == verdict

    @pytest.mark.parametrize(
        "text",
        ['{"reason": "It is."}', '{"is_true": "perhaps"}', '{"is_true": null}', '{"is_true": false, "reason": " "}'],
    )
    def test_verify_invalid_response_is_no_rejection(self, image: CurationImage, text: str) -> None:
        with pytest.raises(AnswerError):
            run(annotator_of(ScriptedChatModel([text])).verify(image, EAR, caption="A green ear."))


class TestRules:
    """An answer that breaks a rule is asked for again; which rules apply depends on the question."""

    def test_short_caption_must_be_one_sentence_and_unique_caption_need_not(self, image: CurationImage) -> None:
        two, one = caption_json("A red cup. It stands left."), caption_json("A red cup.")
        assert short_caption(annotator_of(ScriptedChatModel([two, one])), image) == "A red cup."
        annotator = annotator_of(ScriptedChatModel([two, one]))
        question = annotator.unique_caption(image, CUP, caption="A cup.", lookalikes=[LookAlike(EAR, "An ear.")])
        assert run(question) == "A red cup. It stands left."

    def test_unique_caption_rejects_only_numbers_that_were_shown(self, image: CurationImage) -> None:
        model = ScriptedChatModel([caption_json("Number 1, a cup."), caption_json("A cup with the number 2.")])
        annotator = annotator_of(model)
        question = annotator.unique_caption(image, CUP, caption="A cup.", lookalikes=[LookAlike(EAR, "An ear.")])
        assert run(question) == "A cup with the number 2."
        assert 'only drawn there ("Number 1")' in str(model.requests[1].parts[-1])
        bus = ScriptedChatModel([caption_json("A bus of line number 1.")])
        assert short_caption(annotator_of(bus), image) == "A bus of line number 1."

    def test_prompted_failure_has_the_kind_of_the_last_fault(self, image: CurationImage) -> None:
        said = ["no", caption_json("A cat before a blurred background."), caption_json("I'm sorry, I cannot say.")]
        with metered() as usage, pytest.raises(AnswerError) as failed:
            short_caption(annotator_of(ScriptedChatModel(said)), image)
        assert failed.value.kind == "refusal"
        assert usage.invalid_responses == {"unusable_answer": 1, "mentions_blur": 1, "refusal": 1}

    def test_unique_caption_gives_the_confusion_in_its_own_numbers(self, image: CurationImage) -> None:
        lookalikes = [LookAlike(NOSE, "A nose."), LookAlike(EAR, "An ear.")]
        for choice, told in ((NOSE, "number 1:"), (EAR, "number 2:"), ("none", "none of them"), ("several", "several")):
            model = ScriptedChatModel()
            question = annotator_of(model).unique_caption(
                image, CUP, caption="A cup.", lookalikes=lookalikes, confused_with=choice
            )
            run(question)
            assert told in model.requests[0].text.split("Someone who was given only this caption")[1]


class TestUsage:
    def test_prompted_every_attempt_is_counted(self, image: CurationImage) -> None:
        with metered() as usage:
            short_caption(annotator_of(ScriptedChatModel(["no", "no", caption_json("A cat.")])), image)
        assert (usage.num_calls, usage.num_prompt_tokens, usage.num_new_tokens) == (3, 300, 30)

    def test_prompted_concurrent_images_are_counted_separately(self, image: CurationImage) -> None:
        annotator = annotator_of(ScriptedChatModel(['{"is_true": true}']))

        async def verify(times: int) -> int:
            with metered() as usage:
                async with asyncio.TaskGroup() as group:
                    for _ in range(times):
                        group.create_task(annotator.verify(image, EAR, caption="A green ear."))
            return usage.num_calls

        async def both() -> list[int]:
            return await asyncio.gather(verify(2), verify(5))

        assert run(both()) == [2, 5]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -0.1}, {"temperature": 2.1}, {"max_attempts": 0}, {"max_lookalikes": 0}, {"max_new_tokens": 1}],
)
def test_prompted_config_with_impossible_value_is_rejected(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        PromptedConfig.model_validate(settings)


def test_caption_regions_with_another_verifier_needs_no_second_model(image: CurationImage) -> None:
    """Annotator and verifier are any two annotators."""
    model = _ByContent()
    verifier = RecordingAnnotator()
    annotator = PromptedAnnotator(model, PromptedConfig())
    captions = run(caption_regions(image, annotator, NothingAlike(), UniquenessSettings(), verifier))
    assert verifier.of_stage("verify").keys() == captions.keys() == set(image.regions)
    assert image.tree.parents[EAR] == CAT != ROOT
