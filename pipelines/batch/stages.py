"""The operators of a batch command on a user's own Ray Dataset of images."""

import asyncio
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image
from ray.data import ActorPoolStrategy
from ray.data import Dataset as RayDataset

from ureca.data.in_flight import ImagesInFlight
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedPartition
from ureca.data.reading import Fetched, fetch
from ureca.errors import DataError, SettingsError
from ureca.hashing import digest
from ureca.image_limits import ImageLimits
from ureca.llm.settings import RayServeConfig
from ureca.pipelines.batch.actors import Eager
from ureca.pipelines.batch.arrow import MASKED_IMAGE, masked_image_from_row, masked_image_to_row
from ureca.pipelines.batch.graph import BatchCommand
from ureca.pipelines.settings import ActorResources, BatchSettings
from ureca.schema import conform

Settings = TypeVar("Settings", bound=BatchSettings)

_IMAGE_COLUMNS = ("image", "bytes", "uri", "path")
_MASKS_COLUMN = "_ureca_masks"
_GENERATOR_COLUMN = "_ureca_mask_generator"
_IMAGES_IN_FLIGHT = 16


def add_row_stages(ds: RayDataset, command: BatchCommand[Settings], settings: Settings) -> RayDataset:
    """Add the operators of a command that make masks and rows; see ``ureca.pipelines.curate.add_stages``.

    Args:
        ds: dataset of images.
        command: command with the operators.
        settings: settings of the command; ``resources`` and ``listing`` apply.

    Raises:
        SettingsError: masks would come from files, or the model from an application that only a command starts.
    """
    masks: Any = getattr(settings, "masks", None)
    if getattr(masks, "mask_source", "images") != "images":
        raise SettingsError(f"masks.kind {masks.kind} reads files; the images of a dataset need a mask generator")
    if isinstance(getattr(settings, "mllm", None), RayServeConfig):
        raise SettingsError("mllm.kind ray_serve: start the application yourself, and use mllm.kind openai")
    resources: Any = settings.resources
    batch_size = settings.images_per_partition  # None: a block at a time, without merging blocks
    masked = ds.map_batches(
        MaskColumn,
        fn_constructor_args=(command.build_mask_stage, command.build_trees, settings),
        batch_format="pyarrow",
        batch_size=batch_size,
        num_cpus=resources.masks.num_cpus,
        num_gpus=resources.masks.num_gpus,
        compute=_pool(resources.masks),
    )
    row_resources = getattr(resources, command.row_actor.name)
    images_in_flight = row_resources.images_in_flight or _IMAGES_IN_FLIGHT
    return masked.map_batches(
        RowColumns,
        fn_constructor_args=(command.row_actor, settings, images_in_flight),
        batch_format="pyarrow",
        batch_size=batch_size,
        num_cpus=row_resources.num_cpus,
        num_gpus=row_resources.num_gpus,
        compute=_pool(row_resources, calls_in_flight=-(-images_in_flight // (batch_size or images_in_flight)) + 1),
    )


def _pool(resources: ActorResources, calls_in_flight: int | None = None) -> ActorPoolStrategy:
    return ActorPoolStrategy(
        min_size=resources.num_actors or 1,
        max_size=resources.num_actors,
        max_concurrent_calls_per_actor=calls_in_flight,
    )


class DatasetImages:
    """Images of batches of a user's dataset, read as if by ``ureca.data.reading.fetch``.

    Args:
        image_column: column of images; None finds it among the usual names.
        id_column: column of ids; None takes ``image_id`` if there is one, else derives ids from the images.
        only_below: local folders that images are read from, links resolved; empty: everything.
    """

    def __init__(self, image_column: str | None, id_column: str | None, only_below: Sequence[str] = ()) -> None:
        self._only_below = only_below
        self._image_column = image_column
        self._id_column = id_column
        self._images: dict[str, bytes | DataError] = {}
        self._num_read = 0

    def add(self, batch: pa.Table) -> list[ManifestEntry]:
        """Hold the images of a batch until ``remove``.

        Returns:
            One entry for each row. Its ``path`` is the path or URI in the image column, or a key of a held image. Ids
            are unique within the batch; ``image_id`` of the row's result is that of ``ids``.

        Raises:
            SettingsError: there is no such column.
        """
        values = self._column(batch, self._image_column, _IMAGE_COLUMNS)
        entries = []
        for value in values:
            self._num_read += 1
            key = f"\0{self._num_read}"
            if isinstance(value, str):
                entries.append(ManifestEntry(image_id=key, uri=value, path=value))
            else:
                self._images[key] = _encoded(value)
                entries.append(ManifestEntry(image_id=key, uri="", path=key))
        return entries

    def ids(self, batch: pa.Table, entries: Sequence[ManifestEntry]) -> list[str]:
        """Return the id of each row: that of the id column, the path or URI, or a hash of the image."""
        if self._id_column is not None or "image_id" in batch.column_names:
            return [str(id) for id in self._column(batch, self._id_column, ("image_id",))]
        return [entry.uri or _content_id(self._images[entry.path]) for entry in entries]

    def remove(self, entries: Sequence[ManifestEntry]) -> None:
        """Release the images of a batch."""
        for entry in entries:
            self._images.pop(entry.path, None)

    def fetch(self, entries: Sequence[ManifestEntry], limits: ImageLimits) -> Iterator[Fetched]:
        """Yield the images of entries; files are read when it is their turn."""
        for entry in entries:
            if (image := self._images.get(entry.path)) is None:
                yield from fetch([entry], limits, only_below=self._only_below)
            elif isinstance(image, bytes) and len(image) > limits.max_bytes:
                too_many = DataError("too_many_bytes", f"{len(image)} bytes, the limit is {limits.max_bytes}")
                yield Fetched(entry, too_many, None)
            else:
                yield Fetched(entry, image, None)

    @staticmethod
    def _column(batch: pa.Table, name: str | None, usual: Sequence[str]) -> list[Any]:
        found = name or next((each for each in usual if each in batch.column_names), None)
        if found is None or found not in batch.column_names:
            key = "image_column" if usual is _IMAGE_COLUMNS else "id_column"
            columns = ", ".join(batch.column_names)
            raise SettingsError(f"listing.{key}: the dataset has no column {name or ' or '.join(usual)}, but {columns}")
        return [value.as_py() for chunk in batch[found].chunks for value in chunk]


class MaskColumn:
    """Operator that adds masks, with the mask tree if the command has one, as columns for ``RowColumns``.

    Args:
        build_mask_stage: function that builds the stage that makes masks.
        build_trees: function that builds mask trees; None if the rows need none.
        settings: settings of the command.
    """

    def __init__(self, build_mask_stage: Any, build_trees: Any, settings: Any) -> None:
        self._images = DatasetImages(
            settings.listing.image_column, settings.listing.id_column, settings.listing.only_below
        )
        self._stage = Eager(lambda: build_mask_stage(settings, fetch=self._images.fetch))
        self._build_trees = build_trees
        self._containment = None if build_trees is None else settings.tree.containment

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Process a batch of the user's dataset."""
        entries = self._images.add(batch)
        partition = self._stage.get()(0, entries)
        if self._build_trees is not None:
            partition = self._build_trees(partition, self._containment)
        self._images.remove(entries)
        masks = pa.array([masked_image_to_row(image) for image in partition.images], MASKED_IMAGE)
        generator = pa.array([partition.mask_generator] * batch.num_rows, pa.string())
        return batch.append_column(_MASKS_COLUMN, masks).append_column(_GENERATOR_COLUMN, generator)


class RowColumns:
    """Operator that replaces the columns of ``MaskColumn`` by those of the command's dataset.

    Args:
        row_actor: actor class that builds the stage that makes rows.
        settings: settings of the command.
        images_in_flight: decoded images that the actor holds at a time.
    """

    def __init__(self, row_actor: Any, settings: Any, images_in_flight: int) -> None:
        self._schema = row_actor.dataset.schema
        self._images = DatasetImages(
            settings.listing.image_column, settings.listing.id_column, settings.listing.only_below
        )
        images = ImagesInFlight(images_in_flight, settings.image_limits, fetch=self._images.fetch)
        self._stage = Eager(lambda: row_actor.build(settings, images))

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Process a batch of ``MaskColumn``.

        Raises:
            SettingsError: the user's dataset has a column with the name of a result.
        """
        users = batch.drop_columns([_MASKS_COLUMN, _GENERATOR_COLUMN])
        results = [name for name in self._schema.names if name != "image_id"]
        if taken := sorted({*results} & {*users.column_names} - {"uri"}):
            raise SettingsError(f"the dataset has a column {taken[0]!r}, which is the name of a result; rename it")
        entries = await asyncio.to_thread(self._images.add, users)
        ids = self._images.ids(users, entries)
        images = [
            replace(masked_image_from_row(row), entry=entry)
            for row, entry in zip(batch[_MASKS_COLUMN].to_pylist(), entries, strict=True)
        ]
        generators = batch[_GENERATOR_COLUMN].to_pylist()
        partition = MaskedPartition(0, next(iter(generators), ""), tuple(images), {})
        try:
            rows, _ = await self._stage.get()(partition)
        finally:
            self._images.remove(entries)
        uris = users["uri"].to_pylist() if "uri" in users.column_names else [None] * len(rows)
        named = [
            {**row, "image_id": id, "uri": row["uri"] or uri or ""}
            for row, id, uri in zip(rows, ids, uris, strict=True)
        ]
        made = conform(named, self._schema)
        users = users.drop_columns([name for name in ("image_id", "uri") if name in users.column_names])
        for name in self._schema.names:
            users = users.append_column(self._schema.field(name), made[name])
        return users


def _encoded(value: Any) -> bytes | DataError:
    """Encode a value of an image column as an image file."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # the image type of Hugging Face datasets
        return bytes(value["bytes"])
    if value is None:
        return DataError("no_bytes", "the image column is null")
    try:
        pixels = np.asarray(value, dtype=np.uint8)
    except (TypeError, ValueError, OverflowError) as error:
        return DataError("not_an_image", f"the value is no image: {error}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        return DataError("not_an_image", f"an array of shape {list(pixels.shape)} is no RGB image [H, W, 3]")
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)  # lossless
    return stream.getvalue()


def _content_id(image: bytes | DataError) -> str:
    return digest([image if isinstance(image, bytes) else str(image)], num_bytes=8).hex()
