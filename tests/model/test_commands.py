"""`ureca init-tiny`, and the benchmark of captioning."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.caption import main as benchmark
from tests.model.inputs import noise_image
from ureca.errors import SettingsError
from ureca.jobs.init_tiny import main as init_tiny
from ureca.model.captioner import RegionCaptioner
from ureca.model.checkpoints import load_checkpoint
from ureca.model.initialization import build_tiny
from ureca.model.settings import TinySizes


def test_init_tiny_checkpoint_captions_depend_on_the_input(tmp_path: Path) -> None:
    assert init_tiny([str(tmp_path)]) == 0
    captioner = RegionCaptioner.from_pretrained(tmp_path, device="cpu")
    masks = np.zeros((3, 60, 110), dtype=np.bool_)
    for index in range(3):
        masks[index, :, 30 * index : 30 * index + 30] = True
    captions = captioner.caption(noise_image(60, 110), masks, max_new_tokens=20)
    assert len(set(captions)) == 3
    assert captioner.caption(noise_image(60, 110, seed=1), masks, max_new_tokens=20) != captions


def test_init_tiny_with_flags_sets_seed_and_sizes(tmp_path: Path) -> None:
    flags = [
        "--seed",
        "5",
        "--sizes.layers",
        "1",
        "--sizes.num-mask-tokens",
        "7",
        "--sizes.mask-encoder",
        "fused",
        "--sizes.max-tiles",
        "3",
    ]
    assert init_tiny([str(tmp_path), *flags]) == 0
    model, processor = load_checkpoint(tmp_path)
    expected, _ = build_tiny(TinySizes(layers=1, num_mask_tokens=7, mask_encoder="fused", max_tiles=3), seed=5)
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in expected.state_dict().items())
    assert processor.image_processor.max_tiles == 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 60}, "image_size must be a multiple of 28, got 60"),
        ({"width": 50, "heads": 4}, "width must be a multiple of 8, got 50"),
        ({"heads": 4, "key_value_heads": 3}, "heads must be a multiple of 3, got 4"),
        ({"vocab_size": 100}, "at least 480, the tokenizer's size"),
        ({"num_mask_tokens": 40}, "1 to 32, got 40"),
    ],
)
def test_init_tiny_with_impossible_sizes_fails(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build_tiny(TinySizes(**sizes))


def test_bench_caption_compares_three_ways_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--regions", "3", "--new-tokens", "16", "--image-tokens", "208", "--baseline-regions", "2"]
    flags += ["--batching-images", "0"]
    assert benchmark([*flags, "--json", str(tmp_path / "result.json")]) == 0
    printed = capsys.readouterr().out
    assert "208 image tokens, 13 mask tokens a region, 3 regions" in printed
    assert "captions equal to one call a region: 2 of 2" in printed
    shared, single, batch = json.loads((tmp_path / "result.json").read_text())
    assert [row["way"] for row in (shared, single, batch)] == ["shared prefix", "one call a region", "plain batch"]
    assert [(len(row["captions"]), row["scale"]) for row in (shared, single, batch)] == [(3, 1), (2, 1.5), (2, 1.5)]
    assert shared["captions"][:2] == single["captions"] == batch["captions"]
    assert all(value > 0 for row in (shared, single, batch) for value in row["cost"].values())
