"""The index of a run: all samples of its sources in a form that any worker reads at random.

    INDEX/images-000000.parquet   one row an image: location of its bytes, size, regions with masks and captions
    INDEX/counts.parquet          one row an image: numbers of tokens and tiles
    INDEX/bad_samples.parquet     samples that cannot be trained on, and why
    INDEX/index.json              settings, files of the sources and totals; written last

Pixels are not copied. ``ureca.training.index_writer`` writes the index.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from ureca import io, parquet
from ureca.data.manifest import MANIFEST, ManifestEntry
from ureca.data.questions import QuestionSettings
from ureca.data.samples import BadSample, TrainingImage, TrainingRegion
from ureca.data.settings import SourceSettings
from ureca.errors import OutputError
from ureca.hashing import digest
from ureca.io import locate
from ureca.training.region_groups import TooLongRegions
from ureca.training.settings import AugmentationSettings
from ureca.training.stored_arrays import GrowingArray
from ureca.training.token_costs import SampleCosts
from ureca.wording import quantity

IMAGES_PER_FILE = 4096
IMAGES_PER_ROW_GROUP = 16
"""Few, because a step reads images from all over the index."""
MAX_OPEN_FILES = 64
"""Files of the index that a reader keeps open."""
COUNTS_PER_BATCH = 1 << 14
"""Images whose counts are in memory at once while they are mapped."""

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
    """Return the name of the file with the images from ``number * IMAGES_PER_FILE`` on."""
    return f"images-{number:06d}.parquet"


def image_row(image: TrainingImage) -> dict[str, Any]:
    """Convert an image to a row of the schema ``IMAGES``."""
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


def parse_image_row(row: Mapping[str, Any]) -> TrainingImage:
    """Convert a row of the schema ``IMAGES`` to an image."""
    entry = ManifestEntry(**{field.name: row[field.name] for field in _BYTES})
    regions = tuple(TrainingRegion(**region) for region in row["regions"])
    return TrainingImage(entry, row["height"], row["width"], regions)


class IndexSettings(BaseModel):
    """Settings that decide the content of an index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    tile_size_px: PositiveInt
    max_tiles: int = Field(ge=1, le=254)
    augmentation: AugmentationSettings = AugmentationSettings()
    questions: QuestionSettings = QuestionSettings()


class IndexedFile(BaseModel):
    """State of a source's file when the index was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    size: int
    modified_ns: int | None
    digest: str


class IndexInfo(BaseModel):
    """The content of index.json.

    Attributes:
        version: version of the layout.
        settings: settings of the index.
        tokenizer: identity of the token counter.
        files: files of the sources; changed ones are detected.
        content: digest of all images and their regions, in order.
        num_images: number of images to train on.
        num_regions: number of regions to train on.
        bad_samples: number of regions and images that cannot be trained on, by kind; bad_samples.parquet lists them.
        left_out: number of regions that the sources exclude by their settings, by reason.
        failed_images: number of images without regions in the sources, by reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    settings: IndexSettings
    tokenizer: str
    files: tuple[IndexedFile, ...]
    content: str
    num_images: int
    num_regions: int
    bad_samples: dict[str, int]
    left_out: dict[str, int]
    failed_images: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """Digest of samples, settings and tokenizer, independent of time and place of writing."""
        settings = self.settings.model_dump_json(exclude={"sources"})
        parts = (str(self.version), settings, self.tokenizer, self.content)
        return digest(f"{len(part)}:{part}" for part in parts).hex()

    @property
    def num_bad_samples(self) -> int:
        """Number of regions and images that cannot be trained on."""
        return sum(self.bad_samples.values())

    def summary(self) -> str:
        """Summarize the samples and those that are left out, one line each."""
        lines = [f"{quantity(self.num_regions, 'region')} of {quantity(self.num_images, 'image')} to train on"]
        for reasons, noun, outcome in (
            (self.bad_samples, "bad sample", ""),
            (self.left_out, "region", " left out"),
            (self.failed_images, "image", " left out"),
        ):
            lines += [f"{quantity(count, noun)}{outcome}: {reason}" for reason, count in sorted(reasons.items())]
        return "\n".join(lines)


