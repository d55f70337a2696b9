"""Cutting the regions of every image into groups: near-equal, of random composition, each region in one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.errors import InputError
from ureca.training import chance
from ureca.training.counts import SampleCounts, TokenCosts

_REGIONS_AT_ONCE = 1 << 20  # keeps temporary arrays in the tens of megabytes, whatever the number of regions
_WORD_BITS = 64
_NUMBER_MASK = np.uint64(0xFFFF)
_MOST_REGIONS = 1 << 16


@dataclass(frozen=True, eq=False)
class Groups:
    """All groups of an epoch, in the order of their images.

    Attributes:
        images: int32 [groups]: image number.
        firsts: int64 [groups]: where the group's regions begin in ``region_numbers``.
        sizes: int32 [groups]: number of regions.
        num_tokens: int64 [groups]: of the image and the regions.
        region_numbers: uint16 [regions of all groups]: within their image.
    """

    images: npt.NDArray[np.int32]
    firsts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    num_tokens: npt.NDArray[np.int64]
    region_numbers: npt.NDArray[np.uint16]

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return len(self.images)

    def members(self, group: int) -> tuple[int, tuple[int, ...]]:
        """Image number and region numbers of a group."""
        first = self.firsts[group]
        return int(self.images[group]), tuple(self.region_numbers[first : first + self.sizes[group]].tolist())


def group_regions(
    counts: SampleCounts,
    costs: TokenCosts,
    num_tiles: npt.NDArray[np.uint8],
    left_out: npt.NDArray[np.bool_],
    *,
    regions_per_group: int,
    max_tokens: int | None,
    stream: int,
) -> Groups:
    """Group the regions of each image at random, near-equally, as few groups as hold them.

    Args:
        counts: of the index.
        costs: of the processor.
        num_tiles: uint8 [images], in this epoch.
        left_out: bool [regions], which are in no group.
        regions_per_group: the most regions of a group.
        max_tokens: the most tokens of a group, which every region with its image alone keeps to; a group with more is
            halved until it has no more; None: no limit.
        stream: of chance.

    Raises:
        InputError: an image has more than 65536 regions.
    """
    if counts.num_regions and counts.regions_of_images.max() > _MOST_REGIONS:
        raise InputError(f"an image has {counts.regions_of_images.max()} captions, the limit is {_MOST_REGIONS}")
    chunks = [
        _group_chunk(counts, costs, num_tiles, left_out, images, regions_per_group, max_tokens, stream)
        for images in _chunks(counts)
    ]
    offsets = np.cumsum([0, *(len(chunk.region_numbers) for chunk in chunks)])
    return Groups(
        images=_joined([chunk.images for chunk in chunks], np.int32),
        firsts=_joined([chunk.firsts + offset for chunk, offset in zip(chunks, offsets, strict=False)], np.int64),
        sizes=_joined([chunk.sizes for chunk in chunks], np.int32),
        num_tokens=_joined([chunk.num_tokens for chunk in chunks], np.int64),
        region_numbers=_joined([chunk.region_numbers for chunk in chunks], np.uint16),
    )


def _chunks(counts: SampleCounts) -> Iterator[slice]:
    """Images with about ``_REGIONS_AT_ONCE`` regions, one chunk after the other."""
    start = 0
    while start < counts.num_images:
        wanted = counts.first_regions[start] + _REGIONS_AT_ONCE
        stop = max(start + 1, int(np.searchsorted(counts.first_regions, wanted, side="right")) - 1)
        yield slice(start, stop)
        start = stop


def _group_chunk(  # noqa: PLR0917
    counts: SampleCounts,
    costs: TokenCosts,
    num_tiles: npt.NDArray[np.uint8],
    left_out: npt.NDArray[np.bool_],
    images: slice,
    regions_per_group: int,
    max_tokens: int | None,
    stream: int,
) -> Groups:
    firsts = counts.first_regions[images.start : images.stop + 1]
    regions = np.arange(firsts[0], firsts[-1])
    owners = np.repeat(np.arange(len(firsts) - 1), np.diff(firsts))
    numbers = regions - firsts[owners]
    taken = ~left_out[firsts[0] : firsts[-1]]
    regions, owners, numbers = regions[taken], owners[taken], numbers[taken]

    # One sort of whole numbers, by image, then by chance; the lowest bits carry the region's number along.
    owner_shift = _WORD_BITS - len(firsts).bit_length()
    random = chance.words(stream, regions) >> np.uint64(_WORD_BITS - owner_shift)
    keys = (owners.astype(np.uint64) << np.uint64(owner_shift)) | (random & ~_NUMBER_MASK) | numbers.astype(np.uint64)
    keys.sort()
    numbers = (keys & _NUMBER_MASK).astype(np.int64)

    num_regions = np.bincount(owners, minlength=len(firsts) - 1)
    num_groups = -(-num_regions // regions_per_group)
    group_owners = np.repeat(np.arange(len(num_groups)), num_groups)
    within = np.arange(len(group_owners)) - np.repeat(np.cumsum(num_groups) - num_groups, num_groups)
    sizes = num_regions[group_owners] // num_groups[group_owners]
    sizes += within < num_regions[group_owners] % num_groups[group_owners]

    tiles = num_tiles[images]
    image_tokens = costs.of_images(tiles)
    segment_tokens = costs.of_segments(counts.text_tokens[firsts[owners] + numbers], tiles[owners])
    tokens = _group_tokens(sizes, image_tokens[group_owners], segment_tokens, shared=costs.shared)
    while max_tokens is not None and (tokens > max_tokens).any():
        pieces = np.where((tokens > max_tokens) & (sizes > 1), 2, 1)
        if pieces.max() == 1:
            raise ValueError(f"a region has {tokens.max()} tokens with its image, a group at most {max_tokens}")
        group_owners = np.repeat(group_owners, pieces)
        second = np.arange(len(group_owners)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        sizes = (np.repeat(sizes, pieces) + second) // np.repeat(pieces, pieces)
        tokens = _group_tokens(sizes, image_tokens[group_owners], segment_tokens, shared=costs.shared)
    return Groups(
        images=(group_owners + images.start).astype(np.int32),
        firsts=np.cumsum(sizes) - sizes,
        sizes=sizes.astype(np.int32),
        num_tokens=tokens,
        region_numbers=numbers.astype(np.uint16),
    )


def _group_tokens(
    sizes: npt.NDArray[np.int64],
    image_tokens: npt.NDArray[np.int64],
    segment_tokens: npt.NDArray[np.int64],
    *,
    shared: bool,
) -> npt.NDArray[np.int64]:
    if not len(sizes):
        return np.zeros(0, np.int64)
    of_segments = np.add.reduceat(segment_tokens, np.cumsum(sizes) - sizes)
    return of_segments + (image_tokens if shared else image_tokens * sizes)


def _joined(arrays: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *arrays], dtype=dtype)
