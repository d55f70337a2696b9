"""Names for the content of checkpoints, told without loading them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

_CHUNK_BYTES = 1 << 16
_CHUNKS_A_FILE = 64


def content_digest(path: Path) -> str:
    """A name for what a file, or a folder of files, holds; 16 hexadecimal digits.

    It covers each file's name, size and evenly spread pieces of its content: a whole pass over the weights of a large
    model would take longer than loading them.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file() and not file.name.startswith("."):
            for piece in _pieces(file):
                digest.update(piece)
    return digest.hexdigest()


def named(checkpoint: str | Path) -> str:
    """What a setting names: the digest of a file or folder that is there, else the name itself, as of a hub."""
    path = Path(checkpoint)
    return content_digest(path) if path.exists() else str(checkpoint)


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{path.name}\0{size}\0".encode()
    num_chunks = min(_CHUNKS_A_FILE, -(-size // _CHUNK_BYTES))
    with path.open("rb") as file:
        for index in range(num_chunks):
            file.seek(0 if num_chunks == 1 else index * max(0, size - _CHUNK_BYTES) // (num_chunks - 1))
            yield file.read(_CHUNK_BYTES)
