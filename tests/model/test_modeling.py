"""The model in all uses that transformers supports; each equals the simple case."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from tests.model.inputs import Tiny, box_masks, generate, noise_image, region_inputs, region_prompt
from ureca.model.initialization import build_tiny
from ureca.model.modeling import UrecaForConditionalGeneration, UrecaModel
from ureca.model.processing import UrecaProcessor
from ureca.model.settings import TinySizes

SIZES = [(60, 110), (60, 60), (150, 56)]


@pytest.fixture(params=["convolutional", "fused"])
def model_and_processor(request: pytest.FixtureRequest) -> Tiny:
    return build_tiny(TinySizes(mask_encoder=request.param))


def three_regions(processor: UrecaProcessor) -> list[dict[str, torch.Tensor]]:
    """Prompts about images of 3, 1 and 4 tiles."""
    images = [noise_image(*size, seed=index) for index, size in enumerate(SIZES)]
    masks = [box_masks(*size, 1, seed=index)[0] for index, size in enumerate(SIZES)]
    return [region_inputs(processor, [image], [mask]) for image, mask in zip(images, masks, strict=True)]


def all_in_one_batch(processor: UrecaProcessor) -> dict[str, torch.Tensor]:
    images = [noise_image(*size, seed=index) for index, size in enumerate(SIZES)]
    masks = [box_masks(*size, 1, seed=index)[0] for index, size in enumerate(SIZES)]
    return region_inputs(processor, images, masks)


def labels_of(model: UrecaForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = inputs["input_ids"].clone()
    ignored = torch.tensor([model.config.image_token_id, model.config.mask_token_id])
    labels[torch.isin(labels, ignored) | (inputs["attention_mask"] == 0)] = -100
    return labels


def logits_of(model: UrecaForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def test_generate_depends_on_image_and_mask(model_and_processor: Tiny) -> None:
    model, processor = model_and_processor
    image, masks = noise_image(60, 110), box_masks(60, 110, 2)
    first = generate(model, region_inputs(processor, [image], masks[:1]))
    assert first != generate(model, region_inputs(processor, [image], masks[1:]))
    assert first != generate(model, region_inputs(processor, [noise_image(60, 110, seed=1)], masks[:1]))


def test_generate_with_mixed_tile_counts_equals_single_prompts(model_and_processor: Tiny) -> None:
    model, processor = model_and_processor
    singles = [generate(model, inputs)[0] for inputs in three_regions(processor)]
    assert generate(model, all_in_one_batch(processor)) == singles


def test_generate_with_beams_equals_single_prompts(model_and_processor: Tiny) -> None:
    model, processor = model_and_processor
    singles = [generate(model, inputs, num_beams=3)[0] for inputs in three_regions(processor)]
    assert generate(model, all_in_one_batch(processor), num_beams=3) == singles
    assert singles != [generate(model, inputs)[0] for inputs in three_regions(processor)]


def test_generate_with_several_sequences_shows_each_the_mask(model_and_processor: Tiny) -> None:
    model, processor = model_and_processor
    batch = all_in_one_batch(processor)
    captions = generate(model, batch, num_beams=2, num_return_sequences=2)
    assert captions[::2] == generate(model, batch, num_beams=2)


def test_forward_with_several_masks_has_the_features_of_each_alone(model_and_processor: Tiny) -> None:
    model, processor = model_and_processor
    image, masks = noise_image(60, 110), box_masks(60, 110, 2)
    prompt = region_prompt(processor).replace("<MASK_CONTEXT>", "<MASK_CONTEXT> and <MASK_CONTEXT>")
    inputs = processor(images=image, text=prompt, masks=masks, return_tensors="pt")
    seen: list[torch.Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    logits_of(model, inputs)
    together = seen.pop()[inputs["input_ids"] == processor.mask_token_id]
    alone = []
    for mask in masks:
        single = region_inputs(processor, [image], [mask])
        logits_of(model, single)
        alone.append(seen.pop()[single["input_ids"] == processor.mask_token_id])
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_generate_with_encoded_images_is_unchanged(model_and_processor: Tiny) -> None:
    model, processor = model_and_processor
    inputs = all_in_one_batch(processor)
    expected = generate(model, inputs)
    with torch.no_grad():
        encoded = model.get_image_features(inputs.pop("pixel_values"))
    inputs |= {"mm_encoder_outputs": {"image": encoded}}
    if model.config.mask_encoder == "fused":
        with pytest.raises(ValueError, match="needs features and pixels of the image"):
            generate(model, inputs)
    else:
        assert generate(model, inputs) == expected


def test_sdpa_equals_eager_attention(model_and_processor: Tiny) -> None:
    model, processor = model_and_processor
    inputs = all_in_one_batch(processor)
    real = inputs["attention_mask"].bool()
    results = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        results[attention] = logits_of(model, inputs)[real]
    assert torch.allclose(results["sdpa"], results["eager"], atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(model_and_processor: Tiny) -> None:
    model, processor = model_and_processor
    inputs = all_in_one_batch(processor)
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(**inputs, labels=labels_of(model, inputs)).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(plain, other, atol=1e-5) for plain, other in zip(*gradients, strict=True))
    assert model.model.mask_encoder.projection.weight.grad.abs().sum() > 0


def test_loss_is_the_mean_cross_entropy_of_labelled_tokens(tiny: Tiny) -> None:
    model, processor = tiny
    inputs = all_in_one_batch(processor)
    labels = labels_of(model, inputs)
    outputs = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(outputs.loss, expected, atol=1e-5)


def test_forward_with_logits_to_keep_computes_only_those(tiny: Tiny) -> None:
    model, processor = tiny
    inputs = all_in_one_batch(processor)
    with torch.no_grad():
        last = model(**inputs, logits_to_keep=1).logits
    assert torch.allclose(last, logits_of(model, inputs)[:, -1:], atol=1e-5)


def test_forward_with_return_dict_false_returns_a_tuple(tiny: Tiny) -> None:
    model, processor = tiny
    inputs = three_regions(processor)[0]
    loss, logits, *_ = model(**inputs, labels=labels_of(model, inputs), return_dict=False)
    assert torch.equal(logits, logits_of(model, inputs))
    assert loss.ndim == 0


def test_bfloat16_stays_near_float32(model_and_processor: Tiny) -> None:
    model, processor = model_and_processor
    inputs = all_in_one_batch(processor)
    real = inputs["attention_mask"].bool()
    exact = logits_of(model, inputs)[real]
    rounded = logits_of(model.to(torch.bfloat16), inputs)[real]
    assert rounded.dtype == torch.bfloat16
    assert (exact - rounded.float()).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("shard_size", ["5GB", "200KB"])
def test_from_pretrained_equals_the_saved_model(model_and_processor: Tiny, tmp_path: Path, shard_size: str) -> None:
    model, processor = model_and_processor
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > (shard_size == "200KB")
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, UrecaForConditionalGeneration)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), UrecaProcessor)
    assert not any(report.values()), report
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_auto_model_loads_without_head(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = tiny
    model.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, UrecaModel)
    assert not report["missing_keys"]
    assert torch.equal(loaded.mask_encoder.projection.weight, model.model.mask_encoder.projection.weight)


def test_save_pretrained_writes_tensor_names_of_internvl(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = tiny
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    names = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    prefixes = {name.split(".")[0] for name in names}
    assert prefixes == {"language_model", "vision_tower", "multi_modal_projector", "mask_encoder"}


@pytest.mark.parametrize("extra_tiles", [-1, 1])
def test_forward_with_wrong_number_of_tiles_raises_both_counts(tiny: Tiny, extra_tiles: int) -> None:
    model, processor = tiny
    inputs = three_regions(processor)[0]
    for name, kind in (("mask_values", "mask"), ("pixel_values", "image")):
        tiles = inputs[name]
        wrong = tiles[:-1] if extra_tiles < 0 else torch.cat([tiles, tiles[:1]])
        counts = f"hold 12 {kind} placeholders .* the {3 + extra_tiles} {kind} tiles give {12 + 4 * extra_tiles}"
        with pytest.raises(ValueError, match=counts):
            model(**(inputs | {name: wrong}))


def test_forward_with_pixels_and_encoded_images_raises(tiny: Tiny) -> None:
    model, processor = tiny
    inputs = three_regions(processor)[0]
    encoded = {"image": model.get_image_features(inputs["pixel_values"])}
    with pytest.raises(ValueError, match="not both"):
        model(**inputs, mm_encoder_outputs=encoded)
