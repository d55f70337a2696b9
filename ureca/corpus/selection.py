"""Which of the images of an input are worked on: a shard, a sample, the first so many."""

import hashlib
import re
from dataclasses import dataclass

import pyarrow as pa

from ureca.errors import InputError, OutputError

_SHARD = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")


def checked_shard(shard: str) -> str:
    """A shard as it is written, ``i/n``.

    Raises:
        ValueError: it is none.
    """
    found = _SHARD.fullmatch(shard)
    if found is None or int(found[1]) > int(found[2]):
        raise ValueError(f"'{shard}' is no shard: the third of eight is 3/8")
    return shard


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images are worked on; all of them, unless told otherwise.

    Attributes:
        shard: ``i/n``, from ``1/n`` to ``n/n``; an image's id alone decides which it is in.
        sample: so many images, drawn by their ids and the seed.
        sample_seed: of the sample.
        limit: so many images, the first ones.
    """

    shard: str | None = None
    sample: int | None = None
    sample_seed: int = 0
    limit: int | None = None


EVERYTHING = Selection()


def select(manifest: pa.Table, selection: Selection, held_ids: pa.ChunkedArray) -> pa.Table:
    """The rows of a manifest that are selected, in their order: of the shard, of those a sample, of those the first.

    What the output holds already counts first, and what is selected fills it up. So the same selection goes on when
    INPUT has grown, and a larger one adds to what is there.

    Args:
        manifest: schema ``MANIFEST``.
        selection: what is wanted.
        held_ids: of the images that the output holds.

    Raises:
        OutputError: the output holds images of another shard, or more images than are wanted.
        InputError: nothing is left.
    """
    if selection == EVERYTHING:
        return manifest
    ids: list[str] = manifest["image_id"].to_pylist()
    held = set(held_ids.to_pylist())
    chosen = list(range(len(ids)))
    if selection.shard is not None:
        number, count = map(int, selection.shard.split("/"))
        others = [index for index in chosen if _hash(ids[index], b"shard") % count != number - 1]
        if strays := [ids[index] for index in others if ids[index] in held]:
            raise OutputError(
                f"OUTPUT holds {len(strays)} images that are not of the shard {selection.shard}, such as "
                f"'{strays[0]}': give the shard that it was begun with, or name another folder"
            )
        chosen = sorted(set(chosen) - set(others))
    if selection.sample is not None:
        key = selection.sample_seed.to_bytes(16, "big", signed=True)
        chosen.sort(key=lambda index: (ids[index] not in held, _hash(ids[index], key)))
        chosen = sorted(_first(chosen, selection.sample, "sample", ids, held))
    if selection.limit is not None:
        chosen.sort(key=lambda index: (ids[index] not in held, index))
        chosen = sorted(_first(chosen, selection.limit, "limit", ids, held))
    if not chosen:
        raise InputError(f"of {len(ids)} images, none is of the shard {selection.shard}")
    return manifest if len(chosen) == len(ids) else manifest.take(pa.array(chosen, pa.int64()))


def _first(chosen: list[int], most: int, name: str, ids: list[str], held: set[str]) -> list[int]:
    num_held = sum(ids[index] in held for index in chosen)
    if num_held > most:
        raise OutputError(
            f"OUTPUT holds {num_held} of the images already, more than {name} {most}: leave it as it was or raise it, "
            "or name another folder"
        )
    return chosen[:most]


def _hash(id: str, key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8, key=key).digest(), "big")
