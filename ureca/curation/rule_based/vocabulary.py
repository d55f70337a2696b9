"""English: articles, numbers, plurals and lists.

[from] Words whose truth is decidable: one rule serves to choose a word and to judge somebody else's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

Measured = TypeVar("Measured")

Rule = Callable[[Measured, float], bool]
"""Whether a word is true of a measurement, given a slack of 0 (clearly true) or more (thresholds relaxed by it)."""

TOLERANCE = 0.1
"""Slack, in the unit of shares, at which another's word still passes: people draw these lines less sharply."""


class Vocabulary(Generic[Measured]):
    """Words for one quality, the most telling first.

    Every rule accepts at ``TOLERANCE`` whatever it accepts without slack, so a word that ``name`` chose always fits.
    """

    def __init__(self, rules: Mapping[str, Rule[Measured]]) -> None:
        self._rules = dict(rules)

    @property
    def words(self) -> tuple[str, ...]:
        """All of them, the most telling first."""
        return tuple(self._rules)

    def name(self, measured: Measured) -> str | None:
        """The first word that is clearly true; None where none is."""
        return next((word for word, rule in self._rules.items() if rule(measured, 0.0)), None)

    def fits(self, word: str, measured: Measured) -> bool:
        """Whether a word of this vocabulary can be said, with ``TOLERANCE``."""
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


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"; right for the words that captions are made of."""
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def number(value: int) -> str:
    """A word up to twelve, digits above."""
    return _SMALL_NUMBERS[value][0] if value in _SMALL_NUMBERS else str(value)


def ordinal(value: int) -> str:
    """A word up to twelfth, digits with their suffix above."""
    if value in _SMALL_NUMBERS:
        return _SMALL_NUMBERS[value][1]
    suffix = "th" if value % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{value}{suffix}"


def plural(noun: str) -> str:
    """Right for the nouns that captions are made of."""
    return noun + ("es" if noun.endswith("ch") else "s")


def enumeration(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def sentence(words: str) -> str:
    """With a capital letter and a full stop."""
    return f"{words[0].upper()}{words[1:]}."
