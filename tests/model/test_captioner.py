"""The captioner: all regions of an image together have the captions of one call per region."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.inputs import box_masks, generate, noise_image, region_inputs
from ureca.errors import CheckpointError, DataError, SettingsError
from ureca.model.captioner import RegionCaptioner, RegionError
from ureca.model.decoding import SuffixCache
from ureca.model.initialization import build_tiny, save_tiny
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.prepared import RegionPreparation
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt_encoder import PromptEncoder
from ureca.model.settings import CaptionSettings, TinySizes

IMAGE, MASKS = noise_image(60, 110), box_masks(60, 110, 7)
LARGER, LARGER_MASKS = noise_image(140, 140), box_masks(140, 140, 2)


@pytest.fixture(params=["convolutional", "fused"])
def captioner(request: pytest.FixtureRequest) -> RegionCaptioner:
    return RegionCaptioner(*build_tiny(TinySizes(mask_encoder=request.param)))


@pytest.fixture
def ending() -> RegionCaptioner:
    """Captions of several lengths: a token that the model writes in some of them is another end token."""
    model, processor = build_tiny()
    captions = [generate(model, region_inputs(processor, [IMAGE], [mask]), max_new_tokens=25)[0] for mask in MASKS]
    tokens = sorted({token for caption in captions for token in caption})
    used_by = {token: sum(token in caption for caption in captions) for token in tokens}
    some = next(token for token in tokens if 3 <= used_by[token] < len(MASKS))
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, some]
    return RegionCaptioner(model, processor)


def one_call_a_region(captioner: RegionCaptioner, settings: dict[str, object]) -> list[str]:
    """Caption regions by transformers' generate, each with its own copy of the image."""
    captions = []
    for index, mask in enumerate(MASKS):
        torch.manual_seed(int(settings.get("seed", 0)) + index)
        inputs = region_inputs(captioner.processor, [IMAGE], [mask])
        tokens = captioner.model.generate(
            **inputs,
            max_new_tokens=settings["max_new_tokens"],
            do_sample="temperature" in settings,
            temperature=settings.get("temperature"),
            top_p=settings.get("top_p"),
            top_k=0,
        )
        new_tokens = tokens[0, inputs["input_ids"].shape[1] :]
        captions.append(captioner.processor.decode(new_tokens, skip_special_tokens=True).strip())
    return captions


@pytest.mark.parametrize("batch_size", [32, 3, 1])
@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 25}, {"max_new_tokens": 25, "temperature": 0.8, "top_p": 0.9, "seed": 11}],
    ids=["greedy", "sampled"],
)
def test_describe_equals_one_generate_call_per_region(
    captioner: RegionCaptioner, settings: dict[str, object], batch_size: int
) -> None:
    expected = one_call_a_region(captioner, settings)
    assert len(set(expected)) > 4
    assert captioner.caption(IMAGE, MASKS, batch_size=batch_size, **settings) == expected


def test_describe_with_early_ends_drops_finished_captions(ending: RegionCaptioner) -> None:
    widths: list[int] = []
    ending.model.lm_head.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[0]))
    regions = ending.describe([IMAGE], [MASKS], CaptionSettings(max_new_tokens=25))[0]
    assert {region.finish_reason for region in regions} == {"stop", "length"}
    steps = [region.num_tokens + (region.finish_reason == "stop") for region in regions]
    assert widths == [sum(step > index for step in steps) for index in range(max(steps))]


