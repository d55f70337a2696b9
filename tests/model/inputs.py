"""Images, masks and prompts for the tests of the model."""

import numpy as np
import numpy.typing as npt
import torch

from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor, region_conversation

Tiny = tuple[UrecaForConditionalGeneration, UrecaProcessor]


def noise_image(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def box_masks(height: int, width: int, number: int, seed: int = 0) -> list[npt.NDArray[np.bool_]]:
    """Rectangles of at least a quarter of each side."""
    random = np.random.default_rng(seed)
    masks = []
    for _ in range(number):
        mask = np.zeros((height, width), dtype=np.bool_)
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        mask[top : top + height // 4 + random.integers(height // 4), left : left + width // 4] = True
        masks.append(mask)
    return masks


def region_prompt(processor: UrecaProcessor) -> str:
    prompt = processor.apply_chat_template(region_conversation(), add_generation_prompt=True)
    assert isinstance(prompt, str)
    return prompt


def region_inputs(
    processor: UrecaProcessor, images: list[npt.NDArray[np.uint8]], masks: list[npt.NDArray[np.bool_]]
) -> dict[str, torch.Tensor]:
    """Inputs for one prompt a mask, each with its own image."""
    prompts = [region_prompt(processor)] * len(masks)
    return dict(processor(images=images, text=prompts, masks=masks, return_tensors="pt", padding=True))


def generate(
    model: UrecaForConditionalGeneration, inputs: dict[str, torch.Tensor], **settings: object
) -> list[list[int]]:
    """New tokens of each prompt, padding and end token removed."""
    settings = {"max_new_tokens": 12, "do_sample": False} | settings
    tokens = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    end = model.generation_config.eos_token_id
    end = {*(end if isinstance(end, list) else [end]), model.generation_config.pad_token_id}
    return [[token for token in row if token not in end] for row in tokens.tolist()]
