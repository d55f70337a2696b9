"""Words whose truth is decidable: one rule serves to choose a word and to judge somebody else's."""

from collections.abc import Callable, Mapping
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
