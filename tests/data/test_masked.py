"""Masks of the images of a partition, of which several are worked on at a time."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import generate_masks
from ureca.image_limits import ImageLimits
from ureca.images import Pixels
from ureca.masks.mask import Mask


class MeetingGenerator:
    """Takes the mask of bright pixels, and waits until as many images as it takes at a time are there."""

    name = "meeting"

    def __init__(self, images_in_flight: int) -> None:
        self.images_in_flight = images_in_flight
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(images_in_flight)

    def generate(self, image: Pixels, annotation: bytes | None = None) -> list[Mask]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._meeting.wait(timeout=60)
        with self._lock:
            self._now -= 1
        return [Mask.from_array(1, image[..., 0] > 127)]


@pytest.fixture
def entries(tmp_path: Path) -> list[ManifestEntry]:
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return [ManifestEntry.from_row(row) for row in list_images(str(tmp_path)).to_pylist()]


@pytest.mark.parametrize("images_in_flight", [2, 3])
def test_generate_masks_of_several_images_at_a_time_keeps_order_and_masks(
    entries: list[ManifestEntry], images_in_flight: int
) -> None:
    one_by_one = generate_masks(0, entries, MeetingGenerator(1), ImageLimits())
    generator = MeetingGenerator(images_in_flight)
    together = generate_masks(0, entries, generator, ImageLimits())
    assert generator.most == images_in_flight
    assert together.images == one_by_one.images
    assert [image.entry.image_id for image in together.images] == [str(index) for index in range(6)]


class CrampedGenerator:
    """Lacks memory for two images at a time, and for one of them even alone; the first two are sure to meet."""

    name = "cramped"
    images_in_flight = 2

    def __init__(self, too_large: int) -> None:
        self.num_calls, self.too_large = 0, too_large
        self.active: set[int] = set()
        self.lock = threading.Lock()
        self.have_met = threading.Barrier(2, timeout=60)

    def generate(self, image: Pixels, annotation: bytes | None = None) -> list[Mask]:
        with self.lock:
            self.num_calls += 1
            is_first = self.num_calls <= 2
            self.active.add(threading.get_ident())
            is_crowded = len(self.active) > 1
        try:
            if is_first:
                self.have_met.wait()
                raise MemoryError("two images")
            if is_crowded or int(image[0, 0, 0]) == self.too_large:
                raise MemoryError("28.61 GiB")
            return [Mask.from_array(1, image[..., 0] > 128)]
        finally:
            with self.lock:
                self.active.remove(threading.get_ident())


def test_generate_masks_of_an_image_that_lacks_memory_beside_others_is_repeated_alone(
    entries: list[ManifestEntry],
) -> None:
    first_values = [int(np.asarray(Image.open(entry.uri))[0, 0, 0]) for entry in entries]
    assert first_values.count(first_values[4]) == 1
    images = generate_masks(0, entries, CrampedGenerator(too_large=first_values[4]), ImageLimits()).images
    assert [image.error and image.error.kind for image in images] == [None] * 4 + ["out_of_memory", None]
    assert [len(image.masks) for image in images] == [1, 1, 1, 1, 0, 1]
