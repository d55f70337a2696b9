"""Stages that work on a unit as a whole, and image by image once a process has died with it.

What takes a process down can be any image of the unit. So the next process takes them one at a time, and gives up the
one that further processes die with; the others get their rows.


[from] A bound on the pixels that are decoded at a time, whatever the size of the images.
[from] Reading the images of units and working on them: many at a time, but alone on one that a process died with.
[from] The stages of the curation over a unit of images: plain Python, whatever moves the data between them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from ureca.data.crash_log import CrashLog
from ureca.data.manifest import ManifestEntry
from ureca.data.reading import Fetched, fetch
from ureca.errors import DataError
from ureca.images import ImageLimits, Pixels, decode_image
from ureca.masks.generators.base import MaskGenerator
from ureca.masks.mask import Mask
from ureca.masks.tree import MaskTree

DEFAULT_PIXELS_IN_FLIGHT = 250_000_000
"""About as many as 75 images of SA-1B have. With its views, a pixel takes about 10 bytes."""


class PixelBudget:
    """So many pixels, taken first come, first served; an image that is larger than all of them has them to itself.

    It is used by one event loop.

    Args:
        most: pixels, at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def taken(self, num_pixels: int) -> AsyncIterator[None]:
        """Wait for the pixels of an image, and hold them for the block."""
        share = min(num_pixels, self._most)
        async with self._turn:
            while self._free < share:
                self._given_back.clear()
                await self._given_back.wait()
            self._free -= share
        try:
            yield
        finally:
            self._free += share
            self._given_back.set()


Work = Callable[[Fetched], Awaitable[None]]


class ImagesInFlight:
    """Works on at most so many images at a time, over all units of a process.

    Which of several images a process died with was its death cannot be told. So each of them is worked on alone the
    next time, before the others of its unit, until it is done or given up.

    Args:
        most: images at a time, at least 1.
        limits: of images.
        attempts: of the stage.
    """

    def __init__(self, most: int, limits: ImageLimits, crash_log: CrashLog) -> None:
        self._most = most
        self._limits = limits
        self._crash_log = crash_log
        self._slots = asyncio.Semaphore(most)
        self._loner = asyncio.Lock()
        self._turn = asyncio.Lock()

    async def each(
        self, entries: Sequence[ManifestEntry], work: Work, give_up: Callable[[str, DataError], None]
    ) -> None:
        """Read the images of a unit and work on each, in any order.

        Args:
            entries: of distinct images.
            work: told what was read.
            give_up: told the id of an image that is not worked on any more, and why.
        """
        suspects = [entry for entry in entries if self._crash_log.num_crashes(entry.image_id)]
        for entry in suspects:
            if (reason := self._crash_log.quarantine_error(entry.image_id)) is not None:
                give_up(entry.image_id, reason)
                continue
            async with self._alone():
                await asyncio.to_thread(self._crash_log.begin, entry.image_id)
                await self._finish(await asyncio.to_thread(next, fetch([entry], self._limits)), work)
        others = [entry for entry in entries if entry not in suspects]
        # One generator for the unit: images that lie together in a file are read together, in an order of its own.
        fetching = fetch(others, self._limits)
        # Images are begun unit after unit: the first is complete, and written, while those behind it are under way.
        async with asyncio.TaskGroup() as group, self._turn:
            for _ in others:
                group.create_task(self._in_slot(await self._next(fetching), work))

    async def _next(self, fetching: Iterator[Fetched]) -> Fetched:
        """Wait for a slot, which ``_in_slot`` gives back, and read the next image into it."""

        def begin_next() -> Fetched:
            fetched = next(fetching)
            self._crash_log.begin(fetched.entry.image_id)
            return fetched

        await self._slots.acquire()
        try:
            return await asyncio.to_thread(begin_next)
        except BaseException:
            self._slots.release()
            raise

    async def _in_slot(self, fetched: Fetched, work: Work) -> None:
        try:
            await self._finish(fetched, work)
        finally:
            self._slots.release()

    async def _finish(self, fetched: Fetched, work: Work) -> None:
        done = False
        try:
            await work(fetched)
            done = True
        finally:
            await asyncio.to_thread(self._crash_log.end, fetched.entry.image_id, completed=done)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._loner, AsyncExitStack() as slots:
            for _ in range(self._most):
                await slots.enter_async_context(self._slots)
            yield


