"""Vocabularies, whose rules decide if a word fits a measurement, and English articles, numbers and lists."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

Measured = TypeVar("Measured")

Rule = Callable[[Measured, float], bool]
"""Test if a word fits a measurement, with a slack that relaxes its thresholds; 0: the word fits clearly."""

TOLERANCE = 0.1
"""Slack, as a fraction, with which words of other authors are accepted."""


class Vocabulary(Generic[Measured]):
    """Words for one quality, the most specific first.

    Every rule accepts with ``TOLERANCE`` what it accepts without slack, so that a word from ``name`` always fits.

    Args:
        rules: rule of each word.
    """

    def __init__(self, rules: Mapping[str, Rule[Measured]]) -> None:
        self._rules = dict(rules)

    @property
    def words(self) -> tuple[str, ...]:
        """All words, the most specific first."""
        return tuple(self._rules)

    def name(self, measured: Measured) -> str | None:
        """Return the first word that fits clearly; None if there is none."""
        return next((word for word, rule in self._rules.items() if rule(measured, 0.0)), None)

    def fits(self, word: str, measured: Measured) -> bool:
        """Return True if a word of this vocabulary fits with ``TOLERANCE``."""
        return self._rules[word](measured, TOLERANCE)


_SMALL_NUMBERS = {
    0: ("no", "zeroth"),
    1: ("one", "first"),
    2: ("two", "second"),
    3: ("three", "third"),
    4: ("four", "fourth"),
    5: ("five", "fifth"),
    6: ("six", "sixth"),
    7: ("seven", "seventh"),
    8: ("eight", "eighth"),
    9: ("nine", "ninth"),
    10: ("ten", "tenth"),
    11: ("eleven", "eleventh"),
    12: ("twelve", "twelfth"),
}


_MAX_NOUN_WORDS = 4
_NO_NOUNS = frozenset(
    {"background", "image", "instance", "mask", "none", "object", "other", "region", "thing", "unknown", "void"}
)
_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "leaf": "leaves",
    "knife": "knives",
    "shelf": "shelves",
    **{same: same for same in ("sheep", "fish", "deer", "bison", "aircraft", "people", "furniture", "grass", "water")},
}
_WITHOUT_SINGULAR = frozenset(
    {"furniture", "grass", "people", "water", *_IRREGULAR.values()} - {"sheep", "fish", "deer", "bison", "aircraft"}
)
_SINGULAR_IN_S = frozenset({"atlas", "canvas", "gas", "lens"})
_CONSONANT_U = re.compile(r"u(?:ni|se|su|te|ti|re)")


def noun_of(category: str | None) -> str | None:
    """Return the noun in the name of a class: "traffic light" of "Traffic_light", "person" of "person, individual".

    None: the name is none that a caption could use, such as a number, "object", or more than four words.
    """
    if category is None:
        return None
    noun = " ".join(re.split(r"[,(/;|]", category.lower(), maxsplit=1)[0].replace("_", " ").replace("-", " ").split())
    is_usable = noun.replace(" ", "").isalpha() and noun.count(" ") < _MAX_NOUN_WORDS and noun not in _NO_NOUNS
    return noun if is_usable else None


def with_article(phrase: str) -> str:
    """Prefix a phrase with "a" or "an", or with "some" if its noun is a plural ("cars") or a mass ("grass")."""
    if _is_plural_or_mass(phrase.rpartition(" ")[2]):
        return f"some {phrase}"
    is_vowel = phrase[0] in "aeio" or (phrase[0] == "u" and _CONSONANT_U.match(phrase) is None)
    return f"{'an' if is_vowel else 'a'} {phrase}"


def _is_plural_or_mass(noun: str) -> bool:
    return noun in _WITHOUT_SINGULAR or (
        noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and noun not in _SINGULAR_IN_S
    )


def number(value: int) -> str:
    """Return a number as a word up to twelve, in digits above."""
    return _SMALL_NUMBERS[value][0] if value in _SMALL_NUMBERS else str(value)


def ordinal(value: int) -> str:
    """Return an ordinal as a word up to twelfth, as digits with a suffix above."""
    if value in _SMALL_NUMBERS:
        return _SMALL_NUMBERS[value][1]
    suffix = "th" if value % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{value}{suffix}"


def plural(noun: str) -> str:
    """Return the plural; correct for the nouns of the captions, and for most names of classes."""
    before, space, last = noun.rpartition(" ")
    if _is_plural_or_mass(last):
        return noun
    if last in _IRREGULAR:
        return f"{before}{space}{_IRREGULAR[last]}"
    if last.endswith("y") and last[-2:-1] not in ("", *"aeiou"):
        return f"{noun[:-1]}ies"
    return noun + ("es" if last.endswith(("ch", "sh", "s", "x", "z")) else "s")


def enumeration(items: Sequence[str]) -> str:
    """Join items: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def sentence(words: str) -> str:
    """Add a capital letter and a full stop."""
    return f"{words[0].upper()}{words[1:]}."
