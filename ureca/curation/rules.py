"""Rules that reject captions: refusals, mentions of the marks on the views, other languages, wrong lengths.

The rules are written for English. They accept a doubtful caption rather than reject a good one: a ground may be marked,
a crop be wheat, a picture hang on a wall.
"""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ureca.llm.structured import InvalidResponseError, check_not_refusal

_MIN_WORDS_TO_DETECT_LANGUAGE = 8

_MIN_LATIN_FRACTION = 0.9

_COMMON_WORDS = {
    *("a", "an", "the", "of", "in", "on", "at", "with", "and", "or", "is", "are"),
    *("to", "from", "by", "its", "for", "that", "which", "has", "near"),
}

_MENTIONS = {
    "mentions_marks": re.compile(
        r"\bcontour(?:s|ed)?\b|\boutlin(?:e|es|ed|ing)\b|\bbounding box(?:es)?\b"
        r"|\b(?:highlighted|marked|circled|masked|segmented) (?:area|region|part|object|section|portion)\b"
        r"|\bthis region\b",
        re.IGNORECASE,
    ),
    "mentions_blur": re.compile(r"\b(?:un)?blur(?:s|red|ring|ry|riness)?\b", re.IGNORECASE),
    "mentions_picture": re.compile(
        r"\b(?:the|this) (?:(?:whole|entire|full|given|provided|first|second|third|left|right|original|cropped) )*"
        r"(?:image|photo|photograph|picture|screenshot)s?\b(?! (?:frame|album|book|window|rail|on the wall))"
        r"|\bthis crop\b|\b(?:in|of) the crop\b|\bcropped (?:image|photo|picture|view|version|section|area|region)\b"
        r"|\bclose-up crop\b|\bis cropped\b",
        re.IGNORECASE,
    ),
}

_REASONS = {
    "mentions_marks": "it mentions the line or mark that shows which thing is meant",
    "mentions_blur": "it mentions the blur, which is not part of the photograph",
    "mentions_picture": "it speaks of a picture, photo or crop instead of what can be seen",
}

_ABBREVIATED = re.compile(r"(?:\b(?:mr|mrs|ms|dr|st|mt|no|vs|ca|approx|jr|sr|inc|e\.g|i\.e)|\b[a-z])$", re.IGNORECASE)
_END_OF_SENTENCE = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[A-Z0-9])")


class CaptionRules(BaseModel):
    """Rules that a caption must keep to be accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_words: int = Field(default=2, ge=1, description="minimum number of words of a caption")
    max_short_words: int = Field(default=80, ge=2, description="maximum number of words of a short caption")
    max_words: int = Field(default=400, ge=2, description="maximum number of words of a detailed or unique caption")
    language: Literal["english", "any"] = Field(
        default="english", description="english: reject captions in another script or without English words"
    )

    def check(self, caption: str, *, short: bool = False, highest_number: int | None = None) -> None:
        """Check a caption against all rules.

        Args:
            caption: caption on one line, not blank.
            short: require one sentence of at most ``max_short_words`` words.
            highest_number: highest of the numbers, from 0, that were drawn on the view; None: no numbers were drawn.

        Raises:
            InvalidResponseError: ``refusal``, ``mentions_marks``, ``mentions_blur``, ``mentions_picture``,
                ``mentions_numbers``, ``other_language``, ``too_short``, ``too_long`` or ``several_sentences``.
        """
        check_not_refusal(caption)
        for kind, pattern in _MENTIONS.items():
            if found := pattern.search(caption):
                raise InvalidResponseError(kind, f'{_REASONS[kind]} ("{found[0]}")')
        if highest_number is not None and (mention := _mentioned_number(caption, highest_number)):
            raise InvalidResponseError(
                "mentions_numbers", f'it mentions a number that is only drawn there ("{mention}")'
            )
        if self.language == "english" and not _may_be_english(caption):
            raise InvalidResponseError("other_language", "it is not in English")
        num_words = len(caption.split())
        limit = min(self.max_words, self.max_short_words) if short else self.max_words
        if num_words < self.min_words:
            raise InvalidResponseError("too_short", f"it has fewer words than {self.min_words}")
        if num_words > limit:
            raise InvalidResponseError("too_long", f"it has {num_words} words, and {limit} is the limit")
        if short and num_sentences(caption) > 1:
            raise InvalidResponseError("several_sentences", "it must be one sentence")


def num_sentences(text: str) -> int:
    """Count the sentences of a text, at least 1; a full stop after an abbreviation or a single letter ends none."""
    ends = [
        end
        for end in _END_OF_SENTENCE.finditer(text)
        if text[end.start()] != "." or not _ABBREVIATED.search(text[: end.start()])
    ]
    return 1 + len(ends)


def _mentioned_number(caption: str, highest: int) -> str | None:
    """Return the mention of one of the numbers 0 to ``highest``; a greater one may be real, such as on a jersey."""
    pattern = r"\b(?:number|no\.|index|label|labell?ed|numbered|region|object|item)\s*#?\s*(\d{1,3})\b|#\s?(\d{1,3})\b"
    for found in re.finditer(pattern, caption, re.IGNORECASE):
        if int(found[1] or found[2]) <= highest:
            return found[0]
    named = re.search(r"\b(?:indices|index (?:number|zero|one|two)|number zero)\b", caption, re.IGNORECASE)
    return None if named is None else named[0]


def _may_be_english(caption: str) -> bool:
    letters = [character for character in caption if character.isalpha()]
    latin = sum(character < "\u0250" for character in letters)
    if not letters or latin < _MIN_LATIN_FRACTION * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", caption.lower())
    return len(words) < _MIN_WORDS_TO_DETECT_LANGUAGE or not _COMMON_WORDS.isdisjoint(words)
