"""Packed rows have the losses and gradients of separate prompts."""

import dataclasses

import numpy as np
import pytest
import torch

from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_tiny
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.prepared import region_view
from ureca.model.processing import UrecaProcessor, region_conversation
from ureca.model.prompt import REGION_PROMPTS
from ureca.model.settings import TinySizes
from ureca.training.loss import PackedLoss
from ureca.training.packing import IGNORED, ImageExample, Packer, RegionExample

Built = tuple[UrecaForConditionalGeneration, UrecaProcessor]


def make_examples(seed: int = 0) -> list[ImageExample]:
    """Two images of different grids, with three and two regions whose questions and answers differ in length."""
    rng = np.random.default_rng(seed)
    examples = []
    for height, width, count in ((70, 120, 3), (90, 60, 2)):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        regions = []
        for number in range(count):
            mask = np.zeros((height, width), np.bool_)
            top, left = rng.integers(0, height - 20), rng.integers(0, width - 20)
            mask[top : top + 5 + 5 * number, left : left + 12] = True
            question = "Describe this region in the image." if number else "What is here?"
            regions.append(RegionExample(mask, question, "A red car" + " and a blue car" * number + "."))
        examples.append(ImageExample(pixels, tuple(regions)))
    return examples


def separate_loss(
    model: UrecaForConditionalGeneration, processor: UrecaProcessor, example: ImageExample
) -> list[torch.Tensor]:
    """Compute the loss of each region by transformers: one prompt with its answer, summed over the answer's tokens."""
    losses = []
    with_mask = processor.region_prompt == "mask"
    for region in example.regions:
        asked = processor.apply_chat_template(
            region_conversation(region.question, with_mask=with_mask), add_generation_prompt=True
        )
        answered = asked + region.answer + "<|im_end|>"
        pixels = region_view(example.pixels, region.mask, processor.region_prompt)
        masks = [region.mask] if with_mask else None
        inputs = processor(images=pixels, text=answered, masks=masks, return_tensors="pt")
        num_asked = processor(images=pixels, text=asked, masks=masks, return_tensors="pt").input_ids.shape[1]
        logits = model(**inputs).logits[0, num_asked - 1 : -1]
        answer = inputs.input_ids[0, num_asked:]
        losses.append(torch.nn.functional.cross_entropy(logits, answer, reduction="sum"))
    return losses


def gradients(model: UrecaForConditionalGeneration) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("mask_encoder", ["convolutional", "fused"])
@pytest.mark.parametrize("region_prompt", REGION_PROMPTS)
def test_packed_loss_equals_that_of_separate_prompts(mask_encoder: str, region_prompt: str) -> None:
    model, processor = build_tiny(TinySizes(mask_encoder=mask_encoder))
    processor.region_prompt = region_prompt
    examples = make_examples()
    separate = torch.stack([loss for example in examples for loss in separate_loss(model, processor, example)]).sum()
    separate.backward()
    expected = gradients(model)
    batch = Packer(processor).pack(examples)
    packed = PackedLoss(model)(batch)
    packed.backward()
    found = gradients(model)
    assert packed.item() == pytest.approx(separate.item(), rel=1e-5)
    assert found.keys() == expected.keys()
    assert any("mask_encoder" in name for name in found) == (region_prompt == "mask")
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in found.items():
        scale = max(expected[name].abs().max().item(), 0.01 * largest)  # a bias of keys has a gradient of zero
        assert (gradient - expected[name]).abs().max().item() <= 1e-5 * scale, name


def test_packed_loss_with_gradient_checkpointing_has_the_same_gradients() -> None:
    model, processor = build_tiny()
    batch = Packer(processor).pack(make_examples())
    PackedLoss(model)(batch).backward()
    expected = gradients(model)
    model.train()
    model.activation_checkpointing_enable()
    PackedLoss(model)(batch).backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


@pytest.mark.parametrize("mask_encoder", ["convolutional", "fused"])
def test_packed_loss_with_one_mask_tile_equals_separate_prompts(mask_encoder: str) -> None:
    model, processor = build_tiny(TinySizes(mask_encoder=mask_encoder))
    processor.dynamic_mask = False
    batch = Packer(processor).pack(make_examples())
    assert len(batch.mask_values) == 5
    assert len(batch.pixel_values) > 5
    separate = [loss for example in make_examples() for loss in separate_loss(model, processor, example)]
    assert PackedLoss(model)(batch).item() == pytest.approx(sum(loss.item() for loss in separate), rel=1e-5)
    example, question = make_examples()[0], "Describe this region in the image."
    inputs = processor(
        images=example.pixels,
        text=processor.apply_chat_template(region_conversation(question), add_generation_prompt=True),
        masks=[example.regions[0].mask],
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs.input_ids.shape[1] :]
    expected = processor.decode(tokens, skip_special_tokens=True).strip()
    captioner = RegionCaptioner(model, processor)
    assert captioner.caption(example.pixels, [example.regions[0].mask], max_new_tokens=12) == [expected]


def test_packed_loss_trains_the_answer_that_the_captioner_writes() -> None:
    """Check that an overfitted model captions its samples with their answers."""
    model, processor = build_tiny()
    examples = make_examples()[:1]
    examples = [
        dataclasses.replace(
            examples[0],
            regions=tuple(
                dataclasses.replace(region, question="Describe this region in the image.")
                for region in examples[0].regions
            ),
        )
    ]
    batch = Packer(processor).pack(examples)
    training = PackedLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = training(batch) / batch.num_answer_tokens
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    captions = RegionCaptioner(model, processor).caption(
        examples[0].pixels, [region.mask for region in examples[0].regions], max_new_tokens=40
    )
    assert captions == [region.answer for region in examples[0].regions]


def test_pack_labels_are_the_answers() -> None:
    _, processor = build_tiny()
    batch = Packer(processor).pack(make_examples())
    answers = processor.tokenizer.decode(batch.labels[batch.labels != IGNORED])
    expected = [region.answer + "<|im_end|>" for example in make_examples() for region in example.regions]
    assert answers == "".join(expected)
    assert batch.num_answer_tokens == int((batch.labels != IGNORED).sum())


def test_packed_batch_from_its_tensors_is_equal() -> None:
    _, processor = build_tiny()
    batch = Packer(processor).pack(make_examples())
    again = type(batch)(**batch.tensors())
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in batch.tensors().items())


def test_pack_with_impossible_examples_raises() -> None:
    _, processor = build_tiny()
    example = make_examples()[0]
    with pytest.raises(ValueError, match="a batch needs an image"):
        Packer(processor).pack([])
    with pytest.raises(ValueError, match="every image a region"):
        Packer(processor).pack([dataclasses.replace(example, regions=())])
    wrong = dataclasses.replace(example, pixels=example.pixels[:-1])
    with pytest.raises(ValueError, match=r"a mask is \[70, 120\], its image \[69, 120\]"):
        Packer(processor).pack([wrong])
