"""Regions that decode together where the settings give no number: as many as half of the free memory holds."""

from pathlib import Path

import pytest
import torch

from tests.model.inputs import box_masks, noise_image
from ureca.errors import CheckpointError
from ureca.memory import free_device_bytes
from ureca.model.captioner import RegionCaptioner
from ureca.model.decoding import SuffixCache
from ureca.model.initialization import build_tiny, save_tiny
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor
from ureca.model.region_memory import MAX_REGIONS, MIN_REGIONS, RegionMemory
from ureca.model.settings import CaptionSettings

IMAGE, MASKS = noise_image(140, 210), box_masks(140, 210, 10)


@pytest.fixture(scope="module")
def captioner() -> RegionCaptioner:
    return RegionCaptioner(*build_tiny())


def memory_of(captioner: RegionCaptioner, settings: CaptionSettings) -> RegionMemory:
    return RegionMemory.estimate(captioner.model.config, captioner.processor, settings, 4)


def test_estimate_holds_the_cache_of_a_caption_of_full_length(
    captioner: RegionCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner.model.generation_config.eos_token_id = 511  # not written: captions are as long as they may be
    settings = CaptionSettings(max_new_tokens=100, batch_size=len(MASKS))
    most = 0
    extended = SuffixCache.extended

    def measured(cache: SuffixCache, *arguments: object) -> SuffixCache:
        nonlocal most
        after = extended(cache, *arguments)  # type: ignore[arg-type]
        states = [states for layer in after.cache.layers for states in (layer.keys, layer.values)]
        most = max(most, sum(each.untyped_storage().nbytes() for each in states))
        return after

    monkeypatch.setattr(SuffixCache, "extended", measured)
    captioner.describe([IMAGE], [MASKS], settings)
    estimated = len(MASKS) * memory_of(captioner, settings).cache
    assert most <= estimated < 2 * most


def test_estimate_grows_with_length_type_and_tiles(captioner: RegionCaptioner) -> None:
    short, long = (memory_of(captioner, CaptionSettings(max_new_tokens=number)) for number in (64, 128))
    assert long.cache - short.cache == 1.5 * 64 * 2 * 2 * 32 * 4  # keys and values, 2 layers, a head of 32, float32
    assert (long.prefix, long.join, long.logits) == (short.prefix, short.join, short.logits)
    settings = CaptionSettings(max_new_tokens=64)
    half = RegionMemory.estimate(captioner.model.config, captioner.processor, settings, 2)
    assert (2 * half.cache, 2 * half.join, half.logits) == (short.cache, short.join, short.logits)
    model, processor = build_tiny()
    processor.dynamic_mask = False
    one_tile = RegionMemory.estimate(model.config, processor, settings, 4)
    assert one_tile.cache < short.cache and one_tile.prefix == short.prefix


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_num_regions_is_half_of_the_memory_within_bounds(captioner: RegionCaptioner, device: str) -> None:
    memory = memory_of(captioner, CaptionSettings())
    for number in (MIN_REGIONS, MIN_REGIONS + 1, MAX_REGIONS[device] - 1, MAX_REGIONS[device]):
        assert memory.num_regions((2 * number + 1) * memory.num_bytes, device) == number
    assert memory.num_regions(0, device) == MIN_REGIONS
    assert memory.num_regions(1e15, device) == MAX_REGIONS[device]


def test_choose_batch_size_takes_the_given_number_or_that_of_free_memory(
    captioner: RegionCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = memory_of(captioner, CaptionSettings()).num_bytes
    monkeypatch.setattr("ureca.model.captioner.free_device_bytes", lambda _: 20.1 * each)
    assert captioner.choose_batch_size(CaptionSettings()) == 10
    assert captioner.choose_batch_size(CaptionSettings(), memory_fraction=0.5) == 5
    assert captioner.choose_batch_size(CaptionSettings(batch_size=3)) == 3
    widths: list[int] = []
    hook = captioner.model.lm_head.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[0]))
    monkeypatch.setattr("ureca.model.captioner.free_device_bytes", lambda _: 10.1 * each)
    captioner.caption(IMAGE, MASKS, max_new_tokens=256)
    hook.remove()
    assert max(widths) == 5


def test_free_device_bytes_of_a_gpu_are_free_or_unused_by_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 15)
    assert free_device_bytes("cuda") == 75


def test_memory_of_a_checkpoint_is_that_of_its_loaded_model(
    tmp_path: Path, tiny: tuple[UrecaForConditionalGeneration, UrecaProcessor]
) -> None:
    save_tiny(tmp_path)
    settings = CaptionSettings(max_new_tokens=50)
    model, processor = tiny
    expected = RegionMemory.estimate(model.config, processor, settings, 4)
    assert RegionMemory.of_checkpoint(tmp_path, settings) == expected
    half = RegionMemory.of_checkpoint(tmp_path, settings, "bfloat16")
    assert 2 * half.cache == expected.cache
    assert RegionMemory.of_checkpoint("scenes", settings).num_bytes > 0
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        RegionMemory.of_checkpoint(tmp_path, settings)
