"""Reading of large JSON files one element at a time, with memory for one element."""

import codecs
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

MAX_ELEMENT_CHARACTERS = 2**24

_MARK_BYTES = 4  # first bytes of a text, by which its encoding is recognized
_MAX_DIGITS = 400  # Python refuses to read longer integers

_SPACE = re.compile(r"[ \t\n\r]*")


class JsonStreamError(ValueError):
    """The text is not the JSON that was expected."""


def iter_elements(
    chunks: Iterator[bytes],
    keys: Collection[str] | None,
    arrays: set[str] | None = None,
    *,
    max_characters: int = MAX_ELEMENT_CHARACTERS,
) -> Iterator[tuple[str, Any, str]]:
    """Yield the elements of arrays of a JSON object, in the order of the file.

    Args:
        chunks: the text, UTF-8, 16 or 32, with or without a mark.
        keys: keys of the object whose arrays are read; other values are passed over. A text that is an array itself
            has the key ``annotations``; None: it has to be one.
        max_characters: largest number of characters of an element, or of another value.
        arrays: gets the keys of arrays that are there, also of empty ones.

    Yields:
        The key, the element, and its text.

    Raises:
        JsonStreamError: the text is no JSON object or array, or ends early.
    """
    return _Scanner(chunks, max_characters).elements(keys, set() if arrays is None else arrays)


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _MAX_DIGITS else float(text)


class _Scanner:
    def __init__(self, chunks: Iterator[bytes], max_characters: int) -> None:
        self._chunks = chunks
        self._max_characters = max_characters
        self._decoder: codecs.IncrementalDecoder | None = None
        self._head = b""
        self._decode = json.JSONDecoder(parse_int=_integer).raw_decode
        self._text, self._place, self._is_complete = "", 0, False

    def elements(self, keys: Collection[str] | None, arrays: set[str]) -> Iterator[tuple[str, Any, str]]:
        start = self._next_character()
        if start == "[":
            yield from self._array("annotations", is_read=True)
            return
        if start != "{" or keys is None:
            raise JsonStreamError(f"it holds no JSON {'array' if keys is None else 'object'}")
        self._place += 1
        if self._next_character() == "}":
            return
        while True:
            key, _ = self._value()
            if not isinstance(key, str) or self._next_character() != ":":
                raise JsonStreamError("a key with a colon is missing")
            self._place += 1
            if self._next_character() == "[":
                arrays.add(key)
                yield from self._array(key, is_read=key in keys)
            else:
                self._value()
            separator = self._next_character()
            self._place += 1
            if separator == "}":
                return
            if separator != ",":
                raise JsonStreamError(f"no comma after the value of {key!r}")

    def _array(self, key: str, *, is_read: bool) -> Iterator[tuple[str, Any, str]]:
        self._place += 1
        if self._next_character() == "]":
            self._place += 1
            return
        while True:
            element, text = self._value()
            if is_read:
                yield key, element, text
            separator = self._next_character()
            self._place += 1
            if separator == "]":
                return
            if separator != ",":
                raise JsonStreamError(f"no comma after an element of {key!r}")

    def _value(self) -> tuple[Any, str]:
        self._next_character()
        while True:
            try:
                value, end = self._decode(self._text, self._place)
            except ValueError as error:
                if len(self._text) - self._place > self._max_characters or not self._extend():
                    raise JsonStreamError(str(error)) from error
                continue
            except RecursionError as error:
                raise JsonStreamError("it is nested too deeply") from error
            if end == len(self._text) and self._extend():  # a number may go on
                continue
            text = self._text[self._place : end]
            self._place = end
            return value, text

    def _next_character(self) -> str:
        while True:
            space = _SPACE.match(self._text, self._place)
            self._place = self._place if space is None else space.end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._extend():
                raise JsonStreamError("it ends early")

    def _extend(self) -> bool:
        """Read on: as much as is left, at least a chunk, so that a long element is not decoded many times."""
        if self._is_complete:
            return False
        left = self._text[self._place :]
        wanted = max(1, len(left))
        while self._decoder is None and len(self._head) < _MARK_BYTES and (chunk := next(self._chunks, None)):
            self._head += chunk
        parts = [left]
        while wanted > 0:
            chunk = next(self._chunks, None) if self._decoder is not None else self._head
            if self._decoder is None:
                self._decoder = codecs.getincrementaldecoder(json.detect_encoding(self._head))("surrogatepass")
            try:
                part = self._decoder.decode(chunk or b"", final=chunk is None)
            except UnicodeDecodeError as error:
                raise JsonStreamError(f"it is no Unicode text: {error}") from error
            parts.append(part)
            wanted -= len(part)
            if chunk is None:
                self._is_complete = True
                break
        self._text, self._place = "".join(parts), 0
        return len(self._text) > len(left)