class TrainingIndex:
    """Reads an index. Cheap to construct: every worker opens its own.

    Args:
        path: local path or URI of the index's folder.

    Raises:
        OutputError: there is no index, or it cannot be read.
    """

    def __init__(self, path: str) -> None:
        location = locate(path)
        self.path = path
        self._filesystem, self._folder = location.filesystem, location.name
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        try:
            self.info = io.read_parsed(self._filesystem, f"{self._folder}/index.json", IndexInfo.model_validate_json)
        except FileNotFoundError as error:
            raise OutputError(f"{path} holds no index: there is no index.json") from error
        except OSError as error:
            raise OutputError(f"{path}: index.json cannot be read: {error}. Give the same command again") from error
        except ValidationError as error:
            raise OutputError(f"{path}: index.json cannot be read: {error}. Remove the folder") from error

    def sample_costs(self) -> SampleCosts:
        """Read the token counts of all samples; 4 bytes a region and about 17 an image."""
        table = parquet.read_table(self._filesystem, f"{self._folder}/counts.parquet").combine_chunks()
        tokens, tiles = (table[name].combine_chunks() for name in ("text_tokens", "num_tiles"))
        return SampleCosts(
            first_regions=np.concatenate([[0], np.cumsum(tokens.value_lengths().to_numpy(), dtype=np.int64)]),
            text_tokens=tokens.flatten().to_numpy(),
            num_tiles=tiles.flatten().to_numpy().reshape(len(tiles), -1),
            image_keys=table["image_key"].to_numpy(),
        )

    def map_sample_costs(self, folder: Path) -> SampleCosts:
        """Read the token counts of all samples in bounded memory.

        Args:
            folder: folder for files of the counts, which are memory-mapped.
        """
        with self._filesystem.open_input_file(f"{self._folder}/counts.parquet") as stream:
            return map_counts(pq.ParquetFile(stream), folder)

    def read(self, image_numbers: Sequence[int]) -> list[TrainingImage]:
        """Read images by number, in the order given; each row group is read once.

        Raises:
            IndexError: a number is out of range.
        """
        for number in image_numbers:
            if not 0 <= number < self.info.num_images:
                raise IndexError(f"image {number} of an index of {self.info.num_images}: {self.path}")
        groups: dict[int, pa.Table] = {}
        for number in image_numbers:
            group = number // IMAGES_PER_ROW_GROUP
            if group not in groups:
                groups[group] = self._read_row_group(group)
        return [
            parse_image_row(
                groups[number // IMAGES_PER_ROW_GROUP].slice(number % IMAGES_PER_ROW_GROUP, 1).to_pylist()[0]
            )
            for number in image_numbers
        ]

    def bad_samples(self) -> Iterator[BadSample]:
        """Yield the samples that cannot be trained on."""
        with self._filesystem.open_input_file(f"{self._folder}/bad_samples.parquet") as file:
            for batch in pq.ParquetFile(file).iter_batches():
                yield from (BadSample(**row) for row in batch.to_pylist())

    def too_long_samples(self, found: TooLongRegions, max_length: int) -> Iterator[BadSample]:
        """Yield the regions that plans leave out, as bad samples of the kind ``too_long``.

        Args:
            found: result of ``ureca.training.sampler.too_long_regions``.
            max_length: limit of the plan, for messages.
        """
        numbers = zip(
            found.image_numbers.tolist(), found.region_numbers.tolist(), found.num_tokens.tolist(), strict=True
        )
        for image_number, of_image in groupby(numbers, key=itemgetter(0)):
            (image,) = self.read([image_number])
            for _, number, num_tokens in of_image:
                message = f"{num_tokens} tokens with its image, max_length is {max_length}"
                yield BadSample(image.image_id, image.regions[number].region_id, "too_long", message)

    def _read_row_group(self, group: int) -> pa.Table:
        groups_per_file = IMAGES_PER_FILE // IMAGES_PER_ROW_GROUP
        number = group // groups_per_file
        file = self._files.pop(number, None)
        if file is None:
            path = f"{self._folder}/{images_file(number)}"
            file = pq.ParquetFile(self._filesystem.open_input_file(path), pre_buffer=True)
            if len(self._files) >= MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close(force=True)
        self._files[number] = file
        return file.read_row_group(group % groups_per_file)


def map_counts(counts: pq.ParquetFile, folder: Path) -> SampleCosts:
    """Convert a file of the schema ``COUNTS``, batch by batch, to memory-mapped files in a folder."""
    first_regions, text_tokens, num_tiles, image_keys = (
        GrowingArray(dtype, folder / f"{name}.bin")
        for name, dtype in (
            ("first_regions", np.int64),
            ("text_tokens", np.int32),
            ("num_tiles", np.uint8),
            ("image_keys", np.uint64),
        )
    )
    for batch in counts.iter_batches(batch_size=COUNTS_PER_BATCH):
        tokens = batch["text_tokens"]
        lengths = tokens.value_lengths().to_numpy()
        first_regions.append(len(text_tokens) + np.cumsum(lengths, dtype=np.int64) - lengths)
        text_tokens.append(tokens.flatten().to_numpy())
        num_tiles.append(batch["num_tiles"].flatten().to_numpy())
        image_keys.append(batch["image_key"].to_numpy())
    first_regions.append([len(text_tokens)])
    keys = image_keys.finish()
    return SampleCosts(
        first_regions=first_regions.finish(),
        text_tokens=text_tokens.finish(),
        num_tiles=num_tiles.finish().reshape(len(keys), -1),
        image_keys=keys,
    )
