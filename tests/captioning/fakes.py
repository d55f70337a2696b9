"""Partitions of images on disk with their masks, as the mask stage returns them."""

from pathlib import Path

from tests.drawn import drawn_image, png
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedImage, MaskedPartition


def masked_partition(folder: Path, number: int, num_images: int) -> MaskedPartition:
    """Build a partition of drawn images with four masks each."""
    images = []
    for seed in range(num_images):
        pixels, masks = drawn_image(seed)
        path = folder / f"{number}-{seed}.png"
        path.write_bytes(png(pixels))
        entry = ManifestEntry(path.stem, str(path), str(path))
        images.append(MaskedImage(entry, *pixels.shape[:2], tuple(masks)))
    return MaskedPartition(number, "drawn", tuple(images), {"masks": 1.0})
