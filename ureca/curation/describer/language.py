"""English: articles, numbers, plurals and lists."""

from collections.abc import Sequence

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
