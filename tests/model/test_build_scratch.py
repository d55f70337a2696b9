"""Untrained models: they learn, and are saved like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ureca.errors import SettingsError
from ureca.jobs.init_scratch import main
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_scratch
from ureca.model.settings import ScratchSizes
from ureca.scenes.files import write_scenes
from ureca.training.loss import PackedLoss
from ureca.training.packing import ImageExample, Packer, RegionExample

SMALL = ScratchSizes(image_size=56, vision_width=32, width=32, mlp_width=64, num_mask_tokens=2)
CAPTIONS = ["The red knob of the yellow door.", "The yellow door.", "The leftmost blue car."]


def test_build_scratch_tokenizer_has_words_of_the_corpus() -> None:
    _, processor = build_scratch(CAPTIONS, SMALL)
    assert len(processor.tokenizer("The red knob of the yellow door.").input_ids) <= 9
    assert processor.tokenizer.decode(processor.tokenizer("A zebra!").input_ids) == "A zebra!"


def test_build_scratch_prompts_contain_only_image_and_mask() -> None:
    _, processor = build_scratch(CAPTIONS, SMALL)
    beginning, end = processor.split_prompt("Describe this region in the image.")
    assert (beginning, end) == ("<IMG_CONTEXT>", "<|im_start|>")


def test_build_scratch_model_learns_to_tell_regions_apart() -> None:
    model, processor = build_scratch(CAPTIONS, SMALL)
    pixels = np.random.default_rng(0).integers(0, 256, (56, 112, 3), dtype=np.uint8)
    masks = np.zeros((3, 56, 112), np.bool_)
    masks[0, :20, :20] = masks[1, 30:, 30:60] = masks[2, 10:30, 80:] = True
    regions = tuple(RegionExample(mask, "", caption) for mask, caption in zip(masks, CAPTIONS, strict=True))
    batch = Packer(processor).pack([ImageExample(pixels, regions)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        (PackedLoss(model)(batch) / batch.num_answer_tokens).backward()
        optimizer.step()
    assert RegionCaptioner(model, processor).caption(pixels, list(masks), max_new_tokens=20) == CAPTIONS


def test_build_scratch_position_embeddings_differ() -> None:
    model, _ = build_scratch(CAPTIONS, SMALL)
    positions = model.model.vision_tower.embeddings.position_embeddings[0, 1:]
    apart = torch.cdist(positions, positions) + 9 * torch.eye(len(positions))
    assert apart.min() > 0.5
    assert apart[5].argmin() in (1, 4, 6, 9)  # of 4 x 4 places, those beside, above and below the sixth


def test_build_scratch_with_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (build_scratch(CAPTIONS, SMALL, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_build_scratch_with_too_small_vocabulary_raises() -> None:
    with pytest.raises(SettingsError, match="vocab_size must be at least 26"):
        build_scratch(CAPTIONS, ScratchSizes(vocab_size=100))


def test_init_scratch_command_writes_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "scenes", 1, split="train", seed=0, width_px=112, height_px=112)
    sizes = ["--sizes.width", "32", "--sizes.mlp-width", "64", "--sizes.num-mask-tokens", "4"]
    command = [str(tmp_path / "model"), "--captions", str(tmp_path / "scenes"), "--region-prompt", "mask"]
    assert main([*command, "--one-mask-tile", *sizes]) == 0
    assert "an untrained checkpoint of" in capsys.readouterr().out
    captioner = RegionCaptioner.from_pretrained(tmp_path / "model")
    assert captioner.processor.dynamic_mask is False
    assert captioner.model.config.num_mask_tokens == 4
    mask = np.ones((112, 112), np.bool_)
    assert len(captioner.caption(np.zeros((112, 112, 3), np.uint8), [mask], max_new_tokens=3)) == 1
