"""Conversion of samples to examples: deterministic, with bad samples as values."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.drawn import HEIGHT, WIDTH, drawn_image, png
from tests.training.datasets import write_dataset
from ureca.data.questions import QuestionSettings
from ureca.data.samples import TrainingImage, open_source
from ureca.data.settings import RegionsSource
from ureca.masks.mask import Mask
from ureca.model.image_processing import num_tiles
from ureca.model.initialization import build_tiny
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt import QUESTION
from ureca.training.augmentation import draw_scale
from ureca.training.epoch_plan import EpochPlan, Group
from ureca.training.index import IndexSettings, TrainingIndex
from ureca.training.index_writer import prepare_index
from ureca.training.packing import ExampleSettings, ImageExample, Packer, ReadExample, read_example
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.token_costs import ProcessorTextTokens, TokenCosts, costs_of

ONE_QUESTION = QuestionSettings(default_fraction=1)
RESIZED = AugmentationSettings(min_scale=0.4, max_scale=2, num_scales=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingImage]:
    """Six images with four regions each."""
    source = open_source(RegionsSource(path=str(write_dataset(tmp_path_factory.mktemp("data"), 6))))
    return [sample for sample in source.samples() if isinstance(sample, TrainingImage)]


def made(image: TrainingImage, numbers: tuple[int, ...] = (0, 1, 2, 3), epoch: int = 0, **settings: Any) -> ReadExample:
    return read_example(image, numbers, epoch=epoch, seed=7, settings=ExampleSettings(**settings))


def test_read_example_returns_pixels_and_requested_regions(images: list[TrainingImage]) -> None:
    found = made(images[2], (3, 1), questions=ONE_QUESTION)
    pixels, masks = drawn_image(2)
    assert found.example is not None
    assert np.array_equal(found.example.pixels, pixels)
    assert found.region_numbers == (3, 1)
    assert [region.answer for region in found.example.regions] == ["the only disc 4", "the only disc 2"]
    assert {region.question for region in found.example.regions} == {QUESTION}
    for region, number in zip(found.example.regions, (3, 1), strict=True):
        assert np.array_equal(region.mask, masks[number].decode())


def test_read_example_in_another_epoch_differs_reproducibly(images: list[TrainingImage]) -> None:
    def questions_and_sizes(epoch: int) -> list[Any]:
        examples = [made(image, epoch=epoch, augmentation=RESIZED).example for image in images]
        return [(e.pixels.shape, [r.question for r in e.regions]) for e in examples if e is not None]

    assert questions_and_sizes(0) == questions_and_sizes(0)
    assert questions_and_sizes(0) != questions_and_sizes(1)


def test_read_example_with_augmentation_resizes_image_and_masks_together(images: list[TrainingImage]) -> None:
    shapes = set()
    for image in images:
        example = made(image, augmentation=RESIZED).example
        assert example is not None
        scale = draw_scale(image.image_id, RESIZED, epoch=0, seed=7)
        assert example.pixels.shape == (round(HEIGHT * scale), round(WIDTH * scale), 3)
        assert {region.mask.shape for region in example.regions} == {example.pixels.shape[:2]}
        shapes.add(example.pixels.shape)
    assert len(shapes) > 1


def test_read_example_with_question_of_the_source_keeps_it(images: list[TrainingImage]) -> None:
    regions = tuple(dataclasses.replace(region, question=f"Region {region.region_id}?") for region in images[0].regions)
    example = made(dataclasses.replace(images[0], regions=regions)).example
    assert example is not None
    assert [region.question for region in example.regions] == [f"Region {id}?" for id in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "missing_file"),
        (b"", "empty_file"),
        (b"no image", "not_an_image"),
        (png(np.zeros((9, 9, 3), np.uint8)), "size_mismatch"),
    ],
)
def test_read_example_with_unreadable_image_makes_all_regions_bad(
    tmp_path: Path, images: list[TrainingImage], content: bytes | None, kind: str
) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    broken = dataclasses.replace(images[0], entry=dataclasses.replace(images[0].entry, path=str(path), uri=str(path)))
    found = made(broken, (0, 2))
    assert found.example is None
    assert [(bad.image_id, bad.region_id, bad.kind) for bad in found.bad_samples] == [
        ("img_0000", 1, kind),
        ("img_0000", 3, kind),
    ]


def test_read_example_with_bad_mask_makes_only_its_region_bad(images: list[TrainingImage]) -> None:
    empty = Mask.from_array(0, np.zeros((HEIGHT, WIDTH), bool)).rle["counts"]
    turned = Mask.from_array(0, np.ones((WIDTH, HEIGHT + 1), bool)).rle["counts"]
    counts = [images[0].regions[0].counts, empty, turned, "\x00"]
    regions = tuple(
        dataclasses.replace(region, counts=runs) for region, runs in zip(images[0].regions, counts, strict=True)
    )
    image = dataclasses.replace(images[0], regions=regions)
    found = made(image)
    assert found.example is not None
    assert found.region_numbers == (0,)
    assert len(found.example.regions) == 1
    assert [(bad.region_id, bad.kind) for bad in found.bad_samples] == [
        (2, "empty_mask"),
        (3, "malformed_mask"),
        (4, "malformed_mask"),
    ]
    assert made(image, (1, 2)).example is None


# Counts of tokens are those of packed rows


@pytest.fixture(scope="module")
def processor() -> UrecaProcessor:
    """Processor of a tiny checkpoint with tiles so small that the drawn images have several."""
    processor: UrecaProcessor = build_tiny()[1]
    return processor


@pytest.mark.parametrize("region_prompt", ["mask", "none", "contour", "crop"])
@pytest.mark.parametrize("questions", [ONE_QUESTION, QuestionSettings(default_fraction=0)])
def test_epoch_plan_counts_the_tokens_of_packed_rows(
    tmp_path: Path, processor: UrecaProcessor, region_prompt: str, questions: QuestionSettings
) -> None:
    processor.region_prompt = region_prompt
    settings = ExampleSettings(augmentation=RESIZED, questions=questions)
    index = indexed(tmp_path, processor, settings)
    costs, packer = costs_of(processor), Packer(processor)
    plan = EpochPlan(
        index.sample_costs(), costs, MicroBatchSettings(regions_per_image=3), RESIZED, epoch=1, seed=7, world_size=1
    )
    for step in range(plan.num_steps):
        (micro_batch,) = plan.micro_batches(step, 0)
        examples = [example(index, group, settings, epoch=1, seed=7) for group in micro_batch.groups]
        num_tokens = len(packer.pack(examples).input_ids)
        if questions == ONE_QUESTION and region_prompt != "crop":
            assert num_tokens == micro_batch.num_tokens
        else:
            assert num_tokens <= micro_batch.num_tokens


def test_costs_of_with_one_mask_tile_counts_one(tmp_path: Path) -> None:
    processor = build_tiny()[1]
    processor.dynamic_mask = False
    settings = ExampleSettings(questions=ONE_QUESTION)
    index = indexed(tmp_path, processor, settings)
    plan = EpochPlan(index.sample_costs(), costs_of(processor), MicroBatchSettings(), epoch=0, seed=0, world_size=1)
    (micro_batch,) = plan.micro_batches(0, 0)
    examples = [example(index, group, settings, epoch=0, seed=0) for group in micro_batch.groups]
    assert len(Packer(processor).pack(examples).input_ids) == micro_batch.num_tokens


def test_costs_of_follow_the_processor(processor: UrecaProcessor) -> None:
    processor.region_prompt = "mask"
    costs = costs_of(processor)
    assert isinstance(costs, TokenCosts)
    assert (costs.image_tile, costs.mask_tile) == (processor.image_seq_length, processor.num_mask_tokens)
    identity = ProcessorTextTokens(processor).identity
    assert identity == ProcessorTextTokens(processor).identity
    processor.region_prompt = "crop"
    assert costs_of(processor).tiles == processor.image_processor.max_tiles + 1
    assert identity != ProcessorTextTokens(processor).identity


def indexed(folder: Path, processor: UrecaProcessor, settings: ExampleSettings) -> TrainingIndex:
    """Write an index of six images with several tiles each."""
    dataset = write_dataset(folder / "data", 6)
    index_settings = IndexSettings(
        sources=(RegionsSource(path=str(dataset)),),
        tile_size_px=processor.image_processor.tile_size_px,
        max_tiles=processor.image_processor.max_tiles,
        augmentation=settings.augmentation,
        questions=settings.questions,
    )
    assert num_tiles(HEIGHT, WIDTH, size=index_settings.tile_size_px, max_tiles=index_settings.max_tiles) > 1
    return prepare_index(str(folder / "index"), index_settings, ProcessorTextTokens(processor))


def example(index: TrainingIndex, group: Group, settings: ExampleSettings, *, epoch: int, seed: int) -> ImageExample:
    """Pack a group of a plan."""
    (image,) = index.read([group.image_number])
    found = read_example(image, group.region_numbers, epoch=epoch, seed=seed, settings=settings).example
    assert found is not None
    return found
