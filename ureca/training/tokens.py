"""What texts, images and masks cost in tokens with a given processor; it agrees with ``ureca.training.packing``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from ureca.training.counts import TokenCosts

if TYPE_CHECKING:
    from ureca.model.processing import UrecaProcessor


class TextTokens(Protocol):
    """Counts tokens of texts.

    Attributes:
        identity: differs where the counts may; part of an index's fingerprint.
        special_tokens: texts that no question and no answer may hold, since they are no text to the tokenizer.
    """

    identity: str
    special_tokens: tuple[str, ...]

    def of_questions(self, questions: Sequence[str]) -> list[int]:
        """Tokens of a segment from its mask's end to its answer, for each question."""
        ...

    def of_answers(self, answers: Sequence[str]) -> list[int]:
        """Tokens of each answer with the end of its turn."""
        ...


class ProcessorTextTokens:
    """Counts tokens as a processor's prompts have them.

    Args:
        processor: of the model that is trained.
    """

    def __init__(self, processor: UrecaProcessor) -> None:
        from ureca.training.packing import end_of_turn

        self._processor = processor
        vocabulary = sorted(processor.tokenizer.get_vocab().items())
        parts = (vocabulary, processor.chat_template, processor.region_prompt)
        self.identity = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        self.special_tokens = tuple(processor.tokenizer.all_special_tokens)
        (self._end_of_turn,) = self._count([end_of_turn(processor)])
        # Sources ask few questions of many regions, and templates are slow.
        self._of_question = lru_cache(maxsize=65_536)(self._count_question)

    def of_questions(self, questions: Sequence[str]) -> list[int]:
        """Tokens of a segment from its mask's end to its answer, for each question."""
        return [self._of_question(question) for question in questions]

    def of_answers(self, answers: Sequence[str]) -> list[int]:
        """Tokens of each answer with the end of its turn."""
        return [count + self._end_of_turn for count in self._count(answers)]

    def _count_question(self, question: str) -> int:
        (count,) = self._count([self._processor.split_prompt(question)[1]])
        return count

    def _count(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in self._processor.tokenizer(list(texts), add_special_tokens=False).input_ids]


def costs_of(processor: UrecaProcessor) -> TokenCosts:
    """What a packed row spends on images and masks with this processor."""
    from ureca.model.processing import QUESTION
    from ureca.model.region_prompt import shares_image

    beginning = processor.split_prompt(QUESTION)[0].replace(processor.image_token, processor.image_placeholders(0))
    prompt = processor.region_prompt
    with_mask = prompt == "mask"
    return TokenCosts(
        image=len(processor.tokenizer(beginning, add_special_tokens=False).input_ids),
        image_tile=processor.image_seq_length,
        region=2 if with_mask else 0,
        mask_tile=processor.num_mask_tokens if with_mask else 0,
        one_mask_tile=not processor.dynamic_mask,
        shared=shares_image(prompt),
        # A crop has a grid of its own, which only its pixels tell.
        tiles=processor.image_processor.max_tiles + 1 if prompt == "crop" else None,
    )
