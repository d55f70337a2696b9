"""Mask tiles become tokens, in both variants of the encoder."""

import pytest
import torch

from ureca.model import UrecaForConditionalGeneration
from ureca.model.configuration import UrecaConfig
from ureca.model.mask_encoder import FusedMaskEncoder, MaskEncoder
from ureca.model.tiny import TinySizes, build_tiny


def config_of(**sizes: object) -> UrecaConfig:
    return build_tiny(TinySizes(**sizes))[0].config  # type: ignore[arg-type]


@pytest.mark.parametrize("num_tokens", [1, 8, 16, 32])
@pytest.mark.parametrize("side", [28, 56, 84])
def test_every_tile_becomes_so_many_tokens_of_the_language_models_width(num_tokens: int, side: int) -> None:
    encoder = MaskEncoder(config_of(num_mask_tokens=num_tokens, image_size=side))
    assert encoder(torch.zeros(3, 1, side, side)).shape == (3, num_tokens, 64)


def test_the_layers_are_the_papers() -> None:
    encoder = MaskEncoder(config_of(num_mask_tokens=8))
    tiles = torch.rand(2, 1, 56, 56)
    first, _, second, _ = encoder.convolutions
    channels = torch.conv2d(tiles, first.weight, first.bias, stride=2, padding=1).clamp(min=0)
    channels = torch.conv2d(channels, second.weight, second.bias, stride=2, padding=1).clamp(min=0)
    expected = channels.flatten(2) @ encoder.projection.weight.T + encoder.projection.bias
    assert torch.allclose(encoder(tiles), expected, atol=1e-6)


def test_a_tile_only_changes_its_own_tokens() -> None:
    encoder = MaskEncoder(config_of())
    tiles = torch.zeros(3, 1, 56, 56)
    before = encoder(tiles)
    tiles[1, 0, 10:20, 10:20] = 1
    changed = (encoder(tiles) - before).abs().amax((1, 2)) > 0
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("variant", ["convolutional", "fused"])
def test_a_new_encoder_tells_masks_of_the_same_image_apart(variant: str) -> None:
    torch.manual_seed(0)
    encoder = UrecaForConditionalGeneration(config_of(mask_encoder=variant)).model.mask_encoder
    left, right = torch.zeros(2, 1, 1, 56, 56)
    left[..., :28], right[..., 28:] = 1, 1
    image = torch.randn(1, 4, 64)
    tokens = encoder(left, image)
    assert (tokens - encoder(right, image)).norm() > 0.03 * tokens.norm()


@pytest.mark.parametrize("variant", ["convolutional", "fused"])
def test_a_new_models_mask_tokens_weigh_as_much_as_words(variant: str) -> None:
    torch.manual_seed(0)
    model = UrecaForConditionalGeneration(config_of(mask_encoder=variant, image_size=112))
    mask = torch.zeros(1, 1, 112, 112)
    mask[..., 30:70, 40:60] = 1
    tokens = model.model.get_mask_features(mask, torch.zeros(1, 16, 64))
    assert tokens.std() > 0.2 * model.get_input_embeddings().weight.std()


def test_the_fused_encoder_sees_the_image() -> None:
    config = config_of(mask_encoder="fused", num_mask_tokens=8)
    encoder = FusedMaskEncoder(config)
    masks, images = torch.rand(2, 1, 56, 56), torch.rand(2, config.image_seq_length, 64)
    tokens = encoder(masks, images)
    assert tokens.shape == (2, 8, 64)
    assert not torch.allclose(tokens, encoder(masks, images + 1))
    assert not torch.allclose(tokens, encoder(1 - masks, images))


@pytest.mark.parametrize("num_image_tiles", [None, 3])
def test_the_fused_encoder_needs_the_image_features_of_its_tiles(num_image_tiles: int | None) -> None:
    encoder = FusedMaskEncoder(config_of(mask_encoder="fused"))
    images = None if num_image_tiles is None else torch.zeros(num_image_tiles, 4, 64)
    with pytest.raises(ValueError, match=f"2 mask tiles, image features of {num_image_tiles or 'none'}"):
        encoder(torch.zeros(2, 1, 56, 56), images)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("num_mask_tokens", 0, "1 to 32, got 0"), ("num_mask_tokens", 33, "got 33"), ("mask_encoder", "deep", "'deep'")],
)
def test_impossible_settings_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UrecaConfig(**{field: value})


@pytest.mark.parametrize("variant", ["convolutional", "fused"])
def test_empty_tiles_are_encoded_once(variant: str) -> None:
    model, _ = build_tiny(TinySizes(mask_encoder=variant))
    tiles = torch.zeros(6, 1, 56, 56)
    tiles[1, 0, 3:9, 3:9] = tiles[4, 0, 20:50, 7:9] = 1
    image_features = torch.rand(6, 4, 64)
    features = model.model.get_mask_features(tiles, image_features)
    assert torch.allclose(features, model.model.mask_encoder(tiles, image_features), atol=1e-6)
    counted: list[int] = []
    model.model.mask_encoder.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    model.model.get_mask_features(tiles, image_features)
    assert counted == [3]
