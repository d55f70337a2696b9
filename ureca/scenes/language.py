"""The language of captions of scenes: its words, and its grammar, which ``str`` writes and ``parse`` reads.

    caption   = description "." [ "It has" items "." ]
    description = ("a" | "an" | "the") noun [ relation description ]
    items     = item | item { "," item } "and" item
    item      = ("a" | "an" | number) noun
    noun      = [order] [size] [colour] [pattern] kind [ "with" item ]

``order`` occurs in descriptions only; a kind after a number is a plural. "with" and a relation belong to the kind just
before them. ``ureca.scenes.scene.resolve`` defines the meaning.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ureca.errors import AnswerError

COLOURS = {
    "red": (214, 48, 49),
    "orange": (243, 146, 36),
    "yellow": (247, 216, 66),
    "green": (76, 166, 76),
    "turquoise": (64, 200, 190),
    "blue": (58, 110, 205),
    "purple": (132, 76, 176),
    "pink": (244, 150, 190),
    "brown": (134, 86, 50),
    "black": (44, 44, 50),
    "grey": (146, 150, 156),
    "white": (246, 246, 242),
}
"""sRGB of each colour; drawn colours differ from it by at most ``rendering.JITTER`` per channel."""

PATTERNS = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "large")
ORDERS = ("leftmost", "middle", "rightmost", "highest", "lowest")

OF = "of"
LEFT_OF, RIGHT_OF = "to the left of", "to the right of"
IN_FRONT_OF, BEHIND = "in front of", "behind"
RELATIONS = (OF, LEFT_OF, RIGHT_OF, IN_FRONT_OF, BEHIND)

NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}

KINDS = {
    # objects
    "house": "houses",
    "car": "cars",
    "tree": "trees",
    "robot": "robots",
    "flower": "flowers",
    "balloon": "balloons",
    "rocket": "rockets",
    "tower": "towers",
    # background
    "sky": "skies",
    "ground": "grounds",
    "hill": "hills",
    "cloud": "clouds",
    "pond": "ponds",
    # parts and details
    "wall": "walls",
    "roof": "roofs",
    "chimney": "chimneys",
    "cap": "caps",
    "window": "windows",
    "skylight": "skylights",
    "door": "doors",
    "knob": "knobs",
    "body": "bodies",
    "cabin": "cabins",
    "handle": "handles",
    "lamp": "lamps",
    "wheel": "wheels",
    "hub": "hubs",
    "trunk": "trunks",
    "hole": "holes",
    "crown": "crowns",
    "apple": "apples",
    "head": "heads",
    "eye": "eyes",
    "mouth": "mouths",
    "arm": "arms",
    "hand": "hands",
    "leg": "legs",
    "panel": "panels",
    "button": "buttons",
    "blossom": "blossoms",
    "heart": "hearts",
    "stem": "stems",
    "leaf": "leaves",
    "pot": "pots",
    "band": "bands",
    "envelope": "envelopes",
    "star": "stars",
    "rope": "ropes",
    "basket": "baskets",
    "badge": "badges",
    "nose": "noses",
    "fin": "fins",
    "flame": "flames",
    "core": "cores",
    "porthole": "portholes",
    "glass": "glasses",
    "shaft": "shafts",
    "lantern": "lanterns",
}
"""Plural by singular."""

BACKDROP = ("sky", "ground")
"""Kinds without a place, which are in no relation to other regions."""


ADJECTIVES: Mapping[str, tuple[str, ...]] = {
    "order": ORDERS,
    "size": SIZES,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
}
"""Words of each class of adjectives, in their order before a kind."""

_ARTICLES = ("the", "an", "a")
_SINGULARS = {plural: singular for singular, plural in KINDS.items()}
_NUMBER_WORDS = {number: word for word, number in NUMBERS.items()}
_MAX_NESTING = 12
_TOKEN = re.compile(r"[^\W\d_]+|\S")


class CaptionError(AnswerError):
    """A caption is not of the language of scenes.

    Args:
        caption: the whole text.
        position: index of the first character that does not parse.
        expected: description of the words that would have parsed there.
    """

    def __init__(self, caption: str, position: int, expected: str) -> None:
        token = _TOKEN.search(caption, position)
        found = "the end" if token is None else repr(token[0])
        super().__init__(
            "not_in_language", f"{found} at character {position}, where {expected} could stand: {caption!r}"
        )
        self.position = position


@dataclass(frozen=True, slots=True)
class Description:
    """A description of a region, or of several equal ones.

    Attributes:
        kind: kind in the singular.
        article: "the", or "a" for "a" and "an"; "a" for an item with a number.
        number: number of regions in an item, 1 without a number.
        order, size, colour, pattern: adjectives; None for a missing one.
        having: the item after "with"; None without it.
        relation: words of the relation and description of its landmark; None without a relation.
    """

    kind: str
    article: str = "the"
    number: int = 1
    order: str | None = None
    size: str | None = None
    colour: str | None = None
    pattern: str | None = None
    having: Self | None = None
    relation: tuple[str, Self] | None = None

    def __str__(self) -> str:
        return " ".join(self._words())

    def _words(self) -> Iterator[str]:
        words = [word for name in ADJECTIVES if (word := getattr(self, name)) is not None]
        words.append(self.kind if self.number == 1 else KINDS[self.kind])
        if self.number > 1:
            yield _NUMBER_WORDS[self.number]
        else:
            yield "an" if self.article == "a" and words[0][0] in "aeiou" else self.article
        yield from words
        if self.having is not None:
            yield f"with {self.having}"
        if self.relation is not None:
            yield f"{self.relation[0]} {self.relation[1]}"


@dataclass(frozen=True, slots=True)
class Caption:
    """A description of one region and, in a second sentence, items for its parts."""

    region: Description
    items: tuple[Description, ...] = ()

    def __str__(self) -> str:
        text = str(self.region)
        text = f"{text[0].upper()}{text[1:]}."
        if not self.items:
            return text
        *first, last = (str(item) for item in self.items)
        return f"{text} It has {', '.join(first)}{' and ' if first else ''}{last}."


def parse(text: str) -> Caption:
    """Parse a caption, ignoring case.

    Raises:
        CaptionError: the text is not of this language; the error has the position of the first wrong character.
    """
    reader = _TokenReader(text)
    region = _description(reader)
    reader.expect(["."], "a full stop")
    items: list[Description] = []
    if not reader.at_end:
        reader.expect(["it has"], "'It has' or the end")
        items.append(_item(reader))
        while reader.take([","]):
            items.append(_item(reader))
        if reader.take(["and"]) or len(items) > 1:
            items.append(_item(reader))
        reader.expect(["."], "',', 'and' or a full stop")
    reader.expect([""], "the end")
    return Caption(region, tuple(items))


class _TokenReader:
    """Consumes the words of a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [(match[0].lower(), match.start()) for match in _TOKEN.finditer(text)]
        self._next = 0

    @property
    def at_end(self) -> bool:
        return self._next == len(self._tokens)

    def take(self, phrases: Iterable[str]) -> str | None:
        """Consume the first phrase that is next in the text; "" stands for the end. None: no phrase is next."""
        for phrase in phrases:
            words = phrase.split()
            here = [token for token, _ in self._tokens[self._next : self._next + len(words)]]
            if here == words and (words or self.at_end):
                self._next += len(words)
                return phrase
        return None

    def expect(self, phrases: Iterable[str], expected: str) -> str:
        """Consume one of the phrases, one of which must be next.

        Raises:
            CaptionError: none of them is next.
        """
        phrase = self.take(phrases)
        if phrase is None:
            raise self.error(expected)
        return phrase

    def error(self, expected: str) -> CaptionError:
        return CaptionError(self._text, len(self._text) if self.at_end else self._tokens[self._next][1], expected)


