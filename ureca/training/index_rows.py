"""How images, counts and bad samples are stored in an index."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ureca.corpus.manifest import MANIFEST, ManifestEntry
from ureca.training.samples import TrainingImage, TrainingRegion

IMAGES_PER_FILE = 4096
IMAGES_PER_ROW_GROUP = 16
"""Few, because a step reads images from all over the index."""

_REGION = pa.struct(
    [
        pa.field("region_id", pa.int64(), nullable=False),
        pa.field("counts", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("detailed", pa.bool_(), nullable=False),
        pa.field("question", pa.string()),
    ]
)
_BYTES = [MANIFEST.field(name) for name in ("image_id", "uri", "path", "offset", "size", "column", "row")]
IMAGES = pa.schema(
    [
        *_BYTES,
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("regions", pa.list_(_REGION), nullable=False),
    ]
)
COUNTS = pa.schema(
    [
        pa.field("image_key", pa.uint64(), nullable=False),
        pa.field("num_tiles", pa.list_(pa.uint8()), nullable=False),
        pa.field("text_tokens", pa.list_(pa.int32()), nullable=False),
    ]
)
BAD_SAMPLES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("region_id", pa.int64()),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


def images_file(number: int) -> str:
    """Name of the file of the images from ``number * IMAGES_PER_FILE`` on."""
    return f"images-{number:06d}.parquet"


def image_row(image: TrainingImage) -> dict[str, Any]:
    """The row of an image in the schema ``IMAGES``."""
    regions = [
        {
            "region_id": region.region_id,
            "counts": region.counts,
            "caption": region.caption,
            "detailed": region.detailed,
            "question": region.question,
        }
        for region in image.regions
    ]
    entry = {field.name: getattr(image.entry, field.name) for field in _BYTES}
    return entry | {"height": image.height, "width": image.width, "regions": regions}


def image_of_row(row: Mapping[str, Any]) -> TrainingImage:
    """The image of a row of the schema ``IMAGES``."""
    entry = ManifestEntry(**{field.name: row[field.name] for field in _BYTES})
    regions = tuple(TrainingRegion(**region) for region in row["regions"])
    return TrainingImage(entry, row["height"], row["width"], regions)
