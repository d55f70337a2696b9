"""Masks on a device: what is done there gives what is done on a CPU, and few values leave it."""

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ureca.masks.generators.everything import max_upscaled_masks
from ureca.masks.generators.mask_tensors import areas_px, inclusive_boxes, run_lengths


class OnDevice(torch.Tensor):
    """A tensor that is taken for one on a GPU, and counts the values that are copied from there."""

    num_copied: ClassVar[int] = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    def cpu(self, *arguments: Any, **options: Any) -> torch.Tensor:
        OnDevice.num_copied += self.numel()
        return self.as_subclass(torch.Tensor)


def test_masks_on_a_device_are_measured_and_encoded_there(monkeypatch: Any) -> None:
    monkeypatch.setattr(OnDevice, "num_copied", 0)
    logits = torch.randn(3, 40, 30, generator=torch.Generator().manual_seed(0))
    logits = torch.cat([torch.nn.functional.avg_pool2d(logits, 7, 1, 3), -torch.ones(1, 40, 30), torch.ones(1, 40, 30)])
    on_device = logits.as_subclass(OnDevice)
    assert areas_px(on_device, 0.05).tolist() == areas_px(logits, 0.05).tolist()
    masks, masks_on_device = logits > 0.05, on_device > 0.05
    assert isinstance(masks_on_device, OnDevice)
    boxes = inclusive_boxes(masks)
    assert np.array_equal(inclusive_boxes(masks_on_device), boxes)
    assert OnDevice.num_copied == len(masks) * (1 + 40 + 30)  # areas, rows and columns
    for crop in ((0, 0, 30, 40), (5, 8, 35, 48)):
        boxes_in_image = boxes + np.array([*crop[:2], *crop[:2]])
        size = (crop[3] + 2 * bool(crop[0]), crop[2] + 3 * bool(crop[0]))
        OnDevice.num_copied = 0
        found = run_lengths(masks_on_device, boxes_in_image, crop, size)
        assert found == run_lengths(masks, boxes_in_image, crop, size)
        num_borders = int((torch.nn.functional.pad(masks.int(), (0, 0, 1, 1)).diff(dim=1) != 0).sum())
        assert OnDevice.num_copied == 3 * num_borders


@pytest.mark.parametrize(("size", "number"), [((1500, 2250), 24), ((5000, 8200), 2), ((20_000, 20_000), 1)])
def test_masks_that_a_gpu_upscales_at_a_time_take_a_gibibyte(size: tuple[int, int], number: int) -> None:
    network: Any = SimpleNamespace(device=torch.device("cuda"), input_side_px=1024)
    assert max_upscaled_masks(network, size) == number
    # Logits in float32 of both sizes, and the bool masks and run lengths made of them.
    assert number == 1 or number * 10 * (size[0] * size[1] + 1024**2) <= 2**30