def _description(reader: _TokenReader, nesting: int = 0) -> Description:
    if nesting > _MAX_NESTING:
        raise reader.error(f"the end of more than {_MAX_NESTING} descriptions within each other")
    article = reader.expect(_ARTICLES, "an article")
    adjectives: dict[str, Any] = {name: reader.take(words) for name, words in ADJECTIVES.items()}
    kind = reader.expect(KINDS, "an adjective or a kind")
    having = _item(reader, nesting + 1) if reader.take(["with"]) else None
    word = reader.take(RELATIONS)
    relation = None if word is None else (word, _description(reader, nesting + 1))
    return Description(kind, article.replace("an", "a"), having=having, relation=relation, **adjectives)


def _item(reader: _TokenReader, nesting: int = 0) -> Description:
    if nesting > _MAX_NESTING:
        raise reader.error(f"the end of more than {_MAX_NESTING} descriptions within each other")
    number = NUMBERS.get(reader.expect(("an", "a", *NUMBERS), "'a', 'an' or a number"), 1)
    adjectives: dict[str, Any] = {name: reader.take(words) for name, words in ADJECTIVES.items() if name != "order"}
    if number == 1:
        kind = reader.expect(KINDS, "an adjective or a kind")
    else:
        kind = _SINGULARS[reader.expect(_SINGULARS, "an adjective or the plural of a kind")]
    having = _item(reader, nesting + 1) if reader.take(["with"]) else None
    return Description(kind, "a", number, having=having, **adjectives)
