"""Mask stages that survive an image that crashes their process.

Any image of a partition may have caused a crash. So the next process works on its images one at a time, and
quarantines the one that further processes crash with; the others get their rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ureca.data.crash_log import CrashLog
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedImage, MaskedPartition, MaskStage, RowError

Image = TypeVar("Image", ManifestEntry, MaskedImage)

ChunkedMaskStage = Callable[[int, Sequence[ManifestEntry]], Iterator[MaskedPartition]]
"""Function from the number and the images of a partition to their masks, chunk by chunk."""


def with_quarantine(stage: MaskStage, crash_log: CrashLog, images_per_chunk: int | None = None) -> ChunkedMaskStage:
    """Wrap a stage that generates masks, so that no image can hold up the others by crashes.

    Args:
        stage: stage whose process may crash.
        crash_log: crash log of the stage.
        images_per_chunk: number of images of a chunk; None: the whole partition is one chunk. The images of a chunk
            depend on nothing else: chunks that a process completed before it crashed are not generated again.
    """

    def generate(number: int, entries: Sequence[ManifestEntry]) -> Iterator[MaskedPartition]:
        chunks: Sequence[Sequence[ManifestEntry]] = [entries]
        # Images of a Parquet file are read together: a row group for each chunk would be read many times.
        if images_per_chunk is not None and all(entry.row is None for entry in entries):
            starts = range(0, len(entries), images_per_chunk)
            chunks = [entries[start : start + images_per_chunk] for start in starts]
        key = _partition_key(number)
        num_crashes = crash_log.num_crashes(key)
        with nullcontext() if num_crashes else crash_log.in_progress(key):
            for index, chunk in enumerate(chunks):
                if num_crashes:
                    partition = _one_by_one(chunk, partial(stage, number), "masks", crash_log, num_crashes)
                else:
                    partition = stage(number, chunk)
                yield replace(partition, chunk=index, num_chunks=len(chunks))

    return generate


def build_with_quarantine(
    partition: MaskedPartition, build: Callable[[MaskedPartition], MaskedPartition], crash_log: CrashLog
) -> MaskedPartition:
    """Build the mask trees of a partition, so that no image can hold up the others by crashes.

    Args:
        partition: images with masks.
        build: function that builds the trees and whose process may crash.
        crash_log: crash log of the stage.
    """
    key = _partition_key(partition.number, partition.chunk)
    num_crashes = crash_log.num_crashes(key)
    if not num_crashes:
        with crash_log.in_progress(key):
            return build(partition)

    def build_some(images: Sequence[MaskedImage]) -> MaskedPartition:
        return build(replace(partition, images=tuple(images)))

    return _one_by_one(partition.images, build_some, "tree", crash_log, num_crashes)


def _partition_key(number: int, chunk: int = 0) -> str:
    return f"partition {number}.{chunk}\n"  # no image id ends with a line break


def _one_by_one(
    images: Sequence[Image],
    work: Callable[[Sequence[Image]], MaskedPartition],
    stage: str,
    crash_log: CrashLog,
    earlier_crashes: int,
) -> MaskedPartition:
    """Work on one image at a time, of which any may have caused the ``earlier_crashes``."""
    whole = work(())
    done: list[MaskedImage] = []
    seconds = dict(whole.seconds)
    for image in images:
        entry = image if isinstance(image, ManifestEntry) else image.entry
        if (reason := crash_log.quarantine_error(entry.image_id, earlier_crashes)) is not None:
            error = RowError.of(stage, reason)
            if isinstance(image, ManifestEntry):
                done.append(MaskedImage(entry, error=error))
            else:
                done.append(replace(image, masks=(), parents={}, error=error))
            continue
        with crash_log.in_progress(entry.image_id):
            one = work([image])
        done += one.images
        seconds[stage] += one.seconds[stage] - whole.seconds[stage]
    return replace(whole, images=tuple(done), seconds=seconds)
