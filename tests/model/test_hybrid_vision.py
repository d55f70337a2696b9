"""The hybrid vision encoder and the mask encoder that pools its maps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from ureca.errors import SettingsError
from ureca.model.captioner import RegionCaptioner
from ureca.model.checkpoints import save_with_code
from ureca.model.configuration import UrecaConfig
from ureca.model.hybrid_vision import HybridVisionConfig, HybridVisionModel
from ureca.model.initialization import build_scratch, build_tiny
from ureca.model.mask_encoder import ShownTiles
from ureca.model.pooled_mask_encoder import LookAlikes, PooledMaskEncoder
from ureca.model.settings import ScratchSizes, TinySizes

SIZES = TinySizes(
    image_size=56, patch_size=8, merged_patches=1, vision_encoder="hybrid", mask_encoder="pooled", num_mask_tokens=2
)


def maps(num_tiles: int, width: int = 64) -> tuple[torch.Tensor, ...]:
    model = HybridVisionModel(HybridVisionConfig(num_hidden_layers=1, hidden_size=width)).eval()
    with torch.no_grad():
        return tuple(model(torch.randn(num_tiles, 3, 56, 56)).hidden_states)


def test_encoder_gives_maps_at_four_strides_and_a_token_for_each_patch() -> None:
    model = HybridVisionModel(HybridVisionConfig(num_hidden_layers=2)).eval()
    outputs = model(torch.randn(3, 3, 56, 56))
    assert [tuple(values.shape[1:]) for values in outputs.hidden_states] == [
        (16, 56, 56),
        (40, 28, 28),
        (80, 14, 14),
        (128, 7, 7),
    ]
    assert outputs.last_hidden_state.shape == (3, 1 + 49, 128)
    assert torch.equal(
        outputs.last_hidden_state[:, 1:].transpose(1, 2), outputs.hidden_states[3].flatten(2)
    )  # tokens are the coarsest map, row by row


def test_encoder_of_a_tile_does_not_depend_on_the_others() -> None:
    model = HybridVisionModel(HybridVisionConfig(num_hidden_layers=1)).eval()
    tiles = torch.randn(2, 3, 56, 56)
    alone = model(tiles[1:]).last_hidden_state
    assert torch.allclose(model(tiles).last_hidden_state[1:], alone, atol=1e-5)


def test_configuration_with_an_impossible_size_is_refused() -> None:
    with pytest.raises(Exception, match="multiples of 8"):
        HybridVisionConfig(image_size=(50, 56))
    with pytest.raises(SettingsError, match="patches of 8 pixels"):
        TinySizes(vision_encoder="hybrid")
    with pytest.raises(Exception, match="needs a hybrid vision encoder"):
        UrecaConfig(mask_encoder="pooled")


def test_checkpoint_keeps_its_vision_encoder(tmp_path: Path) -> None:
    model, processor = build_tiny(SIZES)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    captioner = RegionCaptioner.from_pretrained(tmp_path, device="cpu")
    assert isinstance(captioner.model.model.vision_tower, HybridVisionModel)
    assert isinstance(captioner.model.model.mask_encoder, PooledMaskEncoder)
    pixels = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    masks = np.zeros((2, 112, 112), np.bool_)
    masks[0, 20:24, 60:66], masks[1, :50] = True, True
    expected = RegionCaptioner(model, processor).caption(pixels, masks, max_new_tokens=8)
    assert captioner.caption(pixels, masks, max_new_tokens=8) == expected


def test_checkpoint_of_internvl_keeps_internvit(tmp_path: Path) -> None:
    model, _ = build_tiny()
    model.config.save_pretrained(tmp_path)
    assert type(UrecaConfig.from_pretrained(tmp_path).vision_config).__name__ == "InternVLVisionConfig"


def test_checkpoint_with_code_includes_the_vision_encoder(tmp_path: Path) -> None:
    model, processor = build_tiny(SIZES)
    save_with_code(model, processor, tmp_path)
    assert (tmp_path / "hybrid_vision.py").exists()
    assert (tmp_path / "pooled_mask_encoder.py").exists()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.num_parameters() == model.num_parameters()


def test_untrained_model_distinguishes_masks_of_a_few_pixels() -> None:
    model, _ = build_scratch(["the red house"], replace(_scratch(), num_mask_tokens=1))
    encoder = model.model.mask_encoder
    masks = torch.zeros(2, 1, 56, 56)
    masks[0, 0, 10:12, 10:12], masks[1, 0, 40:42, 30:32] = 1, 1
    shown = ShownTiles(torch.zeros(1, 49, 64), torch.zeros(1, 3, 56, 56), torch.zeros(2, dtype=torch.long), maps(1))
    with torch.no_grad():
        tokens = encoder(masks, shown)
    assert (tokens[0] - tokens[1]).norm() > 0.1 * tokens.norm()


def test_mask_encoder_without_maps_raises() -> None:
    encoder = build_tiny(SIZES)[0].model.mask_encoder
    with pytest.raises(ValueError, match="maps"):
        encoder(torch.ones(1, 1, 56, 56), ShownTiles.one_by_one(torch.zeros(1, 49, 64), torch.zeros(1, 3, 56, 56)))


def test_tokens_do_not_depend_on_the_order_of_mask_tiles() -> None:
    encoder = build_tiny(SIZES)[0].model.mask_encoder
    masks = (torch.rand(5, 1, 56, 56) > 0.7).float()
    tiles, order = torch.tensor([2, 0, 1, 2, 0]), torch.tensor([3, 1, 4, 0, 2])
    shown = ShownTiles(torch.zeros(3, 49, 64), torch.zeros(3, 3, 56, 56), tiles, maps(3))
    with torch.no_grad():
        expected, shuffled = encoder(masks, shown), encoder(masks[order], shown.of(order))
    assert torch.allclose(shuffled, expected[order], atol=1e-5)


HOUSES_AND_TREE = ((1, (4, 8), (2, 6)), (1, (4, 8), (12, 16)), (1, (6, 10), (20, 24)), (2, (20, 26), (4, 6)))
"""Kind, rows and columns of cells: three houses in a row, and a tree."""


def told_by_cells(error: float) -> tuple[LookAlikes, tuple[torch.Tensor, ...]]:
    """A layer, and maps by which its cells tell of the houses and the tree, with errors in the centres."""
    width = 2 * (3 + 3)
    layer = LookAlikes((1, width, 1, 1), (3,), width, 56)
    with torch.no_grad():
        for linear in layer.inputs:
            linear.weight.zero_()
        layer.inputs[1].weight.copy_(torch.eye(width))
        layer.outputs.weight.copy_(torch.cat([torch.eye(6), -torch.eye(6)], dim=1))  # of both signs in spite of ReLU
    kinds, centres, areas = torch.zeros(28, 28, dtype=torch.long), torch.zeros(28, 28, 2), torch.zeros(28, 28)
    areas += 28 * 28 - 60
    centres += 0.5
    for kind, rows, columns in HOUSES_AND_TREE:
        kinds[slice(*rows), slice(*columns)] = kind
        centres[slice(*rows), slice(*columns)] = torch.tensor([sum(columns), sum(rows)]) / 56
        areas[slice(*rows), slice(*columns)] = (rows[1] - rows[0]) * (columns[1] - columns[0])
    steps = (torch.arange(28) + 0.5) / 28
    places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    noise = error * torch.randn(28, 28, 2, generator=torch.Generator().manual_seed(0))
    kind_logits = 12.0 * torch.nn.functional.one_hot(kinds, 3)
    logits = torch.cat([kind_logits, centres - places + noise, areas.log()[..., None]], dim=-1)
    cells = torch.cat([logits.relu(), (-logits).relu()], dim=-1).permute(2, 0, 1)[None]
    return layer, (torch.zeros(1, 1, 56, 56), cells, torch.zeros(1, 1, 14, 14), torch.zeros(1, 1, 7, 7))


@pytest.mark.parametrize("error", [0, 0.02], ids=["exact", "centres_wrong_by_a_pixel"])
def test_look_alikes_counts_things_on_each_side(error: float) -> None:
    """The middle house has one house on either side, also if its cells disagree a little on where the centres are."""
    layer, maps = told_by_cells(error)
    with torch.no_grad():
        (things,) = layer.describe(maps).by_tile()
        coverage = torch.zeros(2, 28, 28)
        coverage[0, 5, 13], coverage[1, 22, 5] = 1, 1  # a window of the middle house, and a leaf
        _, counts = layer(coverage.flatten(1), things)
    total, left, right, above, below = counts[0, 0].round().tolist()
    assert (total, left, right, above, below) == (3, 1, 1, 0, 1)
    assert counts[1, 0].round().tolist() == [1, 0, 0, 0, 0]


def test_look_alikes_never_counts_a_thing_beside_itself() -> None:
    layer, maps = told_by_cells(0)
    with torch.no_grad():
        (things,) = layer.describe(maps).by_tile()
        coverage = torch.zeros(2, 28, 28)
        coverage[0, 20, 4], coverage[1, 25, 5] = 1, 1  # the tree's first cell and its last one
        _, counts = layer(coverage.flatten(1), things)
    assert torch.allclose(counts[:, 0], torch.tensor([1.0, 0, 0, 0, 0]), atol=0.05)


def test_look_alikes_of_an_absent_region_are_none() -> None:
    layer, maps = told_by_cells(0)
    with torch.no_grad():
        (things,) = layer.describe(maps).by_tile()
        _, counts = layer(torch.zeros(1, 784), things)
    assert counts.abs().max() < 1e-3


def _scratch() -> ScratchSizes:
    return ScratchSizes(
        image_size=56,
        patch_size=8,
        merged_patches=1,
        vision_width=64,
        vision_layers=1,
        layers=1,
        width=64,
        mlp_width=128,
        mask_encoder="pooled",
        vision_encoder="hybrid",
    )


def test_build_tiny_hybrid_weights_follow_the_seed_alone() -> None:
    first, again, other = (build_tiny(SIZES, seed=seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(values, again[name]) for name, values in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
