"""Checkpoints for the tests of the vLLM plugin, and the token ids that transformers generates with them.

Run by the environment of the library, since vLLM's has a transformers that the model does not run on::

    python -m tests.vllm.reference FOLDER VARIANT ... scenes
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_NEW_TOKENS = 24
NUM_MASKS = 6
IMAGE_SIZES = ((96, 96), (80, 200), (220, 90), (150, 160))
"""Height and width of images; with 56 px tiles and at most 6 of them they are cut into different numbers of tiles."""

QUESTION = "Describe this region in the image."

NUM_SCENES = 3
"""Number of rendered scenes whose regions the shipped checkpoint captions."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Variant:
    """A kind of checkpoint.

    Attributes:
        sizes: changes of `ureca.model.settings.TinySizes`.
        processor: attributes of the processor.
        with_adapter: random LoRA factors are put on the language model, and saved apart.
    """

    sizes: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    with_adapter: bool = False


VARIANTS = {
    "convolutional": Variant(),
    "fused": Variant({"mask_encoder": "fused"}),
    "one_mask_tile": Variant(processor={"dynamic_mask": False}),
    "fused_one_mask_tile": Variant({"mask_encoder": "fused"}, {"dynamic_mask": False}),
    "released_values": Variant(processor={"mask_values": "released"}),
    "hybrid": Variant({"vision_encoder": "hybrid", "mask_encoder": "pooled", "patch_size": 8, "merged_patches": 1}),
    "adapter": Variant(with_adapter=True),
}


def draw_inputs(seed: int = 5) -> list[tuple[npt.NDArray[np.uint8], list[Mask]]]:
    """Draw images, uint8 RGB [H, W, 3], with masks of many sizes, the last of a few pixels."""
    generator = np.random.default_rng(seed)
    inputs = []
    for height, width in IMAGE_SIZES:
        squares = generator.integers(0, 256, (-(-height // 10), -(-width // 10), 3))
        image = np.kron(squares, np.ones((10, 10, 1)))[:height, :width]
        y, x = np.mgrid[:height, :width]
        masks = []
        for index in range(NUM_MASKS):
            center = generator.uniform(0.1, 0.9, 2) * (height, width)
            radii = generator.uniform(0.05, 0.4, 2) * (height, width) if index < NUM_MASKS - 1 else (2.0, 2.0)
            masks.append(((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1)
        inputs.append((image.astype(np.uint8), masks))
    return inputs


def write(folder: Path, names: Sequence[str]) -> None:
    """Write the checkpoint of each named variant, and ``reference.json`` with the token ids of its captions."""
    import torch

    from ureca.model.initialization import build_tiny
    from ureca.model.settings import TinySizes

    torch.set_num_threads(1)
    for name in names:
        variant = VARIANTS[name]
        model, processor = build_tiny(TinySizes(num_mask_tokens=8, vocab_size=512, **variant.sizes), seed=3)
        for attribute, value in variant.processor.items():
            setattr(processor, attribute, value)
        with torch.no_grad():  # so that captions of an image differ by their masks
            scale = 6 / (255 if processor.mask_values == "released" else 1)
            scale = 100.0 if model.config.mask_encoder == "pooled" else scale
            model.model.mask_encoder.projection.weight.mul_(scale)
        checkpoint = folder / name
        model.save_pretrained(checkpoint)
        processor.save_pretrained(checkpoint)
        if variant.with_adapter:
            _add_adapter(model, folder / f"{name}_lora", checkpoint)
        reference = {
            "regions": [
                [generate(model, processor, image, [mask]) for mask in masks] for image, masks in draw_inputs()
            ],
            "whole": [
                generate(model, processor, image, [np.ones(image.shape[:2], np.bool_)]) for image, _ in draw_inputs()
            ],
            "pairs": [generate(model, processor, image, masks[:2]) for image, masks in draw_inputs()],
        }
        (checkpoint / "reference.json").write_text(json.dumps(reference), encoding="utf-8")


def write_scenes(folder: Path) -> None:
    """Write scenes with their masks and the token ids of the shipped checkpoint's captions: ``scenes.npz``."""
    from ureca.masks.rle import decode
    from ureca.model.checkpoints import load_checkpoint
    from ureca.scenes.rendering import render

    model, processor = load_checkpoint("scenes")
    arrays: dict[str, Any] = {}
    for number in range(NUM_SCENES):
        rendering = render("test", 1, number, 112, 112)
        masks = [decode(rendering.annotations[region.id].rle) for region in rendering.scene.regions]
        arrays[f"image_{number}"] = rendering.pixels
        arrays[f"masks_{number}"] = np.stack(masks)
        captions = [generate(model, processor, rendering.pixels, [mask]) for mask in masks]
        arrays[f"captions_{number}"] = np.array(json.dumps(captions))
    np.savez(folder / "scenes.npz", **arrays)


def generate(model: Any, processor: Any, image: npt.NDArray[np.uint8], masks: Sequence[Mask]) -> list[int]:
    """Generate greedily with transformers, and return the new tokens without the end token."""
    import torch

    inputs = processor(images=[image], text=[prompt_of(processor, len(masks))], masks=list(masks), return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=NUM_NEW_TOKENS, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    end = processor.tokenizer.eos_token_id
    return new[: new.index(end)] if end in new else new


def prompt_of(processor: Any, num_masks: int) -> str:
    """Render the prompt about some regions of one image."""
    masks = [{"type": "mask"}] * num_masks
    content = [{"type": "image"}, *masks, {"type": "text", "text": QUESTION}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def _add_adapter(model: Any, folder: Path, checkpoint: Path) -> None:
    """Put random LoRA factors on the language model, as after training, and save them."""
    import torch

    from ureca.model.checkpoints import save_adapter
    from ureca.model.lora import add_adapter

    add_adapter(model, rank=4, alpha=8, dropout=0.0)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(0, 0.3, generator=generator)
    save_adapter(model, folder, base=str(checkpoint))


if __name__ == "__main__":
    write(Path(sys.argv[1]), [name for name in sys.argv[2:] if name in VARIANTS])
    if "scenes" in sys.argv[2:]:
        write_scenes(Path(sys.argv[1]))