def test_describe_with_early_ends_equals_one_generate_call_per_region(ending: RegionCaptioner) -> None:
    end = ending.model.generation_config.eos_token_id
    regions = ending.describe([IMAGE], [MASKS], CaptionSettings(max_new_tokens=25))[0]
    for region, mask in zip(regions, MASKS, strict=True):
        inputs = region_inputs(ending.processor, [IMAGE], [mask])
        tokens = ending.model.generate(**inputs, max_new_tokens=25, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        kept = [token for token in tokens.tolist() if token not in end]
        assert region.num_tokens == len(kept)
        assert region.text == ending.processor.decode(kept, skip_special_tokens=True).strip()


def test_describe_with_sampling_seeds_regions_not_batch_rows(captioner: RegionCaptioner) -> None:
    settings = {"max_new_tokens": 15, "temperature": 1.0}
    together = captioner.caption(IMAGE, MASKS, seed=3, **settings)
    assert captioner.caption(IMAGE, MASKS[4:5], seed=3 + 4, **settings) == together[4:5]
    assert captioner.caption(IMAGE, MASKS, seed=4, **settings) != together


def test_describe_with_several_images_shares_batches(captioner: RegionCaptioner) -> None:
    images = [noise_image(60, 110), noise_image(56, 56, seed=1), noise_image(150, 56, seed=2)]
    masks = [box_masks(60, 110, 3), [], np.stack(box_masks(150, 56, 4))]
    expected = [captioner.caption(image, own, max_new_tokens=10) for image, own in zip(images, masks, strict=True)]
    for batch_size in (32, 2):
        assert captioner.caption_many(images, masks, max_new_tokens=10, batch_size=batch_size) == expected
    assert [len(captions) for captions in expected] == [3, 0, 4]


def test_stream_yields_captions_as_they_finish(ending: RegionCaptioner) -> None:
    finished = list(ending.stream([IMAGE], [MASKS], CaptionSettings(max_new_tokens=25)))
    assert [region.num_tokens for region in finished] == sorted(region.num_tokens for region in finished)
    assert sorted(region.mask_index for region in finished) == list(range(len(MASKS)))


def test_describe_with_another_question_changes_captions(captioner: RegionCaptioner) -> None:
    default = captioner.caption(IMAGE, MASKS[:1], max_new_tokens=15)
    assert captioner.caption(IMAGE, MASKS[:1], max_new_tokens=15, question="What colour is it?") != default


def count_vision_passes(model: UrecaForConditionalGeneration) -> list[int]:
    passes: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    return passes


def test_describe_encodes_an_image_once_for_all_batches(captioner: RegionCaptioner) -> None:
    passes = count_vision_passes(captioner.model)
    captioner.caption(IMAGE, MASKS, max_new_tokens=2, batch_size=2)
    assert len(passes) == 1
    captioner.caption(IMAGE, [], max_new_tokens=2)
    assert len(passes) == 1


def test_regions_that_join_together_are_one_call_of_the_mask_encoder(
    captioner: RegionCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, masks = [IMAGE, LARGER], [MASKS[:3], LARGER_MASKS]  # of different numbers of tiles
    settings = CaptionSettings(max_new_tokens=8, batch_size=8)
    alone = [
        captioner.caption(image, [mask], max_new_tokens=8)
        for image, of in zip(images, masks, strict=True)
        for mask in of
    ]
    calls: list[int] = []
    captioner.model.model.mask_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    tokenized: list[str] = []
    tokenizer = type(captioner.processor.tokenizer)
    tokenize = tokenizer.__call__

    def counted(self: Any, text: str, **options: Any) -> Any:
        tokenized.append(text)
        return tokenize(self, text, **options)

    monkeypatch.setattr(tokenizer, "__call__", counted)
    together = captioner.describe(images, masks, settings)
    assert [[region.text] for of_image in together for region in of_image] == alone
    assert len(calls) == 1
    assert not tokenized  # those of images are kept by number of tiles, those of regions also by question
    captioner.describe(images, masks, settings.model_copy(update={"question": "Which one?"}))
    assert len(calls) == 2
    assert len(tokenized) == 2


def test_regions_with_more_mask_tiles_than_a_call_takes_have_the_same_captions(
    captioner: RegionCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = captioner.caption(IMAGE, MASKS, max_new_tokens=8)
    calls: list[int] = []
    captioner.model.model.mask_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    monkeypatch.setattr(captioner.encoder, "max_mask_values", 1)
    assert captioner.caption(IMAGE, MASKS, max_new_tokens=8) == expected
    assert len(calls) == len(MASKS)


@pytest.mark.parametrize("variant", ["convolutional", "fused"])
def test_captioner_with_cached_images_encodes_them_once(variant: str) -> None:
    captioner = RegionCaptioner(*build_tiny(TinySizes(mask_encoder=variant)), cached_images=1)
    passes = count_vision_passes(captioner.model)
    other = noise_image(60, 110, seed=9)
    first = captioner.caption(IMAGE, MASKS[:2], max_new_tokens=8)
    assert captioner.caption(IMAGE.copy(), MASKS[:2], max_new_tokens=8) == first
    assert len(passes) == 1
    assert captioner.caption(other, MASKS[:2], max_new_tokens=8) != first
    assert captioner.caption(IMAGE, MASKS[:2], max_new_tokens=8) == first
    assert len(passes) == 3  # the second image took the only place


def test_caption_with_more_masks_than_the_batch_size_captions_all() -> None:
    captioner = RegionCaptioner(*build_tiny())
    widths: list[int] = []
    captioner.model.lm_head.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[0]))
    masks = box_masks(60, 110, 150)
    captions = captioner.caption(IMAGE, masks, max_new_tokens=3, batch_size=8)
    assert len(captions) == 150
    assert captions[137] == captioner.caption(IMAGE, masks[137:138], max_new_tokens=3)[0]
    assert max(widths) == 8


@pytest.mark.parametrize(("height", "width"), [(2, 900), (900, 2), (1, 1)])
def test_caption_with_extreme_aspect_ratio_succeeds(captioner: RegionCaptioner, height: int, width: int) -> None:
    image, masks = noise_image(height, width), [np.ones((height, width), dtype=np.bool_)]
    inputs = region_inputs(captioner.processor, [image], masks)
    tokens = captioner.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = captioner.processor.decode(tokens, skip_special_tokens=True).strip()
    assert captioner.caption(image, masks, max_new_tokens=8) == [expected]


def test_caption_with_one_pixel_mask_differs_from_empty_mask() -> None:
    captioner = RegionCaptioner(*build_tiny())
    mask = np.zeros((600, 900), dtype=np.bool_)
    mask[301, 17] = True
    assert captioner.processor.tile_mask(mask, 6).any()
    assert captioner.caption(noise_image(600, 900), [mask], max_new_tokens=2)[0]


@pytest.mark.parametrize(
    ("mask", "kind", "message"),
    [
        (np.zeros((60, 110), np.bool_), "empty_mask", "mask 1 of image 0 has no pixel set"),
        (np.ones((110, 60), np.bool_), "size_mismatch", "mask 1 of image 0 is [110, 60] (height, width), its image"),
        (np.ones((60, 110), np.uint8), "not_a_mask", "mask 1 of image 0 must be a bool array [H, W], it is uint8"),
        ([[True]], "not_a_mask", "it is list"),
    ],
)
def test_caption_with_bad_mask_raises_its_name(
    captioner: RegionCaptioner, mask: object, kind: str, message: str
) -> None:
    passes = count_vision_passes(captioner.model)
    with pytest.raises(RegionError, match=re.escape(message)) as error:
        captioner.caption(IMAGE, [MASKS[0], mask])
    assert error.value.kind == kind
    assert not passes


def test_caption_many_without_masks_of_an_image_raises(captioner: RegionCaptioner) -> None:
    with pytest.raises(ValueError, match="2 images and masks for 1"):
        captioner.caption_many([IMAGE, IMAGE], [MASKS])


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", 0), ("batch_size", 0), ("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.1)],
)
def test_caption_settings_with_impossible_value_raise(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=rf"{field} must be .* got {value}"):
        CaptionSettings(**{field: value})  # type: ignore[arg-type]


