"""Pickles from outside as plain data: nothing in them is ever looked up, imported or called."""

import io
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ureca.errors import InputError

MAX_PICKLE_BYTES = 256 * 2**20

_PLAIN = frozenset(
    {
        *("MARK", "STOP", "POP", "POP_MARK", "DUP", "PROTO", "FRAME"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
        *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    }
)
"""Instructions that make containers, text, bytes, numbers, booleans and None, and refer back to them."""

_BY_CODE = {instruction.code: instruction for instruction in pickletools.opcodes}

_MEMORY = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})

_MALFORMED = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError),
    *(MemoryError, RecursionError),
)


class _PlainUnpickler(pickle.Unpickler):
    """Knows no class and no function, whatever the instructions say."""

    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object from elsewhere")


def read_plain_pickle(path: Path) -> Any:
    """What a pickle holds, if that is built-in containers of text, bytes, numbers, booleans and None.

    Every instruction is looked at before the first is carried out. Text of Python 2 becomes ``str`` (UTF-8, else
    Latin-1).

    Raises:
        InputError: it cannot be read, is larger than 256 MiB, is damaged, or would make anything else than plain data;
            nothing of it has been run.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PICKLE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_PICKLE_BYTES:
        raise InputError(f"{path} is larger than {MAX_PICKLE_BYTES} bytes; no benchmark's refs are")
    try:
        _check_plain(data)
        return _load(data)
    except _MALFORMED as error:
        what = str(error) or type(error).__name__
        raise InputError(f"{path} is no pickle of plain data, and was not opened: {what}") from error


def _check_plain(data: bytes) -> None:
    for count, (name, argument, position) in enumerate(_instructions(data)):
        if name not in _PLAIN:
            what = f" ({argument})" if isinstance(argument, str) else ""
            raise pickle.UnpicklingError(f"{name}{what} at byte {position} makes more than plain data")
        # Room is made for all numbers up to the highest: one of a few bytes could ask for all memory there is.
        if name in _MEMORY and argument > count:
            raise pickle.UnpicklingError(f"{name} at byte {position} remembers number {argument} too early")


def _instructions(data: bytes) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and place of each instruction; ``pickletools.genops`` stops at old text that is not ASCII."""
    stream = io.BytesIO(data)
    while True:
        position = stream.tell()
        code = stream.read(1)
        if not code:
            raise pickle.UnpicklingError("it ends early")
        if (instruction := _BY_CODE.get(code.decode("latin-1"))) is None:
            raise pickle.UnpicklingError(f"byte {position} is no instruction")
        if instruction.name == "STRING":
            argument: Any = stream.readline()
        else:
            argument = None if instruction.arg is None else instruction.arg.reader(stream)
        yield instruction.name, argument, position
        if instruction.name == "STOP":
            return


def _load(data: bytes) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except UnicodeDecodeError:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
