"""Content hashes: names and seeds that are equal on every machine, in every process and between versions of Python."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    Part = str | bytes | memoryview | npt.NDArray[Any]

_CHUNK_BYTES = 1 << 16
_CHUNKS_PER_FILE = 64


class IncrementalDigest:
    """BLAKE2b hash of parts that are added one after the other; nothing separates them, see ``digest``.

    Args:
        num_bytes: length of the digest, 1 to 64.
        key: up to 64 bytes that select another, independent hash function.
    """

    def __init__(self, *, num_bytes: int = 16, key: bytes = b"") -> None:
        self._hashed = hashlib.blake2b(digest_size=num_bytes, key=key)

    def add(self, part: Part) -> None:
        """Add a part: text counts as UTF-8, an array as its shape and its bytes."""
        if isinstance(part, str):
            self._hashed.update(part.encode("utf-8", "surrogatepass"))
        elif isinstance(part, bytes | memoryview):
            self._hashed.update(part)
        else:
            import numpy as np  # settings import this module: their help does not wait for NumPy

            self._hashed.update(str(part.shape).encode())
            self._hashed.update(np.ascontiguousarray(part).data)

    def digest(self) -> bytes:
        """Return the hash of the parts added so far."""
        return self._hashed.digest()


def digest(parts: Iterable[Part], *, num_bytes: int = 16, key: bytes = b"") -> bytes:
    """Hash some parts, one after the other, with BLAKE2b.

    Args:
        parts: text counts as UTF-8, an array as its shape and its bytes. Nothing separates the parts: where a part may
            have any length, put its length or a separator before it.
        num_bytes: length of the digest, 1 to 64.
        key: up to 64 bytes that select another, independent hash function.
    """
    hashed = IncrementalDigest(num_bytes=num_bytes, key=key)
    for part in parts:
        hashed.add(part)
    return hashed.digest()


def hash64(*parts: int | str) -> int:
    """Hash some parts and their order to an integer in [0, 2**64)."""
    text = "".join(f"{len(str(part))}:{part}" for part in parts)
    return int.from_bytes(digest([text], num_bytes=8), "big")


def content_digest(path: Path) -> str:
    """Hash a file, or a folder of files, to 16 hexadecimal digits.

    The hash covers each file's name, size and evenly spaced chunks of its content: a whole pass over the weights of a
    large model would take longer than loading them. Hidden files and subfolders are left out.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    chunks = (chunk for file in files if file.is_file() and not file.name.startswith(".") for chunk in _chunks(file))
    return digest(chunks, num_bytes=8).hex()


def checkpoint_digest(checkpoint: str | Path) -> str:
    """Identify a checkpoint: the content's digest of a local file or folder, else its name, as on the hub."""
    path = Path(checkpoint)
    return content_digest(path) if path.exists() else str(checkpoint)


def _chunks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{path.name}\0{size}\0".encode()
    num_chunks = min(_CHUNKS_PER_FILE, -(-size // _CHUNK_BYTES))
    with path.open("rb") as file:
        for index in range(num_chunks):
            file.seek(0 if num_chunks == 1 else index * max(0, size - _CHUNK_BYTES) // (num_chunks - 1))
            yield file.read(_CHUNK_BYTES)
