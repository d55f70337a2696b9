"""Both variants of the mask encoder."""

from dataclasses import replace

import pytest
import torch

from ureca.model.configuration import UrecaConfig
from ureca.model.initialization import build_tiny
from ureca.model.mask_encoder import FusedMaskEncoder, MaskEncoder, RegionAppearance, ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.settings import TinySizes


def config_of(**sizes: object) -> UrecaConfig:
    return build_tiny(TinySizes(**sizes))[0].config  # type: ignore[arg-type]


def shown(num_tiles: int, side: int = 56, num_features: int = 4) -> ShownTiles:
    return ShownTiles.one_by_one(torch.randn(num_tiles, num_features, 64), torch.randn(num_tiles, 3, side, side))


@pytest.mark.parametrize("num_tokens", [1, 8, 16, 32])
@pytest.mark.parametrize("side", [28, 56, 84])
def test_forward_gives_mask_tokens_of_the_language_models_width(num_tokens: int, side: int) -> None:
    encoder = MaskEncoder(config_of(num_mask_tokens=num_tokens, image_size=side))
    assert encoder(torch.zeros(3, 1, side, side)).shape == (3, num_tokens, 64)


def test_convolutional_encoder_has_the_layers_of_the_paper() -> None:
    encoder = MaskEncoder(config_of(num_mask_tokens=8))
    tiles = torch.rand(2, 1, 56, 56)
    first, _, second, _ = encoder.convolutions
    channels = torch.conv2d(tiles, first.weight, first.bias, stride=2, padding=1).clamp(min=0)
    channels = torch.conv2d(channels, second.weight, second.bias, stride=2, padding=1).clamp(min=0)
    expected = channels.flatten(2) @ encoder.projection.weight.T + encoder.projection.bias
    assert torch.allclose(encoder(tiles), expected, atol=1e-6)


def test_forward_with_changed_tile_changes_only_its_tokens() -> None:
    encoder = MaskEncoder(config_of())
    tiles = torch.zeros(3, 1, 56, 56)
    before = encoder(tiles)
    tiles[1, 0, 10:20, 10:20] = 1
    changed = (encoder(tiles) - before).abs().amax((1, 2)) > 0
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("variant", ["convolutional", "fused"])
def test_untrained_encoder_distinguishes_masks(variant: str) -> None:
    torch.manual_seed(0)
    encoder = UrecaForConditionalGeneration(config_of(mask_encoder=variant)).model.mask_encoder
    left, right = torch.zeros(2, 1, 1, 56, 56)
    left[..., :28], right[..., 28:] = 1, 1
    image = shown(1)
    tokens = encoder(left, image)
    assert (tokens - encoder(right, image)).norm() > 0.03 * tokens.norm()


@pytest.mark.parametrize("variant", ["convolutional", "fused"])
def test_untrained_mask_tokens_have_the_scale_of_words(variant: str) -> None:
    torch.manual_seed(0)
    model = UrecaForConditionalGeneration(config_of(mask_encoder=variant, image_size=112))
    mask = torch.zeros(1, 1, 112, 112)
    mask[..., 30:70, 40:60] = 1
    tokens = model.model.get_mask_features(mask, shown(1, 112, 16))
    assert tokens.std() > 0.2 * model.get_input_embeddings().weight.std()


def test_fused_encoder_depends_on_the_image() -> None:
    encoder = FusedMaskEncoder(config_of(mask_encoder="fused", num_mask_tokens=8))
    masks, image = torch.rand(2, 1, 56, 56), shown(2)
    tokens = encoder(masks, image)
    assert tokens.shape == (2, 8, 64)
    assert not torch.allclose(tokens, encoder(1 - masks, image))
    assert not torch.allclose(tokens, encoder(masks, replace(image, features=image.features + 1)))
    assert not torch.allclose(tokens, encoder(masks, replace(image, pixels=image.pixels + 1)))
    other_way_round = encoder(masks.flip(0), image.of(torch.tensor([1, 0])))
    assert torch.allclose(tokens, other_way_round.flip(0), atol=1e-6)


def test_region_appearance_separates_a_small_region() -> None:
    torch.manual_seed(0)
    appearance = RegionAppearance(56, 64)
    mask, pixels = torch.zeros(1, 1, 56, 56), torch.randn(1, 3, 56, 56)
    mask[..., 20:22, 30:33] = 1
    far, near, inside = pixels.clone(), pixels.clone(), pixels.clone()
    far[..., :15, :], far[..., 27:, :] = 0, 0
    near[..., 17, 30] = inside[..., 20, 30] = 5
    assert appearance.band_px == 4
    assert torch.equal(appearance(mask, pixels), appearance(mask, far))
    changes = [(appearance(mask, other) - appearance(mask, pixels)).norm() for other in (near, inside)]
    assert 0 < 2 * changes[0] < changes[1]


@pytest.mark.parametrize("num_image_tiles", [None, 3])
def test_fused_encoder_without_image_tiles_raises(num_image_tiles: int | None) -> None:
    encoder = FusedMaskEncoder(config_of(mask_encoder="fused"))
    image = None if num_image_tiles is None else shown(num_image_tiles)
    with pytest.raises(ValueError, match=f"2 mask tiles, {num_image_tiles or 'none'} shown"):
        encoder(torch.zeros(2, 1, 56, 56), image)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("num_mask_tokens", 0, "1 to 32, got 0"), ("num_mask_tokens", 33, "got 33"), ("mask_encoder", "deep", "'deep'")],
)
def test_config_with_impossible_value_raises(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UrecaConfig(**{field: value})


@pytest.mark.parametrize("variant", ["convolutional", "fused"])
def test_get_mask_features_encodes_empty_tiles_once(variant: str) -> None:
    model, _ = build_tiny(TinySizes(mask_encoder=variant))
    tiles = torch.zeros(6, 1, 56, 56)
    tiles[1, 0, 3:9, 3:9] = tiles[4, 0, 20:50, 7:9] = 1
    image = shown(6)
    features = model.model.get_mask_features(tiles, image)
    assert torch.allclose(features, model.model.mask_encoder(tiles, image), atol=1e-6)
    counted: list[int] = []
    model.model.mask_encoder.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    model.model.get_mask_features(tiles, image)
    assert counted == [3]
