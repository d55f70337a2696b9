"""The processor: prompts, images and masks to inputs of the model, and its errors."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.model.inputs import box_masks, noise_image, region_inputs, region_prompt
from ureca.model.image_processing import num_tiles, tile_image, tile_mask, tile_mask_as_released
from ureca.model.initialization import build_tiny, build_tokenizer
from ureca.model.processing import SYSTEM_MESSAGE, UrecaProcessor, region_conversation


@pytest.fixture(scope="module")
def processor() -> UrecaProcessor:
    return build_tiny()[1]


def rebuild(processor: UrecaProcessor, **settings: object) -> UrecaProcessor:
    return UrecaProcessor(
        processor.image_processor, processor.tokenizer, num_mask_tokens=4, image_seq_length=4, **settings
    )


def test_chat_template_gives_the_released_prompt(processor: UrecaProcessor) -> None:
    assert region_prompt(processor) == (
        f"<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\n<MASK_CONTEXT>\n"
        "Describe this region in the image.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_template_with_answer_ends_with_it(processor: UrecaProcessor) -> None:
    text = processor.apply_chat_template(region_conversation("What?", answer="A cat."))
    assert text.endswith("What?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n")


def test_chat_template_with_system_message_keeps_it(processor: UrecaProcessor) -> None:
    text = processor.apply_chat_template([{"role": "system", "content": "Be brief."}, *region_conversation()])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert SYSTEM_MESSAGE not in text


def test_processor_expands_placeholders_to_features(processor: UrecaProcessor) -> None:
    inputs = region_inputs(processor, [noise_image(60, 110)], box_masks(60, 110, 1))
    tiles = num_tiles(60, 110, size=56, max_tiles=6)
    assert tiles == 3
    text = processor.decode(inputs["input_ids"][0])
    assert f"<img>{'<IMG_CONTEXT>' * 4 * tiles}</img>\n<mask>{'<MASK_CONTEXT>' * 4 * tiles}</mask>\n" in text
    assert inputs["pixel_values"].shape == (tiles, 3, 56, 56)
    assert inputs["mask_values"].shape == (tiles, 1, 56, 56)


def test_processor_normalises_with_imagenet_statistics(processor: UrecaProcessor) -> None:
    image = noise_image(60, 110)
    pixels = region_inputs(processor, [image], box_masks(60, 110, 1))["pixel_values"]
    red = (tile_image(image, size=56, max_tiles=6)[..., 0] / 255 - 0.485) / 0.229
    assert np.allclose(pixels[:, 0], red, atol=1e-5)


def test_processor_with_array_equals_pil_image(processor: UrecaProcessor) -> None:
    image, masks = noise_image(60, 110), box_masks(60, 110, 1)
    array = region_inputs(processor, [image], masks)
    picture = region_inputs(processor, [Image.fromarray(image)], masks)
    assert all(torch.equal(array[name], picture[name]) for name in array)


def test_apply_chat_template_with_masks_tokenizes_them(processor: UrecaProcessor) -> None:
    image, mask = Image.fromarray(noise_image(60, 110)), box_masks(60, 110, 1)[0]
    content = [{"type": "image", "image": image}, *region_conversation()[0]["content"][1:]]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"masks": [mask]},
    )
    expected = region_inputs(processor, [np.asarray(image)], [mask])
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_processor_mask_values_are_binary_or_released(processor: UrecaProcessor) -> None:
    mask = box_masks(60, 110, 1)[0]
    binary, released = processor.tile_mask(mask, 6), rebuild(processor, mask_values="released").tile_mask(mask, 6)
    assert np.array_equal(binary[:, 0], tile_mask(mask, size=56, max_tiles=6))
    assert np.array_equal(released[:, 0], tile_mask_as_released(mask, size=56, max_tiles=6))
    with pytest.raises(ValueError, match="'binary' or 'released', got 'grey'"):
        rebuild(processor, mask_values="grey")


def test_processor_without_dynamic_mask_gives_one_tile(processor: UrecaProcessor) -> None:
    one_tile = rebuild(processor, dynamic_mask=False)
    inputs = region_inputs(one_tile, [noise_image(60, 110)], box_masks(60, 110, 1))
    assert inputs["mask_values"].shape == (1, 1, 56, 56)
    assert inputs["pixel_values"].shape == (3, 3, 56, 56)
    assert int((inputs["input_ids"] == one_tile.mask_token_id).sum()) == 4


def test_processor_with_max_tiles_overrides_the_default(processor: UrecaProcessor) -> None:
    prompt, mask = region_prompt(processor), box_masks(60, 110, 1)
    inputs = processor(images=noise_image(60, 110), text=prompt, masks=mask, max_tiles=1, return_tensors="pt")
    assert inputs["pixel_values"].shape[0] == inputs["mask_values"].shape[0] == 1
    with pytest.raises(ValueError, match="max_tiles=0"):
        processor(images=noise_image(60, 110), text=prompt, masks=mask, max_tiles=0)


def test_from_pretrained_restores_all_settings(processor: UrecaProcessor, tmp_path) -> None:
    saved = rebuild(processor, dynamic_mask=False, mask_values="released")
    saved.save_pretrained(tmp_path)
    loaded = UrecaProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == saved.to_dict()
    assert loaded.chat_template == saved.chat_template
    image, masks = [noise_image(60, 110)], box_masks(60, 110, 1)
    before, after = region_inputs(saved, image, masks), region_inputs(loaded, image, masks)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("num_masks", [0, 2])
def test_processor_with_wrong_number_of_masks_raises(processor: UrecaProcessor, num_masks: int) -> None:
    with pytest.raises(ValueError, match=rf"hold 1 <MASK_CONTEXT> placeholders, but {num_masks} masks"):
        processor(images=noise_image(60, 60), text=region_prompt(processor), masks=box_masks(60, 60, num_masks))


def test_processor_with_wrong_number_of_images_raises(processor: UrecaProcessor) -> None:
    with pytest.raises(ValueError, match=r"1 <IMG_CONTEXT> tokens and 2 images"):
        processor(images=[noise_image(9, 9)] * 2, text=region_prompt(processor), masks=box_masks(9, 9, 1))
    with pytest.raises(ValueError, match="no images were passed"):
        processor(text=region_prompt(processor), masks=box_masks(9, 9, 1))


def test_processor_with_mask_of_another_size_raises(processor: UrecaProcessor) -> None:
    prompts = [region_prompt(processor)] * 2
    images = [noise_image(60, 60), noise_image(40, 50)]
    masks = [*box_masks(60, 60, 1), *box_masks(50, 40, 1)]
    with pytest.raises(ValueError, match=re.escape("mask 1 is [50, 40] (height, width), its image [40, 50]")):
        processor(images=images, text=prompts, masks=masks)


def test_processor_with_tokenizer_without_mask_tokens_raises(processor: UrecaProcessor) -> None:
    tokenizer = build_tokenizer()
    tokenizer.get_vocab = lambda: {"<img>": 1, "<IMG_CONTEXT>": 2, "</img>": 3, "<mask>": 4}
    with pytest.raises(ValueError, match="does not know <MASK_CONTEXT>, </mask>"):
        UrecaProcessor(processor.image_processor, tokenizer)
