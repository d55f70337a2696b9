"""Which checkpoint it is, told without loading it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ureca.errors import CheckpointError

_CHUNK_BYTES = 1 << 16
_CHUNKS_A_FILE = 64


def fingerprint(directory: Path | str) -> str:
    """A name for the content of a checkpoint, so that a dataset is not gone on with by other weights.

    It covers each file's name, size and evenly spread pieces of its content: a whole pass over the weights of a large
    model would take longer than loading them.

    Raises:
        CheckpointError: the directory is not a checkpoint of URECA.
    """
    folder = Path(directory)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"--model {directory} is not a checkpoint: cannot read config.json ({error})") from error
    if not isinstance(config, dict) or config.get("model_type") != "ureca":
        found = config.get("model_type") if isinstance(config, dict) else None
        raise CheckpointError(
            f"--model {directory} holds a {found} checkpoint, not a URECA. `ureca convert` makes one of the authors'"
        )
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            for piece in _pieces(path):
                digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{path.name}\0{size}\0".encode()
    num_chunks = min(_CHUNKS_A_FILE, -(-size // _CHUNK_BYTES))
    with path.open("rb") as file:
        for index in range(num_chunks):
            file.seek(0 if num_chunks == 1 else index * max(0, size - _CHUNK_BYTES) // (num_chunks - 1))
            yield file.read(_CHUNK_BYTES)
