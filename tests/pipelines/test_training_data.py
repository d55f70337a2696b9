"""Micro-batches are read ahead on a thread of their own, and reach the device as bytes."""

import threading
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch

from tests.training.test_packing import make_examples
from ureca.model.initialization import build_tiny
from ureca.pipelines.train_settings import TrainResources
from ureca.pipelines.training.data import Prefetched, packed_micro_batches
from ureca.pipelines.training.engine import InputLoader
from ureca.training.packing import HostBatch, PackedMicroBatch, Packer, from_bytes, to_bytes

WAIT_S = 60
CPU = torch.device("cpu")


class Numbers:
    """Counts from 0, and notes what is taken and when it is closed."""

    def __init__(self, end: int) -> None:
        self.end, self.num_taken = end, 0
        self.threads: set[int] = set()
        self.is_closed = threading.Event()

    def __call__(self) -> Generator[int, None, None]:
        try:
            for number in range(self.end):
                self.num_taken += 1
                self.threads.add(threading.get_ident())
                yield number
        finally:
            self.is_closed.set()


def test_prefetched_prepares_the_next_items_while_one_is_used() -> None:
    numbers = Numbers(10)
    prepared = [threading.Event() for _ in range(10)]
    threads: set[int] = set()

    def prepare(number: int) -> str:
        threads.add(threading.get_ident())
        prepared[number].set()
        return f"item {number}"

    with Prefetched(numbers(), prepare, ahead=2) as items:
        for number, item in enumerate(items):
            assert item == f"item {number}"
            # The item in use is not given back before the two after it are ready.
            for later in prepared[number + 1 : number + 3]:
                assert later.wait(WAIT_S)
            # One more may be in preparation, and nothing beyond it.
            assert numbers.num_taken <= number + 4
    assert number == 9
    assert threads == numbers.threads
    assert threading.get_ident() not in threads
    assert numbers.is_closed.is_set()


@pytest.mark.parametrize("fails", ["items", "prepare"])
def test_prefetched_raises_an_error_in_place_of_its_item(fails: str) -> None:
    def items() -> Generator[int, None, None]:
        yield from range(3)
        if fails == "items":
            raise OSError("the disk is gone")
        yield 3

    def prepare(number: int) -> int:
        if number == 3:
            raise OSError("the disk is gone")
        return number

    got = []
    with pytest.raises(OSError, match="the disk is gone"), Prefetched(items(), prepare, ahead=8) as prefetched:
        for number in prefetched:
            got.append(number)
    assert got == [0, 1, 2]
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_prefetched_that_is_left_early_ends_its_thread() -> None:
    numbers = Numbers(1_000_000)
    with pytest.raises(ZeroDivisionError), Prefetched(numbers(), float, ahead=3) as items:
        assert next(items) == 0
        raise ZeroDivisionError
    assert numbers.is_closed.wait(WAIT_S)
    assert numbers.num_taken <= 6
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def micro_batch() -> tuple[PackedMicroBatch, InputLoader]:
    processor = build_tiny()[1]
    data = to_bytes(Packer(processor).pack(make_examples()), processor.image_processor)
    return PackedMicroBatch(data, 1.0, 1, 1, 1, ("image",), 0, ()), InputLoader(processor.image_processor, CPU, None)


def test_packed_micro_batches_of_any_number_come_from_graphs_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        """A data graph that packs nothing."""

        def __init__(self, blocks: list[pa.Table]) -> None:
            graphs.append([number for block in blocks for number in block["number"].to_pylist()])

        def map_batches(self, *_: Any, **__: Any) -> "Graph":
            return self

        def iter_batches(self, **_: Any) -> Iterator[Any]:
            return iter(())

    graphs: list[list[int]] = []
    monkeypatch.setattr(ray.data, "from_arrow", Graph)
    end = 7 + 250_000
    task: Any = SimpleNamespace(settings=SimpleNamespace(resources=TrainResources()))
    assert list(packed_micro_batches(task, 7, end)) == []
    assert [number for graph in graphs for number in graph] == list(range(7, end))
    assert {len(graph) for graph in graphs[:-1]} == {len(graphs[0])}
    assert len(graphs[0]) <= 80_000


def test_input_loader_reads_pixels_as_bytes_and_masks_as_bits() -> None:
    packed, inputs = micro_batch()
    read = inputs.read(packed)
    assert not read.packed.data
    assert not any(tensor.is_floating_point() for tensor in read.batch.tensors.values())
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in read.batch.tensors.items()}
    batch, features = inputs.load(read)
    assert features is None
    assert sizes["pixel_values"] == batch.pixel_values.numel()
    assert 8 * sizes["mask_bits"] - batch.mask_values.numel() in range(8)
    expected = from_bytes(packed.data, build_tiny()[1].image_processor).tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in batch.tensors().items())


def test_host_batch_converts_on_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which stands for a GPU here: tensors reach it as they are stored."""
    moved: dict[str, tuple[torch.dtype, int]] = {}
    to = torch.Tensor.to

    def noting(tensor: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if arguments and arguments[0] == torch.device("meta") and tensor.device.type == "cpu":
            moved[f"{tensor.dtype} {list(tensor.shape)}"] = tensor.dtype, tensor.numel()
        return to(tensor, *arguments, **named)

    packed, _ = micro_batch()
    monkeypatch.setattr(torch.Tensor, "to", noting)
    host = HostBatch.read(packed.data)
    batch = host.to(build_tiny()[1].image_processor, torch.device("meta"))
    assert moved
    assert {dtype for dtype, _ in moved.values()} == {torch.uint8, torch.int64}
    assert batch.pixel_values.is_meta
    assert batch.pixel_values.is_floating_point()
    assert batch.mask_values.is_meta
    assert not batch.prefix_lengths.is_meta


def test_host_batch_that_is_pinned_pins_all_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.data_ptr())
        return tensor

    packed, _ = micro_batch()
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    tensors = HostBatch.read(packed.data, pin=True).tensors
    on_cpu = {"prefix_lengths", "num_segments", "segment_lengths", "num_tiles", "image_digests", "mask_shape"}
    assert sorted(pinned) == sorted(tensor.data_ptr() for name, tensor in tensors.items() if name not in on_cpu)