def test_from_pretrained_captions_like_the_saved_model(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    captioner = RegionCaptioner.from_pretrained(tmp_path, device="cpu")
    expected = RegionCaptioner(*build_tiny()).caption(IMAGE, MASKS[:2], max_new_tokens=5)
    assert captioner.caption(IMAGE, MASKS[:2], max_new_tokens=5) == expected
    half = RegionCaptioner.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert all(half.caption(IMAGE, MASKS[:2], max_new_tokens=5))


def test_from_pretrained_without_checkpoint_raises(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        RegionCaptioner.from_pretrained(tmp_path)


def test_caption_after_set_attn_implementation_is_unchanged(
    tiny: tuple[UrecaForConditionalGeneration, UrecaProcessor],
) -> None:
    captioner = RegionCaptioner(*tiny)
    expected = captioner.caption(IMAGE, MASKS, max_new_tokens=8)
    captioner.model.set_attn_implementation("eager")
    assert captioner.caption(IMAGE, MASKS, max_new_tokens=8) == expected


def test_generate_after_captioning_is_unchanged(
    tiny: tuple[UrecaForConditionalGeneration, UrecaProcessor],
) -> None:
    model, processor = tiny
    inputs = region_inputs(processor, [IMAGE, noise_image(56, 56)], [MASKS[0], box_masks(56, 56, 1)[0]])
    before = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    RegionCaptioner(model, processor)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), before)


