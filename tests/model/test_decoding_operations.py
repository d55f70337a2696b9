"""Operations of a decoding step: caches are not copied for a token, and the device is waited for once."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.inputs import box_masks, noise_image
from ureca.model.captioner import RegionCaptioner
from ureca.model.decoding import SuffixCache
from ureca.model.initialization import build_tiny
from ureca.model.settings import CaptionSettings

IMAGE = noise_image(60, 110)


class CountedOperations(TorchDispatchMode):
    """Counts operations, and those that concatenate keys or values of a prefix or longer."""

    def __init__(self, prefix_length: int) -> None:
        super().__init__()
        self.prefix_length = prefix_length
        self.counts: Counter[str] = Counter()
        self.num_copied_prefixes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        self.counts[name] += 1
        result = operation(*args, **(kwargs or {}))
        is_joined = name in {"cat", "stack", "clone"} and isinstance(result, torch.Tensor)
        if is_joined and result.dim() == 4 and result.shape[2] == self.prefix_length:
            self.num_copied_prefixes += 1
        return result


class Copies(TorchDispatchMode):
    """Counts the elements that are written by copies, and tensors that are made from Python values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0
        self.num_made = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        self.num_made += name == "lift_fresh"
        if name in {"cat", "clone", "constant_pad_nd", "copy_"} and result.dim() == 4:
            self.num_elements += result.numel()
        return result


def test_join_copies_each_cache_once_and_makes_no_tensor_for_each_region() -> None:
    model, processor = build_tiny()
    prefix = RegionCaptioner(model, processor).encoder.encode_image(processor.image_processor.cut(IMAGE)).prefix

    def prefill(*lengths: int) -> tuple[SuffixCache, int]:
        suffixes = [torch.randn(length, 64) for length in lengths]
        with Copies() as copies:
            cache = SuffixCache.prefill(model, [prefix] * len(lengths), suffixes)
        return cache, copies.num_made

    (few, num_made), (many, num_made_by_many) = prefill(7), prefill(5, 6, 4, 6, 6)
    assert num_made_by_many == num_made
    num_elements = sum(layer.keys.numel() + layer.values.numel() for each in (few, many) for layer in each.cache.layers)
    with Copies() as copies:
        both = few.concatenated(many)
    assert copies.num_elements == num_elements
    assert both.visible.sum(1).tolist() == [7, 5, 6, 4, 6, 6]
    assert both.positions.flatten().tolist() == [prefix.length + length - 1 for length in (7, 5, 6, 4, 6, 6)]


def operations_of_steps(num_regions: int, **settings: Any) -> list[CountedOperations]:
    """Count the operations of a few steps without joins."""
    model, processor = build_tiny()
    model.generation_config.eos_token_id = 511  # not written
    captioner = RegionCaptioner(model, processor)
    image = captioner.prepare(IMAGE, box_masks(60, 110, num_regions))
    chosen = CaptionSettings(max_new_tokens=100, **settings)
    batch = captioner.open_batch()
    batch.admit((index, image, index, chosen) for index in range(num_regions))
    prefix_length = captioner.encoder.encode_image(image.views[0]).prefix.length
    for _ in range(2):
        list(batch.step())
    counted = []
    for _ in range(4):
        with CountedOperations(prefix_length) as operations:
            assert not list(batch.step())
        counted.append(operations)
    return counted


def test_step_copies_no_prefix_and_waits_for_the_device_independent_of_rows() -> None:
    few, many = operations_of_steps(2), operations_of_steps(9)
    for operations in (*few, *many):
        assert operations.num_copied_prefixes == 0
        assert operations.counts["_local_scalar_dense"] <= 1
    # Concatenated are scores and masks, a fixed number of times in each layer.
    assert [each.counts["cat"] for each in few] == [each.counts["cat"] for each in many]


def test_step_that_samples_waits_for_no_row() -> None:
    few, many = (operations_of_steps(number, temperature=0.8, top_p=0.9) for number in (2, 9))
    assert all(operations.counts["_local_scalar_dense"] <= 1 for operations in (*few, *many))
    assert few[0].counts["multinomial"] == 2  # each row has random numbers of its own
    assert many[0].counts["multinomial"] == 9
