"""SAM 2, SAM 3 and HQ-SAM against transformers' own pipeline and post-processing, on tiny random checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ureca.errors import SettingsError
from ureca.masks import rle as rle_codec
from ureca.masks.generators.prompted_sam import PromptedSam
from ureca.masks.generators.settings import (
    PromptedSamConfig,
    Sam2Config,
    Sam3Config,
    SamHqConfig,
    TransformersSamSettings,
)
from ureca.masks.prompts import Prompt
from ureca.registry import build_component

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.masks.generators.tiny_checkpoints import (  # noqa: E402
    save_sam2,
    save_sam3,
    save_sam3_tracker,
    save_sam_hq,
)

KINDS: dict[str, tuple[type[TransformersSamSettings], Callable[[Path], str]]] = {
    "sam2": (Sam2Config, save_sam2),
    "sam3": (Sam3Config, save_sam3_tracker),
    "sam-hq": (SamHqConfig, save_sam_hq),
}
EVERYTHING = {
    "device": "cpu",
    "points_per_side": 4,
    "pred_iou_thresh": 0,
    "stability_score_thresh": 0,
    "stability_score_offset": 0.01,
    "box_nms_thresh": 1.0,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: save(tmp_path_factory.mktemp(kind)) for kind, (_, save) in KINDS.items()}


@pytest.fixture(scope="module")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_sam3(tmp_path_factory.mktemp("sam3-text"))


def noise(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def build(kind: str, checkpoint: str, **changed: Any) -> Any:
    settings = KINDS[kind][0].model_validate({"checkpoint": checkpoint, **EVERYTHING, **changed})
    return build_component("mask_generator", settings)


# The pipeline places the points of SAM 2 and SAM 3 as if the image kept its proportions, and the network stretches it
# to a square: only for square images do its points lie where they should.
@pytest.mark.parametrize(
    ("kind", "size"), [("sam2", (50, 50)), ("sam3", (50, 50)), ("sam-hq", (50, 50)), ("sam-hq", (40, 60))]
)
@pytest.mark.parametrize("filtered", [False, True], ids=["everything", "filtered"])
def test_generate_makes_the_masks_of_the_pipeline_of_transformers(
    checkpoints: dict[str, str], kind: str, size: tuple[int, int], filtered: bool
) -> None:
    image = noise(*size)
    pipeline = transformers.pipeline("mask-generation", model=checkpoints[kind], device="cpu")
    thresholds = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    if filtered:
        masks = build(kind, checkpoints[kind]).generate(image)
        thresholds["stability_score_thresh"] = float(np.median([mask.stability_score for mask in masks])) + 1e-4
    arguments = {"points_per_crop": 4, "crops_nms_thresh": 1.0, "stability_score_offset": 0.01, **thresholds}
    expected = pipeline(Image.fromarray(image), output_rle_mask=True, **arguments)

    masks = build(kind, checkpoints[kind], **thresholds).generate(image)

    counts = [record["counts"] for record in expected["rle_mask"]]
    rles = [rle_codec.from_coco({"size": list(size), "counts": count}, *size) for count in counts]
    kept = [(rle, float(score)) for rle, score in zip(rles, expected["scores"], strict=True) if rle_codec.area_px(rle)]
    assert len(kept) >= 3
    assert [mask.rle for mask in masks] == [rle for rle, _ in kept]
    assert [mask.predicted_iou for mask in masks] == pytest.approx([score for _, score in kept], abs=1e-4)


@pytest.mark.parametrize("kind", ["sam2", "sam3"])
def test_points_of_an_image_that_is_stretched_cover_all_of_it(checkpoints: dict[str, str], kind: str) -> None:
    generator = build(kind, checkpoints[kind])
    seen: list[Any] = []
    encoder = generator.network.model.prompt_encoder
    encoder.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(named["input_points"]), with_kwargs=True
    )
    generator.generate(noise(30, 60))
    points = torch.cat([each.reshape(-1, 2) for each in seen])
    assert points.min(dim=0).values.tolist() == pytest.approx([8, 8])
    assert points.max(dim=0).values.tolist() == pytest.approx([56, 56])


@pytest.mark.parametrize("kind", KINDS)
def test_generate_in_half_precision_embeds_points_in_full(checkpoints: dict[str, str], kind: str) -> None:
    generator = build(kind, checkpoints[kind], dtype="bfloat16")
    seen: dict[str, set[Any]] = {"vision_encoder": set(), "prompt_encoder": set(), "mask_decoder": set()}
    for name, types in seen.items():
        part = getattr(generator.network.model, name)
        types |= {parameter.dtype for parameter in part.parameters()}
    masks = generator.generate(noise(40, 60))
    assert seen == {
        "vision_encoder": {torch.bfloat16},
        "prompt_encoder": {torch.float32},
        "mask_decoder": {torch.bfloat16},
    }
    assert masks
    assert all(mask.rle["size"] == [40, 60] for mask in masks)


@pytest.mark.parametrize("kind", KINDS)
def test_generate_with_crops_and_small_parts_keeps_masks_within_the_image(
    checkpoints: dict[str, str], kind: str
) -> None:
    generator = build(kind, checkpoints[kind], crop_n_layers=1, min_mask_region_area=4, points_per_side=2)
    encoded: list[Any] = []
    generator.network.model.vision_encoder.register_forward_hook(lambda module, inputs, output: encoded.append(1))
    masks = generator.generate(noise(60, 90))
    assert len(encoded) == 1 + 4
    assert masks
    for mask in masks:
        assert mask.bbox_xywh == rle_codec.inclusive_box_xywh(mask.rle)
        assert mask.area_px == rle_codec.area_px(mask.rle) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_segmented_and_an_image_is_encoded_once_for_all_clicks(
    checkpoints: dict[str, str], kind: str
) -> None:
    network = build(kind, checkpoints[kind]).network
    encoded: list[Any] = []
    network.model.vision_encoder.register_forward_hook(lambda module, inputs, output: encoded.append(1))
    prompted = PromptedSam.from_network(network)
    first, second = noise(40, 60), noise(40, 60)[::-1].copy()
    box = Prompt(bbox_xywh=(5, 6, 20, 10))
    for prompts in (
        [(1, box)],
        [(2, Prompt(points_xy=((30, 20),)))],
        [(3, Prompt(bbox_xywh=(5, 6, 20, 10), points_xy=((9, 9),)))],
    ):
        (mask,) = prompted.masks(first, prompts)
        assert mask.rle["size"] == [40, 60]
    assert len(encoded) == 1
    assert prompted.masks(second, [(1, box)]) != prompted.masks(first, [(1, box)])
    assert len(encoded) == 2


@pytest.mark.parametrize("size", [(50, 50), (40, 60)])
@pytest.mark.parametrize(
    ("kind", "model_class", "processor_class"),
    [
        ("sam2", "Sam2Model", "Sam2Processor"),
        ("sam3", "Sam3TrackerModel", "Sam3TrackerProcessor"),
        ("sam-hq", "SamHQModel", "SamHQProcessor"),
    ],
)
def test_prompts_of_a_file_have_the_masks_of_the_processor_of_transformers(
    checkpoints: dict[str, str], kind: Any, model_class: str, processor_class: str, size: tuple[int, int]
) -> None:
    image = noise(*size)
    settings = PromptedSamConfig(network=kind, checkpoint=checkpoints[kind], device="cpu")
    generator = build_component("mask_generator", settings)
    prompts = [
        {"id": 7, "bbox_xywh": [5, 6, 20, 10]},
        {"id": 5, "points_xy": [[30, 20]]},
        {"id": 3, "bbox_xywh": [12, 3, 9, 30]},
        {"id": 2, "points_xy": [[30, 20], [5, 5]], "labels": [1, 0]},
    ]
    masks = generator.generate(image, json.dumps({"prompts": prompts}).encode())

    assert generator.name == f"prompted {kind} {checkpoints[kind]}"
    assert [mask.id for mask in masks] == [7, 5, 3, 2]
    model = getattr(transformers, model_class).from_pretrained(checkpoints[kind]).eval()
    processor = getattr(transformers, processor_class)(
        transformers.AutoImageProcessor.from_pretrained(checkpoints[kind])
    )
    of_boxes, of_point, of_points = (
        {"input_boxes": [[[5.0, 6.0, 25.0, 16.0], [12.0, 3.0, 21.0, 33.0]]]},
        {"input_points": [[[[30.0, 20.0]]]], "input_labels": [[[1]]]},
        {"input_points": [[[[30.0, 20.0], [5.0, 5.0]]]], "input_labels": [[[1, 0]]]},
    )
    expected: list[Any] = []
    for arguments, several in ((of_boxes, False), (of_point, True), (of_points, False)):
        inputs = processor(images=Image.fromarray(image), return_tensors="pt", **arguments)
        sizes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        with torch.no_grad():
            outputs = model(**inputs, multimask_output=several)
        pixels = processor.post_process_masks(outputs.pred_masks, *sizes)[0]
        expected += [of_one[int(scores.argmax())] for of_one, scores in zip(pixels, outputs.iou_scores[0], strict=True)]
    for mask, pixels in zip([masks[0], masks[2], masks[1], masks[3]], expected, strict=True):
        assert 0 < mask.area_px < size[0] * size[1]
        assert np.array_equal(mask.decode(), pixels.numpy())


def test_prompts_in_half_precision_embed_points_in_full(checkpoints: dict[str, str]) -> None:
    settings = PromptedSamConfig(network="sam2", checkpoint=checkpoints["sam2"], device="cpu", dtype="bfloat16")
    generator = build_component("mask_generator", settings)
    model = generator.network.model
    assert next(model.mask_decoder.parameters()).dtype == torch.bfloat16
    assert next(model.prompt_encoder.parameters()).dtype == torch.float32
    (mask,) = generator.masks(noise(40, 60), [(1, Prompt(bbox_xywh=(5, 6, 20, 10)))])
    assert mask.rle["size"] == [40, 60]


def test_prompts_with_the_checkpoint_of_another_model_name_it(checkpoints: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="SamHQModel reads"):
        build_component("mask_generator", PromptedSamConfig(network="sam-hq", checkpoint=checkpoints["sam2"]))
    with pytest.raises(SettingsError, match="does not exist or is not a file"):
        build_component("mask_generator", PromptedSamConfig(checkpoint=checkpoints["sam2"], device="cpu"))


def reference_of_text(checkpoint: str, image: npt.NDArray[np.uint8], phrase: str, threshold: float) -> Any:
    """Segment the instances of a phrase as the documentation of transformers does."""
    model = transformers.Sam3Model.from_pretrained(checkpoint).eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    inputs = processor(images=Image.fromarray(image), text=phrase, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    sizes = [image.shape[:2]]
    return processor.post_process_instance_segmentation(outputs, threshold=threshold, target_sizes=sizes)[0]


def test_generate_of_a_phrase_makes_the_instances_of_the_processor(text_checkpoint: str) -> None:
    image = noise(40, 60)
    scores = reference_of_text(text_checkpoint, image, "red car", 0.0)["scores"]
    threshold = float(scores.median()) - 1e-6
    expected = reference_of_text(text_checkpoint, image, "red car", threshold)
    order = expected["scores"].argsort(descending=True, stable=True)
    settings = Sam3Config(
        checkpoint=text_checkpoint, device="cpu", text=("red car",), text_score_thresh=threshold, box_nms_thresh=1.0
    )

    masks = build_component("mask_generator", settings).generate(image)

    wanted = [rle_codec.encode(expected["masks"][index].numpy()) for index in order]
    assert [mask.rle for mask in masks] == [rle for rle in wanted if rle_codec.area_px(rle)]
    assert len(masks) >= 1
    assert [mask.category for mask in masks] == ["red car"] * len(masks)


def test_generate_of_two_phrases_gives_one_class_to_what_fits_both(text_checkpoint: str) -> None:
    image = noise(40, 60)
    settings = {"checkpoint": text_checkpoint, "device": "cpu", "text_score_thresh": 0.0}
    encoded: list[Any] = []
    both = build_component("mask_generator", Sam3Config(**settings, text=("wheel", "tree"), box_nms_thresh=1.0))
    both.text_network.model.vision_encoder.register_forward_hook(lambda module, inputs, output: encoded.append(1))
    masks = both.generate(image)
    assert {mask.category for mask in masks} == {"wheel", "tree"}
    assert [mask.id for mask in masks] == list(range(1, len(masks) + 1))
    assert len(encoded) == 1
    fewer = build_component("mask_generator", Sam3Config(**settings, text=("wheel", "tree"))).generate(image)
    assert 0 < len(fewer) < len(masks)


def test_text_prompted_checkpoint_that_lacks_the_points_is_named(text_checkpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"Sam3TrackerModel reads \(\d+ weights are missing"):
        build_component("mask_generator", Sam3Config(checkpoint=text_checkpoint, device="cpu"))


def test_unusable_checkpoints_are_named(checkpoints: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"checkpoint '.*nothing' cannot be loaded"):
        build("sam2", str(tmp_path / "nothing"))
    with pytest.raises(SettingsError, match="SamHQModel reads"):
        build("sam-hq", checkpoints["sam2"])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in Path(checkpoints["sam2"]).iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[:100] if file.suffix == ".safetensors" else content)
    with pytest.raises(SettingsError, match="damaged' cannot be loaded"):
        build("sam2", str(damaged))
    (damaged / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(SettingsError, match="damaged' cannot be loaded"):
        build("sam2", str(damaged))


def test_a_device_that_does_not_exist_is_named(checkpoints: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="device 'abacus' cannot be used"):
        build("sam2", checkpoints["sam2"], device="abacus")


def test_out_of_memory_makes_the_same_masks_in_smaller_parts(
    checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = build("sam2", checkpoints["sam2"])
    expected = generator.generate(noise(40, 60))
    decoder = generator.network.model.mask_decoder
    decode = decoder.forward

    def decode_one(**inputs: Any) -> Any:
        if inputs["sparse_prompt_embeddings"].shape[1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.61 GiB")
        return decode(**inputs)

    monkeypatch.setattr(decoder, "forward", decode_one)
    masks = generator.generate(noise(40, 60))
    assert [mask.extra for mask in masks] == [mask.extra for mask in expected]
    assert [mask.rle for mask in masks] == [mask.rle for mask in expected]
