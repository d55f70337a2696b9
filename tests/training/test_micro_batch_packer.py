"""Packed micro-batches: deterministic bytes, and no weight for padding and unreadable samples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.datasets import write_dataset
from tests.training.test_packing import make_examples
from ureca.data.questions import QuestionSettings
from ureca.data.settings import RegionsSource
from ureca.image_limits import ImageLimits
from ureca.model.initialization import build_tiny, save_tiny
from ureca.training.index import IndexSettings, TrainingIndex
from ureca.training.index_writer import prepare_index
from ureca.training.packing import MicroBatchPacker, PackedMicroBatch, Packer, from_bytes, to_bytes
from ureca.training.sampler import RunPlan
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.token_costs import ProcessorTextTokens, costs_of

NUM_IMAGES = 5


@pytest.mark.parametrize("mask_values", ["binary", "released"])
@pytest.mark.parametrize("region_prompt", ["mask", "crop"])
def test_to_bytes_and_from_bytes_return_the_same_batch(mask_values: str, region_prompt: str) -> None:
    _, processor = build_tiny()
    processor.mask_values, processor.region_prompt = mask_values, region_prompt
    batch = Packer(processor).pack(make_examples())
    data = to_bytes(batch, processor.image_processor)
    again = from_bytes(data, processor.image_processor)
    assert again.image_digests is not None
    assert len(set(map(bytes, again.image_digests.tolist()))) == len(batch.num_tiles)
    for name, tensor in batch.tensors().items():
        assert tensor.dtype == again.tensors()[name].dtype, name
        assert torch.equal(tensor, again.tensors()[name]), name
    if mask_values == "binary":
        assert (
            len(data) < batch.pixel_values.numel() + batch.mask_values.numel() // 8 + 40 * len(batch.input_ids) + 2000
        )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_tiny(path)
    return path


def open_packer(checkpoint: Path, folder: Path, world_size: int = 2) -> MicroBatchPacker:
    _, processor = build_tiny()
    index = folder / "index"
    if not index.exists():
        dataset = write_dataset(folder, NUM_IMAGES)
        settings = IndexSettings(sources=(RegionsSource(path=str(dataset)),), tile_size_px=56, max_tiles=6)
        prepare_index(str(index), settings, ProcessorTextTokens(processor))
    opened = TrainingIndex(str(index))
    RunPlan.store(
        folder / "plan",
        opened.map_sample_costs,
        costs_of(processor),
        MicroBatchSettings(images_per_device=2, regions_per_image=4),
        AugmentationSettings(),
        content=opened.info.fingerprint,
        seed=1,
        world_size=world_size,
        epochs=1,
    )
    return MicroBatchPacker.open(
        str(checkpoint),
        str(index),
        folder / "plan",
        augmentation=AugmentationSettings(),
        questions=QuestionSettings(),
        image_limits=ImageLimits(),
        seed=1,
        world_size=world_size,
    )


def all_of_epoch(packer: MicroBatchPacker) -> list[PackedMicroBatch]:
    return [packer.pack(step, 0, rank) for step in range(2) for rank in range(2)]


def test_pack_of_an_epoch_has_every_region_once_and_weightless_padding(checkpoint: Path, tmp_path: Path) -> None:
    made = all_of_epoch(open_packer(checkpoint, tmp_path))
    assert sum(batch.num_regions for batch in made) == 4 * NUM_IMAGES
    assert sorted(image_id for batch in made for image_id in batch.image_ids) == sorted(
        path.stem for path in (tmp_path / "images").glob("*.png")
    )
    padding = [batch for batch in made if not batch.weight]
    assert [(batch.num_answer_tokens, batch.num_regions, batch.samples) for batch in padding] == [(0, 0, 0)]
    again = all_of_epoch(open_packer(checkpoint, tmp_path))
    assert [batch.data for batch in again] == [batch.data for batch in made]
    # Which regions an epoch has shows in a sum, whatever the order.
    alone = open_packer(checkpoint, tmp_path, world_size=1)
    sums = [
        sum(batch.samples for batch in batches) % 2**64 for batches in (made, [alone.pack(s, 0, 0) for s in range(3)])
    ]
    assert sums[0] == sums[1]


def test_pack_with_unreadable_samples_names_them_without_weight(checkpoint: Path, tmp_path: Path) -> None:
    packer = open_packer(checkpoint, tmp_path)
    processor = build_tiny()[1]
    first = packer.pack(0, 0, 0)
    damaged = first.image_ids[0]
    (tmp_path / "images" / f"{damaged}.png").write_bytes(b"no picture")
    half = packer.pack(0, 0, 0)
    assert (half.weight, half.num_regions, half.image_ids) == (1.0, 4, first.image_ids[1:])
    assert {(bad.image_id, bad.kind) for bad in half.bad_samples} == {(damaged, "not_an_image")}
    assert len(half.bad_samples) == 4
    other = first.image_ids[1]
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "images" / f"{other}.png")
    empty = packer.pack(0, 0, 0)
    assert (empty.weight, empty.num_answer_tokens, len(empty.bad_samples)) == (0.0, 0, 8)
    assert from_bytes(empty.data, processor.image_processor).num_answer_tokens > 0  # all ranks work on something
