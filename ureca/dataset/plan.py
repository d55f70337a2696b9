"""Which images make which unit, for good."""

import math

import pyarrow as pa
import pyarrow.compute as pc

from ureca.corpus.manifest import MANIFEST

UNITS = pa.schema([pa.field("unit", pa.int32(), nullable=False), pa.field("images", pa.list_(pa.struct(MANIFEST)))])
"""A stored manifest: one row a unit, its images in order."""

_MAX_IMAGES_PER_UNIT = 64
_UNITS_OF_A_SMALL_CORPUS = 64
_UNITS_AT_THE_END = 16


def units_of(manifest: pa.Table, first_unit: int, images_per_unit: int | None) -> pa.Table:
    """Group a manifest's images, in order, into units numbered from ``first_unit``; schema ``UNITS``.

    Args:
        manifest: schema ``MANIFEST``.
        first_unit: number of the first unit.
        images_per_unit: None chooses 1 to 64, so that a small corpus still spreads over many actors and a large one
            does not make millions of files. The first units are smaller, so that the first masks are ready soon, and
            so are the last ones, so that no actor has much left when the others have nothing.
    """
    num_images = manifest.num_rows
    offsets = pa.array(unit_offsets(num_images, images_per_unit), pa.int32())
    num_units = len(offsets) - 1
    images = manifest.combine_chunks().to_struct_array()
    if isinstance(images, pa.ChunkedArray):
        images = pa.concat_arrays(images.chunks) if images.num_chunks else pa.array([], pa.struct(MANIFEST))
    return pa.table(
        [pa.array(range(first_unit, first_unit + num_units), pa.int32()), pa.ListArray.from_arrays(offsets, images)],
        schema=UNITS,
    )


def unit_offsets(num_images: int, images_per_unit: int | None) -> list[int]:
    """Where the units of so many images begin, and where the last one ends; ``images_per_unit`` as in ``units_of``."""
    size = images_per_unit or max(1, min(_MAX_IMAGES_PER_UNIT, math.ceil(num_images / _UNITS_OF_A_SMALL_CORPUS)))
    offsets = [0]
    while (left := num_images - offsets[-1]) > 0:
        this = size
        if images_per_unit is None:
            this = min(size, 2 ** (len(offsets) - 1), math.ceil(left / _UNITS_AT_THE_END))
        offsets.append(offsets[-1] + min(this, left))
    return offsets


def new_images(manifest: pa.Table, known_ids: pa.ChunkedArray) -> pa.Table:
    """Rows of a manifest whose image ids are not among ``known_ids``."""
    return manifest.filter(pc.invert(pc.is_in(manifest["image_id"], known_ids)))
