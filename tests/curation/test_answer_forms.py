"""Forms of answers that chat models give: which object in them counts, and what is no answer."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.curation.fakes import ScriptedChatModel, image_of
from ureca.curation.listener import PromptedListener, shuffled_candidates
from ureca.curation.prompted import PromptedAnnotator
from ureca.curation.protocols import Choice, Verdict
from ureca.curation.settings import PromptedConfig, PromptedListenerSettings
from ureca.errors import AnswerError
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.masks.tree import ROOT

IMAGE = image_of({1: ROOT, 2: ROOT, 3: ROOT})
DOOR = "A red door with a brass handle."


@dataclass
class Saying:
    """A model that always gives the same answer."""

    text: str
    is_cut_off: bool = False
    name: str = "saying"
    requests: list[ChatRequest] = field(default_factory=list)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        self.requests.append(request)
        return ChatAnswer(self.text, 0, 0, is_cut_off=self.is_cut_off)


def caption_of(text: str, *, is_cut_off: bool = False, **settings: Any) -> str:
    annotator = PromptedAnnotator(Saying(text, is_cut_off), PromptedConfig(**{"max_attempts": 1} | settings))
    return asyncio.run(annotator.short_caption(IMAGE, 1, parent_caption=None, sibling_captions=()))


def verdict_of(text: str) -> Verdict:
    annotator = PromptedAnnotator(Saying(text), PromptedConfig(max_attempts=1))
    return asyncio.run(annotator.verify(IMAGE, 1, caption=DOOR))


def choice_of(text: str) -> Choice:
    """The number in an answer of the listener, or its word."""
    listener = PromptedListener(Saying(text), PromptedListenerSettings(max_attempts=1))
    choice = asyncio.run(listener.choose(IMAGE.views, (1, 2, 3), DOOR))
    return choice if isinstance(choice, str) else shuffled_candidates((1, 2, 3), DOOR).index(choice)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"caption": "{DOOR}"}}',
        f'```json\n{{"caption": "{DOOR}"}}\n```',
        f'```\n{{\n  "caption": "{DOOR}"\n}}\n```\nLet me know if you need more.',
        f'<think>It is red. I will answer.</think>{{"caption": "{DOOR}"}}',
        f'<think>Maybe {{"caption": "a door"}}? No, better the red one.</think>\n{{"caption": "{DOOR}"}}',
        f'<think>set {{left, right}} of doors</think>\n{{"caption": "{DOOR}"}}',
        f'The user wants a caption, e.g. {{"caption": "a door"}}.\n</think>\n\n{{"caption": "{DOOR}"}}',
        f'<think>\n\n</think>\n\n{{"caption": "{DOOR}"}}',
        f'[THINK]A door {{"caption": "x y"}}[/THINK]{{"caption": "{DOOR}"}}',
        f'\u25c1think\u25b7A door.\u25c1/think\u25b7{{"caption": "{DOOR}"}}',
        "<|channel|>analysis<|message|>A door, {ok}.<|end|><|start|>assistant<|channel|>final<|message|>"
        f'{{"caption": "{DOOR}"}}',
        f'{{"caption": "{DOOR}"}}\nNote: {{x}} is not used.',
        f'Here are {{two}} tries.\n{{"caption": "A door."}}\n{{"caption": "{DOOR}"}}',
        f'{{"caption": "{DOOR}"}}\nI kept to the form {{"caption": "..."}}.',
        f'[{{"caption": "{DOOR}"}}]',
        f'{{"answer": {{"caption": "{DOOR}"}}}}',
        f'{{"name": "answer", "parameters": {{"caption": "{DOOR}"}}}}',
        f'<tool_call>\n{{"name": "answer", "arguments": {{"caption": "{DOOR}"}}}}\n</tool_call>',
        '{"properties": {"caption": {"title": "Caption", "type": "string"}}, "required": ["caption"]}\n'
        f'{{"caption": "{DOOR}"}}',
        f'<|begin_of_box|>{{"caption": "{DOOR}"}}<|end_of_box|>',
        f'<answer>{{"caption": "{DOOR}"}}</answer>',
        '{"caption": "A red door\nwith a brass handle."}',
        '{"caption": "A red\tdoor with\r\n a brass handle."}',
        f'{{"caption": "{DOOR}",}}',
        f'{{"caption": "{DOOR}", "confidence": 0.9,}}',
        f"{{'caption': '{DOOR}'}}",
        f"{{'caption': '{DOOR}', 'certain': True, 'other': None}}",
        f'{{caption: "{DOOR}"}}',
        f"{{\u201ccaption\u201d: \u201c{DOOR}\u201d}}",
        f'{{"Caption": "{DOOR}"}}',
        f'{{"CAPTION": "{DOOR}"}}',
        f'{{" caption ": "{DOOR}"}}',
        f'{{"caption": "{DOOR}", "Caption": 3}}',
        '{"caption": "A red door with a brass\\u0020handle."}',
        f'\ufeff{{"caption": "{DOOR}"}}',
        f'Sure! Here is the JSON:\n\n```json\n{{\n    "caption": "{DOOR}"\n}}\n```',
        f'```JSON\n{{"caption": "{DOOR}"}}\n```',
        f'~~~json\n{{"caption": "{DOOR}"}}\n~~~',
        f'json\n{{"caption": "{DOOR}"}}',
        f'{{"caption": "{DOOR}", "score": .9, "weight": 1.}}',
        '{\\"caption\\": \\"A red door with a brass handle.\\"}',
        '{"name": "answer", "arguments": "{\\"caption\\": \\"A red door with a brass handle.\\"}"}',
        '{"caption": "A red door\\\\nwith a brass handle."}',
        f'{{"caption": "{DOOR}" "confidence": 1}}',
        f'{{"caption"\uff1a"{DOOR}"}}',
        f'{{"caption": """{DOOR}"""}}',
        f'{{"caption": "{DOOR}"}}<|im_end|>',
        f'{{"caption": "{DOOR}"}}</s>',
        f'{{"caption": "{DOOR}"}}<end_of_turn>\n',
        f'assistant\n{{"caption": "{DOOR}"}}',
        f'ASSISTANT: {{"caption": "{DOOR}"}}',
        f'<think>\nIt is a door. {{"caption": "..."}}.\n</think>\n\n```json\n{{"caption": "{DOOR}"}}\n```',
        f'<thinking>A door.</thinking>{{"caption": "{DOOR}"}}',
        f'<reasoning>Two candidates: {{a}}, {{b}}.</reasoning>\n{{"caption": "{DOOR}"}}',
        f'{{"reasoning": "The contour holds a door.", "caption": "{DOOR}"}}',
        f'{{"caption": "{DOOR}", "bbox": [12, 30, 88, 120]}}',
        f'{{ "caption" : "{DOOR}" }}',
        f'{{\n  // the region\n  "caption": "{DOOR}"\n}}',
        f'{{"caption": "{DOOR}" /* short */}}',
        f'{{"result": {{"caption": "{DOOR}"}}, "status": "ok"}}',
        f'[{{"type": "text", "text": "x"}}, {{"caption": "{DOOR}"}}]',
        f'Attempt 1: {{"caption": "A door"}} is too vague.\nFinal answer: {{"caption": "{DOOR}"}}',
        f'{{"caption": "  {DOOR}  "}}',
        '{"caption": "A red door\\nwith a brass handle."}',
        f"{{\u2018caption\u2019: \u2018{DOOR}\u2019}}",
    ],
)
def test_caption_is_found_in_the_forms_of_models(text: str) -> None:
    assert caption_of(text) == DOOR


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ('{"caption": "A sign that reads "STOP" on a pole."}', 'A sign that reads "STOP" on a pole.'),
        (
            '{"caption": "A sign reading "NO PARKING: FIRE LANE", with a red border."}',
            'A sign reading "NO PARKING: FIRE LANE", with a red border.',
        ),
        ("{'caption': 'The dog's left ear.'}", "The dog's left ear."),
        (r'{"caption": "The dog\'s left ear."}', "The dog's left ear."),
        (r'{"caption": "A sign that reads \"OPEN\" on a door."}', 'A sign that reads "OPEN" on a door.'),
        ('{"caption": "A {curly} bracket made of iron."}', "A {curly} bracket made of iron."),
        (
            '{"caption": "A sign reading \\u201cPush\\u201d on a red door."}',
            "A sign reading \u201cPush\u201d on a red door.",
        ),
        (r'{"caption": "A cup with \ud83d\ude3a on it\,",}', "A cup with \U0001f63a on it,"),
    ],
)
def test_caption_with_quotes_and_escapes_is_read_whole(text: str, caption: str) -> None:
    assert caption_of(text) == caption


@pytest.mark.parametrize(
    "text",
    [
        DOOR,
        '{"caption": ["A red door."]}',
        "The image shows a red door with a brass handle.",
        '{"caption": 42}',
        '{"caption": true}',
        '{"caption": ""}',
        '{"caption": "   "}',
        "{}",
        "[]",
        "```json\n```",
        '{"captions": ["A red door.", "A brass handle."]}',
        '{"error": "I cannot help with identifying people."}',
        '{"type": "object", "properties": {"caption": {"type": "string"}}}',
        '{"caption": "A red door." "with a handle"',
        "caption A red door with a brass handle",
        '{"caption": {"text": "A red door."}}',
        '{"caption": "{\\"caption\\": \\"A red door by a tree on a street.\\"}"}',
        "{\"caption\": \"{'caption': 'A red door by a tree.'}\"}",
        '{"caption": "```json {caption: A red door} ```"}',
        '{"caption": "\\"caption\\": \\"A red door\\""}',
        '{"caption": "[{\\"caption\\": \\"A red door\\"}]"}',
        '{"caption": "A red door\\u0000 near a tree."}',
        '{"caption": "A red \\u001b[31mdoor."}',
        '{"caption": "A red door\\u0085 near a tree."}',
        '{"caption": "A red \\u202edoor."}',
        '{"caption": "A red d\ufffdor."}',
        '{"caption": "A red \\ud800 door."}',
        '{"caption": "A red door with a brass handle and',
        '{"caption": "A red door."',
        '{"caption": "..."}',
        '{"caption": null}',
        '{"description": "A red door."}',
        '{"caption": "' + "A red door. " * 700 + '"}',
        "{" * 5000,
        '{"a":' * 3000,
        '{"caption": "' * 3000,
        '{"caption": "A red door."} ' + "x" * 100_000,
    ],
)
def test_caption_in_no_such_object_is_unusable(text: str) -> None:
    with pytest.raises(AnswerError) as failed:
        caption_of(text)
    assert failed.value.kind == "unusable_answer"


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"caption": "A red door with a brass handle and',
        "The region shows a door, so the caption is",
        '{"caption": "A door."}\nBetter: {"caption": "A red door with a bra',
        '<think>Maybe {"caption": "a door"}. But the user wants',
    ],
)
def test_answer_at_the_limit_of_tokens_is_cut_off_and_names_the_setting(text: str) -> None:
    with pytest.raises(AnswerError, match=r"64 tokens is the setting annotator\.max_new_tokens") as failed:
        caption_of(text, is_cut_off=True, max_new_tokens=64)
    assert failed.value.kind == "cut_off"


def test_cut_off_answer_of_the_verifier_names_its_own_setting() -> None:
    annotator = PromptedAnnotator(Saying('{"is_true": fal', is_cut_off=True), PromptedConfig(max_attempts=1))
    with pytest.raises(AnswerError, match=r"verification\.max_new_tokens"):
        asyncio.run(annotator.verify(IMAGE, 1, caption=DOOR))
    listener = PromptedListener(Saying("", is_cut_off=True), PromptedListenerSettings(max_attempts=1))
    with pytest.raises(AnswerError, match=r"listener\.max_new_tokens"):
        asyncio.run(listener.choose(IMAGE.views, (1, 2), DOOR))


def test_thinking_that_does_not_end_is_cut_off_even_if_the_engine_does_not_tell() -> None:
    with pytest.raises(AnswerError) as failed:
        caption_of('<think>Draft: {"caption": "A red door."} The user')
    assert failed.value.kind == "cut_off"


def test_complete_object_before_the_limit_of_tokens_is_taken() -> None:
    assert caption_of(f'{{"caption": "{DOOR}"}}\n\n\n\n', is_cut_off=True) == DOOR


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("True", Verdict(True, "the answer gives no reason")),
        ("False", Verdict(False, "the answer gives no reason")),
        ("**True.**", Verdict(True, "the answer gives no reason")),
        ("False, the door is blue.", Verdict(False, "the door is blue.")),
        ("The statement is true.", Verdict(True, "the answer gives no reason")),
        ("Answer: true", Verdict(True, "the answer gives no reason")),
        ("The caption is False: the door\nis blue.", Verdict(False, "the door is blue.")),
        ("<think>It is red, so true? No, false.</think>\nTrue", Verdict(True, "the answer gives no reason")),
        ("<|begin_of_box|>False<|end_of_box|>", Verdict(False, "the answer gives no reason")),
        ("<answer>True</answer>", Verdict(True, "the answer gives no reason")),
        ("\\boxed{True}", Verdict(True, "the answer gives no reason")),
        ("```\nFalse\n```", Verdict(False, "the answer gives no reason")),
        ('{"is_true": "True", "reason": ""}', Verdict(True, "")),
        ('{"is_true": True, "reason": "It is."}', Verdict(True, "It is.")),
        ("{'is_true': False, 'reason': 'It's blue.'}", Verdict(False, "It's blue.")),
        ('{"is_true": "False.", "reason": "It is blue."}', Verdict(False, "It is blue.")),
        ('{"isTrue": true, "Reason": null}', Verdict(True, "")),
        ('{"is_true": true, "reason": "So\\u0000 it is."}', Verdict(True, "So it is.")),
    ],
)
def test_verdict_is_found_in_the_forms_of_models(text: str, verdict: Verdict) -> None:
    assert verdict_of(text) == verdict


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"is_true": false}', "no_reason"),
        ("It may be true or false.", "unusable_answer"),
        ("Truely.", "unusable_answer"),
        ('{"is_true": "maybe", "reason": "True"}', "unusable_answer"),
        ("I'm sorry, I cannot say if it is true.", "refusal"),
    ],
)
def test_verdict_in_no_such_form_is_unusable(text: str, kind: str) -> None:
    with pytest.raises(AnswerError) as failed:
        verdict_of(text)
    assert failed.value.kind == kind


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('{"choice": "2"}', 2),
        ('{"choice": 2.0}', 2),
        ('{"choice": "2.0"}', 2),
        ('{"choice": "Number 1"}', 1),
        ('{"choice": "#1"}', 1),
        ('{"choice": "None"}', "none"),
        ('{"choice": "NONE."}', "none"),
        ('{"choice": None}', "none"),
        ('{"choice": null}', "none"),
        ('{"choice": "Several"}', "several"),
        ('{"Choice": 0}', 0),
        ("{'choice': 'several'}", "several"),
        ("<think>0 or 1?</think>\n2", 2),
        ("**1**", 1),
        ("none", "none"),
        ("The answer is 1.", 1),
        ("<answer>1</answer>", 1),
        ("**Answer:** 2", 2),
        ("The caption fits number 0.", 0),
        ("Answer: none", "none"),
        ("The correct choice is several.", "several"),
        ("\\boxed{2}", 2),
    ],
)
def test_choice_is_found_in_the_forms_of_models(text: str, choice: Choice) -> None:
    assert choice_of(text) == choice


@pytest.mark.parametrize(
    "text", ['{"choice": 1.5}', '{"choice": true}', '{"choice": [1]}', '{"choice": "0 or 1"}', "0, 1"]
)
def test_choice_in_no_such_form_is_unusable(text: str) -> None:
    with pytest.raises(AnswerError) as failed:
        choice_of(text)
    assert failed.value.kind == "unusable_answer"


_JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)


@given(st.text(st.characters(categories=["L", "P", "N", "Zs"]), max_size=60), _JSON_VALUES, st.booleans())
def test_strict_json_is_read_as_it_is(words: str, other: object, is_ascii: bool) -> None:
    caption = f"A door {' '.join(words.split())}".strip()
    text = json.dumps({"other": other, "caption": caption}, ensure_ascii=is_ascii)
    try:
        said = caption_of(text, rules={"language": "any"})
    except AnswerError:
        return  # a rule forbids the words
    assert said == caption


@given(st.text(max_size=200), st.booleans())
def test_any_text_gets_a_caption_or_a_named_kind(text: str, is_cut_off: bool) -> None:
    try:
        assert caption_of(text, is_cut_off=is_cut_off)
    except AnswerError as error:
        assert error.kind in {"unusable_answer", "cut_off", "refusal"}


def test_requests_carry_schemas_without_lengths() -> None:
    model = ScriptedChatModel(['{"caption": "A door."}'])
    annotator = PromptedAnnotator(model, PromptedConfig())
    asyncio.run(annotator.short_caption(IMAGE, 1, parent_caption=None, sibling_captions=()))
    model.texts = ['{"is_true": true}']
    asyncio.run(annotator.verify(IMAGE, 1, caption=DOOR))
    for request in model.requests:
        assert not {"maxLength", "minLength", "maxItems"} & set(json.dumps(request.answer_schema).split('"'))
    caption, verdict = (request.answer_schema for request in model.requests)
    assert caption == {"properties": {"caption": {"type": "string"}}, "required": ["caption"], "type": "object"}
    assert verdict["properties"] == {"is_true": {"type": "boolean"}, "reason": {"type": "string"}}


def test_retry_shows_the_refused_answer_without_its_thinking() -> None:
    refused = '<think>Hm.</think>{"caption": "The region shows a door."}'
    model = ScriptedChatModel([refused, '{"caption": "A door."}'])
    annotator = PromptedAnnotator(model, PromptedConfig())
    assert asyncio.run(annotator.short_caption(IMAGE, 1, parent_caption=None, sibling_captions=())) == "A door."
    first, second = model.requests
    assert second.parts[: len(first.parts)] == first.parts
    (retry,) = second.parts[len(first.parts) :]
    assert '{"caption": "The region shows a door."}' in str(retry)
    assert "Hm." not in str(retry)


def test_retry_bounds_the_refused_answer_it_shows() -> None:
    model = ScriptedChatModel(["no \x1b[2J" * 5000, '{"caption": "A door."}'])
    annotator = PromptedAnnotator(model, PromptedConfig())
    asyncio.run(annotator.short_caption(IMAGE, 1, parent_caption=None, sibling_captions=()))
    retry = str(model.requests[1].parts[-1])
    assert len(retry) < 1000
    assert "\x1b" not in retry


def test_answer_that_declines_in_place_of_an_object_is_told_as_such() -> None:
    with pytest.raises(AnswerError) as failed:
        caption_of("I'm sorry, but I can't assist with that request.")
    assert failed.value.kind == "refusal"