def test_region_batch_admits_and_drops_regions_at_any_time(captioner: RegionCaptioner) -> None:
    images = [captioner.prepare(image, MASKS[:3]) for image in (IMAGE, noise_image(60, 110, seed=5))]
    greedy = CaptionSettings(max_new_tokens=12)
    drawn = CaptionSettings(max_new_tokens=7, temperature=0.9, top_p=0.8, seed=3, question="What is this?")
    alone = {
        (image_index, caption.mask_index, settings.temperature): caption.text
        for settings in (greedy, drawn)
        for image_index, image in enumerate(images)
        for caption in captioner.stream_prepared([image], settings)
    }
    batch = captioner.open_batch()
    joining = {
        0: ([(0, 0, 0.0), (0, 1, 0.0), (1, 0, 0.0)], greedy),
        3: ([(1, 1, 0.9), (0, 2, 0.9)], drawn),
        4: ([(0, 2, 0.0), (1, 2, 0.0)], greedy),
        20: ([(1, 0, 0.9)], drawn),  # when the others are finished
    }
    gone = (1, 2, 0.0)
    written = {}
    for step in range(40):
        if step in joining:
            keys, settings = joining[step]
            batch.admit((key, images[key[0]], key[1], settings) for key in keys)
        for region in batch.step(lambda key, step=step: step < 9 or key != gone):
            written[region.key] = region.text
    assert len(batch) == 0
    expected = {key for keys, _ in joining.values() for key in keys} - {gone}
    assert written == {key: alone[key] for key in expected}


