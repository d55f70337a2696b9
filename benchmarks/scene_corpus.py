"""Images like the scenes of ``ureca.scenes``, with their masks beside them, as many as a benchmark wants."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ureca.masks.annotations import write_annotations
from ureca.scenes.rendering import render

_DISTINCT_SCENES = 250


def write_scene_corpus(folder: Path, num_images: int, side_px: int, max_masks: int | None = None) -> None:
    """Write ``image_000000.png`` with ``image_000000.json`` and so on.

    Drawing takes longer than reading: beyond the first scenes, images are those again in other colours. No two are
    equal, so that whoever answers by content answers differently for each.

    Args:
        folder: is made.
        num_images: that are written.
        side_px: of the images.
        max_masks: of an image, the largest; None: all.
    """
    folder.mkdir(parents=True)
    for number in range(min(num_images, _DISTINCT_SCENES)):
        scene = render("train", 0, number, side_px, side_px)
        largest = sorted(scene.annotations.masks, key=lambda mask: -mask.area_px)[:max_masks]
        annotations = replace(scene.annotations, masks=tuple(largest))
        for repeat, again in enumerate(range(number, num_images, _DISTINCT_SCENES)):
            path = folder / f"image_{again:06d}.png"
            recoloured = scene.pixels[..., np.roll([0, 1, 2], repeat)] + np.uint8(5 * (repeat // 3))
            Image.fromarray(recoloured).save(path, compress_level=1)
            write_annotations(path.with_suffix(".json"), annotations)
