"""Corpora of any size for benchmarks: drawn scenes with their masks beside them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ureca.masks.annotations import write_annotations
from ureca.scenes.rendering import render


def write_scene_corpus(
    folder: Path, num_images: int, side_px: int, max_masks: int | None = None, *, num_scenes: int = 250
) -> None:
    """Write ``image_000000.png`` with ``image_000000.json`` and so on.

    Drawing is slow, so images after the first ``num_scenes`` are these in other colours. No two images are equal, so
    that an endpoint that answers by content answers differently for each.

    Args:
        folder: folder, which must not exist.
        num_images: number of images.
        side_px: side of the images.
        max_masks: largest number of masks of an image, the largest masks; None keeps all.
        num_scenes: number of distinct scenes.
    """
    folder.mkdir(parents=True)
    for number in range(min(num_images, num_scenes)):
        scene = render("train", 0, number, side_px, side_px)
        largest = sorted(scene.annotations.masks, key=lambda mask: -mask.area_px)[:max_masks]
        annotations = replace(scene.annotations, masks=tuple(largest))
        for repeat, again in enumerate(range(number, num_images, num_scenes)):
            path = folder / f"image_{again:06d}.png"
            recoloured = scene.pixels[..., np.roll([0, 1, 2], repeat)] + np.uint8(5 * (repeat // 3))
            Image.fromarray(recoloured).save(path, compress_level=1)
            write_annotations(path.with_suffix(".json"), annotations)