class Memory:
    """Room on a device: prefills, decoding steps and encoded images fail above a number of rows or tiles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, captioner: RegionCaptioner, **limits: int) -> None:
        self.limits = {"prefill": 99, "step": 99, "tiles": 99} | limits
        self.failures: list[str] = []
        prefill, extended = SuffixCache.prefill, SuffixCache.extended
        encode = captioner.model.get_image_features

        def check(what: str, number: int) -> None:
            if number > self.limits[what]:
                self.failures.append(what)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

        def prefill_some(model: Any, prefixes: Any, suffixes: Any) -> SuffixCache:
            check("prefill", len(suffixes))
            return prefill(model, prefixes, suffixes)

        def extend_some(cache: SuffixCache, model: Any, prefixes: Any, tokens: Any) -> SuffixCache:
            check("step", len(tokens))
            return extended(cache, model, prefixes, tokens)

        def encode_some(pixel_values: torch.Tensor, **options: Any) -> Any:
            check("tiles", len(pixel_values))
            return encode(pixel_values, **options)

        monkeypatch.setattr(SuffixCache, "prefill", prefill_some)
        monkeypatch.setattr(SuffixCache, "extended", extend_some)
        monkeypatch.setattr(captioner.model, "get_image_features", encode_some)


@pytest.mark.parametrize("limits", [{"prefill": 3}, {"step": 2}, {"tiles": 2}, {"prefill": 1, "step": 1, "tiles": 1}])
def test_caption_out_of_memory_gives_the_same_captions_in_smaller_batches(
    tiny: tuple[UrecaForConditionalGeneration, UrecaProcessor], monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    images = [IMAGE, noise_image(60, 110, seed=5)]
    masks = [MASKS[:3], MASKS[1:4]]
    captioner = RegionCaptioner(*tiny, cached_images=2)
    settings = {"max_new_tokens": 6, "temperature": 0.8, "seed": 4}
    expected = captioner.caption_many(images, masks, **settings)
    memory = Memory(monkeypatch, captioner := RegionCaptioner(*tiny, cached_images=2), **limits)
    assert captioner.caption_many(images, masks, **settings) == expected
    assert {*memory.failures} <= {*limits}
    assert 1 <= len(memory.failures) < 12  # it is not tried again and again


def test_caption_region_that_does_not_fit_alone_fails_alone(
    tiny: tuple[UrecaForConditionalGeneration, UrecaProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = RegionCaptioner(*tiny)
    images = [captioner.prepare(IMAGE, MASKS[:2]), captioner.prepare(LARGER, LARGER_MASKS)]
    prefill = SuffixCache.prefill
    small, huge = (captioner.encoder.encode_image(image.views[0]).prefix.length for image in images)

    def refuse(model: Any, prefixes: Any, suffixes: Any) -> SuffixCache:
        if any(prefix.length == huge for prefix in prefixes):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return prefill(model, prefixes, suffixes)

    assert small != huge
    monkeypatch.setattr(SuffixCache, "prefill", refuse)
    regions = list(captioner.stream_prepared(images, CaptionSettings(max_new_tokens=3)))
    kinds = {(region.image_index, region.mask_index): region.error and region.error.kind for region in regions}
    assert kinds == {(0, 0): None, (0, 1): None, (1, 0): "out_of_memory", (1, 1): "out_of_memory"}
    with pytest.raises(DataError, match="out_of_memory: one region needs more memory"):
        captioner.caption(LARGER, LARGER_MASKS, max_new_tokens=3)


def test_region_batch_grows_again_after_it_ran_out_of_memory(
    tiny: tuple[UrecaForConditionalGeneration, UrecaProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = RegionCaptioner(*tiny, cached_images=1)
    memory = Memory(monkeypatch, captioner, prefill=2)
    image, settings = captioner.prepare(IMAGE, MASKS[:1]), CaptionSettings(max_new_tokens=1)
    batch = captioner.open_batch()
    batch.admit((number, image, 0, settings) for number in range(4))
    assert len(list(batch.step())) + len(batch) == 4
    memory.limits["prefill"] = 99  # another process has released its memory
    most, finished = 0, 0
    batch.admit((number, image, 0, settings) for number in range(4, 60))
    while batch:
        regions = list(batch.step())
        most, finished = max(most, len(regions)), finished + len(regions)
    assert 4 <= most < 56


def test_encoder_with_a_byte_budget_drops_images_before_it_encodes(
    tiny: tuple[UrecaForConditionalGeneration, UrecaProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny
    tiles = [
        RegionCaptioner(model, processor).prepare(noise_image(60, 110, seed=seed), MASKS[:1]).views[0]
        for seed in range(4)
    ]
    preparation = RegionPreparation(processor)
    unbounded = PromptEncoder(model, processor, preparation, cached_images=9)
    size = unbounded.encode_image(tiles[0]).num_bytes
    encoder = PromptEncoder(model, processor, preparation, cached_images=9, max_cached_bytes=2 * size)
    held: list[int] = []
    encode = model.get_image_features

    def recording(pixel_values: torch.Tensor, **options: Any) -> Any:
        held.append(encoder.cached_bytes)
        return encode(pixel_values, **options)

    monkeypatch.setattr(model, "get_image_features", recording)
    for image in (*tiles, tiles[3], tiles[0]):
        encoder.encode_image(image)
    assert held == [0, size, size, size, size]  # the fifth image was kept, and the sixth dropped
    assert (encoder.num_cached, encoder.cached_bytes) == (2, 2 * size)
    encoder.clear()
    assert (encoder.num_cached, encoder.cached_bytes) == (0, 0)
    small = PromptEncoder(model, processor, preparation, cached_images=9, max_cached_bytes=size - 1)
    small.encode_image(tiles[0])
    assert small.num_cached == 0
