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
