"""Features replace their placeholders, or an error is raised."""

import pytest
import torch

from ureca.model.modeling import fill_placeholders, image_tile_of_mask_tile, tiles_per_prompt

IMAGE, MASK, TEXT = 5, 7, 1


def tiles_of(prompts: list[list[int]]) -> list[int]:
    """With two tokens an image tile and one token a mask tile."""
    indices = image_tile_of_mask_tile(
        torch.tensor(prompts), image_token_id=IMAGE, mask_token_id=MASK, image_seq_length=2, num_mask_tokens=1
    )
    return [int(index) for index in indices]


def test_fill_placeholders_keeps_the_order() -> None:
    ids = torch.tensor([[TEXT, MASK, MASK], [MASK, MASK, TEXT]])
    features = torch.arange(1.0, 9.0).view(2, 2, 2)
    filled = fill_placeholders(torch.zeros(2, 3, 2), ids, MASK, features, "mask")
    assert filled.tolist() == [[[0, 0], [1, 2], [3, 4]], [[5, 6], [7, 8], [0, 0]]]


@pytest.mark.parametrize("num_tiles", [1, 3])
def test_fill_placeholders_with_wrong_count_raises_both_counts(num_tiles: int) -> None:
    ids = torch.tensor([[MASK, MASK, MASK, MASK]])
    with pytest.raises(ValueError, match=rf"4 mask placeholders .* the {num_tiles} mask tiles give {2 * num_tiles}"):
        fill_placeholders(torch.zeros(1, 4, 2), ids, MASK, torch.zeros(num_tiles, 2, 2), "mask")


def test_fill_placeholders_without_token_ids_raises() -> None:
    with pytest.raises(ValueError, match="need input_ids"):
        fill_placeholders(torch.zeros(1, 4, 2), None, MASK, torch.zeros(2, 2, 2), "mask")


def test_tiles_per_prompt_counts_each_prompt() -> None:
    assert tiles_per_prompt(torch.tensor([[MASK] * 4, [TEXT, TEXT, MASK, MASK]]), MASK, 2) == [2, 1]


def test_image_tile_of_mask_tile_uses_the_image_before() -> None:
    one_image = [IMAGE] * 4 + [TEXT, MASK, MASK, TEXT, MASK, MASK]
    two_images = [IMAGE] * 2 + [TEXT, MASK, TEXT] + [IMAGE] * 2 + [TEXT, MASK, TEXT]
    assert tiles_of([one_image]) == [0, 1, 0, 1]
    assert tiles_of([one_image, two_images]) == [0, 1, 0, 1, 2, 3]


def test_image_tile_of_mask_tile_with_one_tile_is_the_thumbnail() -> None:
    prompt = [IMAGE] * 6 + [TEXT, MASK, TEXT, MASK, MASK, MASK, TEXT, MASK]
    assert tiles_of([prompt]) == [2, 0, 1, 2, 2]


@pytest.mark.parametrize("prompt", [[MASK, TEXT, IMAGE, IMAGE], [IMAGE, IMAGE, TEXT, MASK, MASK]])
def test_image_tile_of_mask_tile_with_another_count_raises(prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="or one for each tile of the image before it"):
        tiles_of([prompt])