@dataclass(frozen=True, slots=True)
class RowError:
    """Why an image has no regions; fields as in ``ureca.schema.ERROR``."""

    stage: str
    kind: str
    message: str

    @classmethod
    def of(cls, stage: str, error: DataError) -> "RowError":
        """The error of a stage."""
        return cls(stage, error.kind, error.message)


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An image on its way: where its bytes are, and its masks or what went wrong.

    Attributes:
        entry: where the bytes are; pixels do not travel.
        height_px: None where the image could not be read.
        width_px: None where the image could not be read.
        masks: in the order of insertion into the tree, once that is planted.
        parents: parent id by mask id; empty until the tree is planted.
        error: None where all went well.
    """

    entry: ManifestEntry
    height_px: int | None = None
    width_px: int | None = None
    masks: tuple[Mask, ...] = ()
    parents: Mapping[int, int] = field(default_factory=dict)
    error: RowError | None = None


@dataclass(frozen=True, slots=True)
class MaskedPartition:
    """A group of images that is written as a whole, or a piece of it.

    Attributes:
        number: of the unit in its output.
        proposer: name of what proposed the masks.
        images: in the manifest's order.
        seconds: spent so far, by stage.
        piece: of the unit, from 0, where its images do not go on all together.
        num_pieces: of the unit.
    """

    number: int
    mask_generator: str
    images: tuple[MaskedImage, ...]
    seconds: Mapping[str, float]
    chunk: int = 0
    num_chunks: int = 1


def generate(
    number: int, entries: Sequence[ManifestEntry], mask_generator: MaskGenerator, limits: ImageLimits
) -> MaskedPartition:
    """Read the images of a unit and propose their masks."""
    started = time.monotonic()
    masked = {fetched.entry.image_id: _generate(fetched, mask_generator, limits) for fetched in fetch(entries, limits)}
    images = tuple(masked[entry.image_id] for entry in entries)
    return MaskedPartition(number, mask_generator.name, images, {"masks": time.monotonic() - started})


def _generate(fetched: Fetched, mask_generator: MaskGenerator, limits: ImageLimits) -> MaskedImage:
    entry = fetched.entry
    pixels = decode_fetched(fetched, limits)
    if isinstance(pixels, DataError):
        return MaskedImage(entry, error=RowError.of("read", pixels))
    height, width = pixels.shape[:2]
    try:
        annotation = None if fetched.annotation is None else _bytes(fetched.annotation)
        masks = mask_generator.generate(pixels, annotation)
        if not masks:
            raise DataError("no_masks", f"{mask_generator.name} proposed no mask")
    except DataError as error:
        return MaskedImage(entry, height, width, error=RowError.of("masks", error))
    return MaskedImage(entry, height, width, tuple(masks))


def build(partition: MaskedPartition, containment: float) -> MaskedPartition:
    """Plant the mask tree of each image."""
    started = time.monotonic()
    built = []
    for image in partition.images:
        parents = MaskTree.build(image.masks, containment).parents
        by_id = {mask.id: mask for mask in image.masks}
        built.append(replace(image, masks=tuple(by_id[id] for id in parents), parents=parents))
    seconds = {**partition.seconds, "tree": time.monotonic() - started}
    return replace(partition, images=tuple(built), seconds=seconds)


def image_row(image: MaskedImage, made_by: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "image_id": image.entry.image_id,
        "uri": image.entry.uri,
        "height": image.height_px,
        "width": image.width_px,
        "regions": [],
        "error": None if image.error is None else asdict(image.error),
        "provenance": made_by,
    }


def decode_fetched(fetched: Fetched, limits: ImageLimits) -> Pixels | DataError:
    try:
        return decode_image(_bytes(fetched.image), limits)
    except DataError as error:
        return error


def _bytes(data: bytes | DataError) -> bytes:
    if isinstance(data, DataError):
        raise data
    return data


Image = TypeVar("Image", ManifestEntry, MaskedImage)

MaskStage = Callable[[int, Sequence[ManifestEntry]], MaskedPartition]
"""From the number and the images of a unit to their masks."""


ChunkedStage = Callable[[int, Sequence[ManifestEntry]], Iterator[MaskedPartition]]
"""The same piece by piece, each as soon as it is ready."""


def guarded(stage: MaskStage, crash_log: CrashLog, images_per_chunk: int | None = None) -> ChunkedStage:
    """The stage that makes masks, of which no image can hold up the rest.

    Args:
        stage: that may die.
        attempts: of the stage.
        images_per_chunk: None: the whole unit. Which images make which piece depends on nothing else: pieces that a
            process has made before it died are not asked for again.
    """

    def generate(number: int, entries: Sequence[ManifestEntry]) -> Iterator[MaskedPartition]:
        chunks = _chunks(entries, images_per_chunk)
        key = _partition_key(number)
        num_crashes = crash_log.num_crashes(key)
        with nullcontext() if num_crashes else crash_log.in_progress(key):
            for place, chunk in enumerate(chunks):
                if num_crashes:
                    partition = _one_by_one(chunk, partial(stage, number), "masks", crash_log, num_crashes)
                else:
                    partition = stage(number, chunk)
                yield replace(partition, chunk=place, num_chunks=len(chunks))

    return generate


def _chunks(entries: Sequence[ManifestEntry], images_per_chunk: int | None) -> list[Sequence[ManifestEntry]]:
    # Images of a Parquet file are read together: a row group for each of them would be read many times.
    if images_per_chunk is None or any(entry.row is not None for entry in entries):
        return [entries]
    return [entries[start : start + images_per_chunk] for start in range(0, len(entries), images_per_chunk)]


def guarded_build(
    partition: MaskedPartition, build: Callable[[MaskedPartition], MaskedPartition], crash_log: CrashLog
) -> MaskedPartition:
    """Plant the trees of a unit, of which no image can hold up the rest."""
    key = _partition_key(partition.number, partition.chunk)
    num_crashes = crash_log.num_crashes(key)
    if not num_crashes:
        with crash_log.in_progress(key):
            return build(partition)
    return _one_by_one(
        partition.images,
        lambda some: build(replace(partition, images=tuple(some))),
        "tree",
        crash_log,
        earlier=num_crashes,
    )


def _partition_key(number: int, chunk: int = 0) -> str:
    return f"unit {number}.{chunk}\n"  # no image's id has a line's end at its end


def _one_by_one(
    images: Sequence[Image],
    work: Callable[[Sequence[Image]], MaskedPartition],
    stage: str,
    crash_log: CrashLog,
    earlier: int,
) -> MaskedPartition:
    """Work on images of which one may be guilty of some ``earlier`` deaths."""
    whole = work(())
    done: list[MaskedImage] = []
    seconds = dict(whole.seconds)
    for image in images:
        entry = image if isinstance(image, ManifestEntry) else image.entry
        if (reason := crash_log.quarantine_error(entry.image_id, earlier)) is not None:
            done.append(_failed(image, RowError.of(stage, reason)))
            continue
        with crash_log.in_progress(entry.image_id):
            one = work([image])
        done += one.images
        seconds[stage] += one.seconds[stage] - whole.seconds[stage]
    return replace(whole, images=tuple(done), seconds=seconds)


def _failed(image: ManifestEntry | MaskedImage, error: RowError) -> MaskedImage:
    if isinstance(image, ManifestEntry):
        return MaskedImage(image, error=error)
    return replace(image, masks=(), parents={}, error=error)
