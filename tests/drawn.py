"""Small drawn images with known masks, and corpora of them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.masks.annotations import Annotations, to_sa1b
from ureca.masks.mask import Mask

HEIGHT, WIDTH = 60, 80


def disc(row: float, column: float, radius: float, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.bool_]:
    """A filled circle, bool [height, width]."""
    rows, columns = np.mgrid[:height, :width]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)


def drawn_image(seed: int) -> tuple[npt.NDArray[np.uint8], list[Mask]]:
    """A noisy background, a large disc with two parts in it, and a small disc beside it; four masks."""
    rng = np.random.default_rng(seed)
    shapes = [disc(30, 28, 22), disc(24, 22, 7), disc(38, 34, 6), disc(45, 68, 8)]
    pixels = rng.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for shape in shapes:
        pixels[shape] = rng.integers(60, 256, 3, dtype=np.uint8)
    return pixels, [Mask.from_array(id, shape) for id, shape in enumerate(shapes, start=1)]


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The image as a PNG file's bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def sa1b_json(masks: list[Mask]) -> bytes:
    """The masks as an SA-1B file's bytes."""
    return json.dumps(to_sa1b(Annotations(tuple(masks), HEIGHT, WIDTH))).encode()


def write_corpus(folder: Path, num_images: int) -> list[str]:
    """Write ``img_0000.png`` and its ``.json`` and so on; returns the ids."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"img_{index:04d}" for index in range(num_images)]
    for seed, id in enumerate(ids):
        pixels, masks = drawn_image(seed)
        (folder / f"{id}.png").write_bytes(png(pixels))
        (folder / f"{id}.json").write_bytes(sa1b_json(masks))
    return ids


def write_shard(path: Path, num_images: int) -> list[str]:
    """The same corpus as a tar shard of SA-1B's kind; returns the ids."""
    ids = [f"img_{index:04d}" for index in range(num_images)]
    with tarfile.open(path, "w") as shard:
        for seed, id in enumerate(ids):
            pixels, masks = drawn_image(seed)
            for name, data in ((f"{id}.png", png(pixels)), (f"{id}.json", sa1b_json(masks))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return ids
