"""JSON objects as chat models write them: strict JSON, or with the faults that models make.

Read in addition to strict JSON: line breaks and tabs within strings, trailing and missing commas, single, typographic
and triple quotes, unescaped quotes within a string, unknown escapes, keys without quotes, comments, and Python's
``True``, ``False`` and ``None``.
An object that does not end is not read: its text may be cut off anywhere.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_STRICT = json.JSONDecoder(strict=False)
_MAX_TRIES = 256
"""Largest number of opening braces from which an object is read, so that hostile text costs little."""
_MAX_DEPTH = 16

_GAP = r"(?:\s|//[^\n]{0,1000}(?:\n|$)|/\*[^*]{0,1000}\*/)*+"  # white space, and the comments of JavaScript
_SPACE = re.compile(_GAP)
_WORD = re.compile(r"[A-Za-z_][\w-]{0,99}")
_NUMBER = re.compile(r"[-+]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][-+]?\d{1,3})?")
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_CLOSING_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_CODE = re.compile(r"u([0-9a-fA-F]{4})")
_AFTER_STRING = re.compile(
    _GAP + r"(?:[:\uff1a}\]]|[\"'\u201c]\w{1,60}[\"'\u201d]\s*:|"
    r",\s*(?:[}\]]|[\"'\u201c][^\"':]{1,60}[\"'\u201d]\s*:|[A-Za-z_]\w{0,60}\s*:)|$)"
)


def read_objects(text: str, take: Callable[[dict[str, Any]], bool]) -> int:
    """Read the objects in a text in order, and those within an object or list that is not taken.

    None in a string is read, except in that of the key ``arguments``, as of a function call.

    Args:
        text: text with objects anywhere.
        take: function that gets each object and returns True to take it.

    Returns:
        The position after the last object that was taken; 0 if there is none.
    """
    position = end_of_taken = 0
    for _ in range(_MAX_TRIES):
        start = text.find("{", position)
        if start < 0:
            break
        position = start + 1
        try:
            content, end = _STRICT.raw_decode(text, start)
        except (ValueError, RecursionError):
            try:
                content, end = _read_value(text, start, 0)
            except ValueError:
                continue
        position = end
        pending = [content]
        while pending:
            value = pending.pop()
            if isinstance(value, dict) and take(value):
                end_of_taken = end
            else:
                inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
                pending.extend(reversed(list(inner)))
                # A call of a function has its arguments as a string of JSON.
                if isinstance(value, dict) and isinstance(arguments := value.get("arguments"), str):
                    with suppress(ValueError, RecursionError):
                        pending.append(_STRICT.decode(arguments))
    return end_of_taken


def _read_value(text: str, start: int, depth: int) -> tuple[Any, int]:
    """Read a value, and return it with the position after it; raises ``ValueError`` where there is none."""
    start = _after_space(text, start)
    first = text[start : start + 1]
    if depth > _MAX_DEPTH or not first:
        raise ValueError(start)
    if first in _CLOSING_QUOTES:
        return _read_string(text, start)
    if first == "{":
        return _read_object(text, start, depth)
    if first == "[":
        return _read_list(text, start, depth)
    if number := _NUMBER.match(text, start):
        literal = number[0].lstrip("+")
        return (int(literal) if re.fullmatch(r"-?\d+", literal) else float(literal)), number.end()
    word = _WORD.match(text, start)
    if word is None or word[0].casefold() not in _CONSTANTS:
        raise ValueError(start)
    return _CONSTANTS[word[0].casefold()], word.end()


def _read_object(text: str, start: int, depth: int) -> tuple[dict[str, Any], int]:
    content: dict[str, Any] = {}
    position = _after_space(text, start + 1)
    while text[position : position + 1] != "}":
        if text[position : position + 1] in _CLOSING_QUOTES and position < len(text):
            key, position = _read_string(text, position)
        elif word := _WORD.match(text, position):
            key, position = word[0], word.end()
        else:
            raise ValueError(position)
        position = _after_space(text, position)
        if text[position : position + 1] not in {":", "\uff1a"}:
            raise ValueError(position)
        content[key], position = _read_value(text, position + 1, depth + 1)
        position = _after_comma(text, position, "}")
    return content, position + 1


def _read_list(text: str, start: int, depth: int) -> tuple[list[Any], int]:
    content = []
    position = _after_space(text, start + 1)
    while text[position : position + 1] != "]":
        value, position = _read_value(text, position, depth + 1)
        content.append(value)
        position = _after_comma(text, position, "]")
    return content, position + 1


def _after_comma(text: str, position: int, closing: str) -> int:
    """Skip the comma between two entries; a last one may have it, too, and the next one may begin without it."""
    position = _after_space(text, position)
    if text[position : position + 1] == ",":
        return _after_space(text, position + 1)
    if text[position : position + 1] not in {closing, '"'}:
        raise ValueError(position)
    return position


def _read_string(text: str, start: int) -> tuple[str, int]:
    """Read a string, which ends at the first quote that something other than text follows."""
    if text.startswith('"""', start) and (end := text.find('"""', start + 3)) >= 0:
        return text[start + 3 : end], end + 3
    closing = _CLOSING_QUOTES[text[start]]
    special = re.compile(rf"[\\{closing}]")
    pieces: list[str] = []
    position = start + 1
    while found := special.search(text, position):
        pieces.append(text[position : found.start()])
        position = found.end()
        if found[0] == closing:
            if _AFTER_STRING.match(text, position):
                # Two escapes can be one character beyond the basic plane.
                joined = "".join(pieces).encode("utf-16", "surrogatepass")
                return joined.decode("utf-16", "surrogatepass"), position
            pieces.append(closing)
        elif code := _CODE.match(text, position):
            pieces.append(chr(int(code[1], 16)))
            position = code.end()
        else:
            escaped = text[position : position + 1]
            pieces.append(_ESCAPES.get(escaped, escaped))
            position += 1
    raise ValueError(start)


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position
