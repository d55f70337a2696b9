"""JSON files that hold one array of objects and may be larger than memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ureca.errors import InputError

_MAX_ELEMENT_CHARACTERS = 2**24
_CHUNK_CHARACTERS = 2**20


def read_json_array(path: Path, *, chunk_characters: int = _CHUNK_CHARACTERS) -> Iterator[dict[str, Any]]:
    """The objects of the array, one by one.

    Args:
        path: of the file, UTF-8.
        chunk_characters: that are read at a time.

    Raises:
        InputError: the file cannot be read, or holds something else; one object may have 16 Mi characters.
    """
    decode = json.JSONDecoder().raw_decode
    try:
        with path.open(encoding="utf-8") as file:
            text = ""
            while not text.strip() and (more := file.read(chunk_characters)):
                text = more
            place = _skip_space(text, 0)
            if not text.startswith("[", place):
                raise InputError(f"{path} holds no JSON array")
            place, needs_comma = place + 1, False
            while True:
                place = _skip_space(text, place)
                if text.startswith("]", place):
                    return
                if needs_comma and text.startswith(",", place):
                    place, needs_comma = _skip_space(text, place + 1), False
                if needs_comma and place < len(text):
                    raise InputError(f"{path} is no JSON array: there is no comma after an object")
                try:
                    element, end = decode(text, place)
                except ValueError as error:
                    more = file.read(chunk_characters)
                    if not more or len(text) - place > _MAX_ELEMENT_CHARACTERS:
                        raise InputError(f"{path} is damaged, or no JSON array of objects: {error}") from error
                    text, place = text[place:] + more, 0
                    continue
                if not isinstance(element, dict):
                    raise InputError(f"{path} holds an array, but not of objects")
                yield element
                place, needs_comma = end, True
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place
