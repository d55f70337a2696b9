"""SAM proposals, through the package's own classes at a size that runs anywhere."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ureca.data.listing import list_images
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import generate_masks
from ureca.errors import ImageError, SettingsError
from ureca.image_limits import ImageLimits
from ureca.masks import rle
from ureca.masks.generators.base import MaskGenerator
from ureca.masks.generators.prompted_network import PromptBatch
from ureca.masks.generators.sam import SamMaskGenerator, SamNetwork, load_state, read_state, use_fused_attention
from ureca.masks.generators.settings import AutomaticMaskSettings, SamConfig

torch = pytest.importorskip("torch")
segment_anything = pytest.importorskip("segment_anything")

EVERYTHING = AutomaticMaskSettings(
    points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1.0, crop_nms_thresh=1.0
)


def build_tiny_sam(encoder_width: int = 16) -> Any:
    """The real architecture with a 64 px input, one encoder block and 16 channels."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    channels, side, patch = 16, 64, 16
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            embed_dim=encoder_width,
            depth=1,
            num_heads=2,
            out_chans=channels,
            use_rel_pos=True,
            window_size=2,
            global_attn_indexes=(0,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(side // patch, side // patch),
            input_image_size=(side, side),
            mask_in_chans=4,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=1, embedding_dim=channels, num_heads=2, mlp_dim=32),
            transformer_dim=channels,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
    )


@pytest.fixture(scope="module")
def image() -> Any:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pth"
    torch.save(build_tiny_sam().state_dict(), path)
    return path


def test_generate_keeps_all_fields_of_sam(image: Any) -> None:
    sam = build_tiny_sam()
    mask_generator: MaskGenerator = SamMaskGenerator.from_model(sam, EVERYTHING, name="tiny")

    masks = mask_generator.generate(image)

    expected = segment_anything.SamAutomaticMaskGenerator(
        sam, points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1, output_mode="coco_rle"
    ).generate(image)
    expected = [record for record in expected if record["area"] > 0]
    assert mask_generator.name == "tiny"
    assert len(masks) == len(expected) > 5
    assert [mask.id for mask in masks] == list(range(1, len(masks) + 1))
    for mask, record in zip(masks, expected, strict=True):
        assert mask.rle == record["segmentation"]
        assert mask.area_px == record["area"] == rle.area_px(mask.rle)
        assert list(mask.bbox_xywh) == record["bbox"]
        assert (mask.predicted_iou, mask.stability_score) == (record["predicted_iou"], record["stability_score"])
        assert mask.extra == {key: record[key] for key in ("point_coords", "crop_box")}
        x, y, width, height = rle.box_xywh(mask.rle)
        assert mask.bbox_xywh == (x, y, width - 1, height - 1)


def test_automatic_mask_settings_have_names_and_defaults_of_the_package() -> None:
    import inspect

    parameters = dict(inspect.signature(segment_anything.SamAutomaticMaskGenerator).parameters)
    del parameters["model"], parameters["output_mode"]
    defaults = AutomaticMaskSettings().model_dump()
    assert defaults == {name: parameter.default for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"points_per_side": 2}, lambda masks, all_masks: len(masks) < len(all_masks)),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]]}, lambda masks, _: len(masks) <= 3),
        ({"pred_iou_thresh": 1000.0}, lambda masks, _: masks == []),
        ({"stability_score_thresh": 1.0, "stability_score_offset": 100.0}, lambda masks, _: masks == []),
        ({"box_nms_thresh": 0.0}, lambda masks, all_masks: len(masks) < len(all_masks)),
    ],
)
def test_generate_with_other_settings_changes_the_masks(
    image: Any, changed: dict[str, Any], differs: Callable[[list[Any], list[Any]], bool]
) -> None:
    sam = build_tiny_sam()
    all_masks = SamMaskGenerator.from_model(sam, EVERYTHING).generate(image)
    settings = AutomaticMaskSettings.model_validate(EVERYTHING.model_dump() | changed)
    assert differs(SamMaskGenerator.from_model(sam, settings).generate(image), all_masks)


def test_generate_with_crop_layers_encodes_the_crops(image: Any) -> None:
    sam = build_tiny_sam()
    inputs: list[Any] = []
    sam.image_encoder.register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0]))
    settings = AutomaticMaskSettings.model_validate(EVERYTHING.model_dump() | {"crop_n_layers": 1})
    SamMaskGenerator.from_model(sam, settings).generate(image)
    assert len(inputs) == 1 + 4
    assert not any(torch.equal(inputs[0], crop) for crop in inputs[1:])


@pytest.mark.parametrize(
    ("shape", "crop_n_layers", "num_encoded"),
    [
        ((1, 1), 1, 1),
        ((1, 3), 2, 1),
        ((2, 20), 3, 1 + 4),
        ((35, 200), 3, 1 + 4 + 16),
        ((3, 90), 1, 1 + 4),
        ((64, 96), 2, 1 + 4 + 16),
    ],
)
def test_generate_skips_layers_whose_crops_would_be_empty(
    shape: tuple[int, int], crop_n_layers: int, num_encoded: int
) -> None:
    sam = build_tiny_sam()
    inputs: list[Any] = []
    sam.image_encoder.register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0]))
    settings = EVERYTHING.model_dump() | {"points_per_side": 2, "crop_n_layers": crop_n_layers}
    mask_generator = SamMaskGenerator.from_model(sam, AutomaticMaskSettings.model_validate(settings))
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    for mask in mask_generator.generate(pixels):
        assert mask.rle["size"] == list(shape)
    assert len(inputs) == num_encoded


def test_generate_masks_of_a_tiny_image_costs_no_other_image(tmp_path: Path) -> None:
    for name, shape in {"a": (64, 96), "beacon": (1, 1), "line": (1, 3000), "strip": (35, 200)}.items():
        pixels = np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    settings = EVERYTHING.model_dump() | {"points_per_side": 2, "crop_n_layers": 3}
    mask_generator = SamMaskGenerator.from_model(build_tiny_sam(), AutomaticMaskSettings.model_validate(settings))
    entries = [ManifestEntry.from_row(row) for row in list_images(str(tmp_path)).to_pylist()]
    images = generate_masks(0, entries, mask_generator, ImageLimits()).images
    assert [image.entry.image_id for image in images] == ["a", "beacon", "line", "strip"]
    assert all(image.masks or image.error for image in images)
    assert images[0].masks and images[3].masks
    assert images[2].error is not None and images[2].error.kind == "too_elongated"


@pytest.mark.parametrize("min_mask_region_area", [0, 10])
@pytest.mark.parametrize("shape", [(64, 96), (1, 1), (2, 60)])
def test_generate_with_crops_of_which_none_survives_returns_an_empty_list(
    shape: tuple[int, int], min_mask_region_area: int
) -> None:
    if min_mask_region_area:
        pytest.importorskip("cv2")
    settings = AutomaticMaskSettings(
        points_per_side=2, pred_iou_thresh=1e6, crop_n_layers=2, min_mask_region_area=min_mask_region_area
    )
    assert SamMaskGenerator.from_model(build_tiny_sam(), settings).generate(np.zeros((*shape, 3), np.uint8)) == []


@pytest.mark.parametrize("crop_n_layers", [0, 1])
def test_generate_without_masks_returns_an_empty_list(image: Any, crop_n_layers: int) -> None:
    settings = AutomaticMaskSettings(points_per_side=2, pred_iou_thresh=1000.0, crop_n_layers=crop_n_layers)
    assert SamMaskGenerator.from_model(build_tiny_sam(), settings).generate(image) == []


def test_generate_of_tiny_and_elongated_images_works_or_raises() -> None:
    mask_generator = SamMaskGenerator.from_model(build_tiny_sam(), EVERYTHING)
    for shape in ((1, 1, 3), (1, 64, 3), (64, 1, 3)):
        for mask in mask_generator.generate(np.full(shape, 128, np.uint8)):
            assert mask.rle["size"] == list(shape[:2])
    with pytest.raises(ImageError, match=r"too_elongated: .* 1000 x 1 px"):
        mask_generator.generate(np.zeros((1, 1000, 3), np.uint8))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"points_per_side": None}, "exactly one of points_per_side and point_grids"),
        ({"point_grids": [[[0.5, 0.5]]]}, "exactly one of points_per_side and point_grids"),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1}, "needs 2 non-empty grids"),
        ({"points_per_side": None, "point_grids": [[[0.5, 1.5]]]}, "less than or equal to 1"),
        ({"crop_n_layers": 2, "crop_n_points_downscale_factor": 8}, "without points"),
        ({"box_nms_thresh": 1.1}, "less than or equal to 1"),
        ({"points_per_batch": 0}, "greater than or equal to 1"),
        ({"output_mode": "binary_mask"}, "Extra inputs are not permitted"),
    ],
)
def test_automatic_mask_settings_with_impossible_values_raises(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AutomaticMaskSettings.model_validate(changed)


def test_sam_config_is_frozen() -> None:
    settings = SamConfig(checkpoint=Path("sam.pth"))
    with pytest.raises(ValidationError, match="frozen"):
        settings.device = "cpu"  # type: ignore[misc]


def test_min_mask_region_area_without_opencv_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr("ureca.masks.generators.everything.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install opencv-python-headless"):
        SamMaskGenerator.from_model(build_tiny_sam(), AutomaticMaskSettings(min_mask_region_area=10))


@pytest.mark.parametrize("window_px", [0, 2, 3])  # the whole image, windows, and windows that need padding
def test_fused_attention_computes_what_the_layers_of_the_package_do(window_px: int) -> None:
    sam = build_tiny_sam()
    with torch.no_grad():
        for parameter in sam.parameters():  # relative positions start at 0
            parameter.normal_(std=0.3)
    sam.image_encoder.blocks[0].window_size = window_px
    values, prompts = torch.randn(1, 3, 64, 64), torch.randn(5, 3, 16)
    arguments = {"image_pe": torch.randn(1, 16, 4, 4), "sparse_prompt_embeddings": prompts, "multimask_output": True}
    dense = torch.randn(5, 16, 4, 4)

    def run() -> list[Any]:
        with torch.inference_mode():
            embeddings = sam.image_encoder(values)
            decoded = sam.mask_decoder(image_embeddings=embeddings, dense_prompt_embeddings=dense, **arguments)
            return [embeddings, *decoded]

    expected = run()
    use_fused_attention(sam)
    called: list[Any] = []
    fused = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda *args, **named: called.append(1) or fused(*args, **named),
        )
        found = run()
    assert len(called) == 1 + 4  # one in the encoder; tokens, both directions and at last tokens to image
    for before, after in zip(expected, found, strict=True):
        assert torch.allclose(before, after, rtol=1e-4, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_network_in_half_precision_is_close_to_float32_and_embeds_points_in_full(image: Any, dtype: Any) -> None:
    full, half = SamNetwork(build_tiny_sam()), SamNetwork(build_tiny_sam(), dtype)
    model = half.model
    for part, expected in (
        (model.image_encoder, getattr(torch, dtype)),
        (model.mask_decoder, getattr(torch, dtype)),
        (model.prompt_encoder, torch.float32),
    ):
        assert {parameter.dtype for parameter in part.parameters()} == {expected}
    prompts = PromptBatch(points_xy=np.array([[[30.0, 20.0]], [[5.0, 35.0]]]), labels=np.ones((2, 1), np.int64))
    (logits, qualities), (near_logits, near_qualities) = (
        network.decode(network.encode(image), prompts, several=True) for network in (full, half)
    )
    assert near_qualities.dtype == torch.float32
    assert torch.allclose(near_qualities, qualities, atol=0.03 * float(qualities.abs().max()))
    assert float((near_logits.float() - logits).abs().mean()) < 0.03 * float(logits.abs().mean())
    upscaled = half.upscale(near_logits[0], half.encode(image))
    assert upscaled.dtype == torch.float32
    assert upscaled.shape == (3, 40, 60)


def test_generate_in_bfloat16_makes_nearly_the_masks_of_float32(image: Any) -> None:
    from pycocotools import mask as coco_mask

    full, half = (
        SamMaskGenerator.from_model(build_tiny_sam(), EVERYTHING, dtype=dtype).generate(image)
        for dtype in ("float32", "bfloat16")
    )
    by_prompt = {(str(mask.extra["point_coords"]), round(mask.predicted_iou or 0, 1)): mask for mask in half}
    ious = [
        coco_mask.iou([mask.rle], [by_prompt[key].rle], [0])[0, 0]
        for mask in full
        if (key := (str(mask.extra["point_coords"]), round(mask.predicted_iou or 0, 1))) in by_prompt
    ]
    assert len(ious) > len(full) / 2
    assert float(np.median(ious)) > 0.9


def test_dtype_of_the_settings_is_that_of_the_network(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", build_tiny_sam)
    settings: dict[str, Any] = {"checkpoint": checkpoint, "model_type": "vit_b", "device": "cpu"}
    for given, expected in (({}, torch.float32), ({"dtype": "bfloat16"}, torch.bfloat16)):
        model = SamMaskGenerator(SamConfig.model_validate(settings | given)).network.model
        assert {parameter.dtype for parameter in model.image_encoder.parameters()} == {expected}
    with pytest.raises(ValidationError, match="'auto', 'float32', 'bfloat16' or 'float16'"):
        SamConfig.model_validate(settings | {"dtype": "int8"})


def test_load_state_of_a_checkpoint_reproduces_the_masks(image: Any, checkpoint: Path) -> None:
    def build_with_other_weights() -> Any:
        sam = build_tiny_sam()
        for parameter in sam.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        return sam

    loaded = load_state(build_with_other_weights, read_state(checkpoint), "tiny.pth")
    assert not loaded.training
    expected = SamMaskGenerator.from_model(build_tiny_sam(), EVERYTHING).generate(image)
    assert SamMaskGenerator.from_model(loaded, EVERYTHING).generate(image) == expected


def test_load_state_of_other_weights_names_the_keys(checkpoint: Path) -> None:
    state = dict(read_state(checkpoint))
    state["image_encoder.pos_embed"] = state["image_encoder.pos_embed"][:, :1]
    state["module.extra"] = state.pop("mask_decoder.iou_token.weight")
    with pytest.raises(SettingsError) as caught:
        load_state(build_tiny_sam, state, "broken.pth")
    message = str(caught.value)
    assert "broken.pth" in message
    assert "1 missing: mask_decoder.iou_token.weight" in message
    assert "1 unknown: module.extra" in message
    assert "1 of another shape: image_encoder.pos_embed" in message


def test_sam_mask_generator_with_a_missing_checkpoint_raises(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.pth does not exist"):
        SamMaskGenerator(SamConfig(checkpoint=tmp_path / "nothing.pth", device="cpu"))


def test_sam_mask_generator_with_a_damaged_checkpoint_raises(checkpoint: Path) -> None:
    for content in (b"", b"not a checkpoint", checkpoint.read_bytes()[:1000]):
        checkpoint.write_bytes(content)
        with pytest.raises(SettingsError, match=r"tiny\.pth is not a readable PyTorch file"):
            SamMaskGenerator(SamConfig(checkpoint=checkpoint, device="cpu"))


def test_sam_mask_generator_with_pickled_code_raises(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"model": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(SettingsError, match="not a state dict"):
        SamMaskGenerator(SamConfig(checkpoint=path, device="cpu"))
    torch.save(partial(print, "this would run"), path)
    with pytest.raises(SettingsError, match="not a readable PyTorch file"):
        SamMaskGenerator(SamConfig(checkpoint=path, device="cpu"))


def test_sam_mask_generator_with_another_model_type_names_it(tmp_path: Path) -> None:
    path = tmp_path / "sam_vit_l.pth"
    torch.save({"image_encoder.patch_embed.proj.weight": torch.zeros(1024, 3, 1, 1)}, path)
    with pytest.raises(SettingsError, match="is a vit_l, model_type says vit_b"):
        SamMaskGenerator(SamConfig(checkpoint=path, model_type="vit_b", device="cpu"))


def test_sam_mask_generator_with_an_unusable_device_names_it(checkpoint: Path) -> None:
    for device in ("abacus", "cuda:99"):
        with pytest.raises(SettingsError, match=f"device '{device}' cannot be used"):
            SamMaskGenerator(SamConfig(checkpoint=checkpoint, device=device))


def test_sam_mask_generator_without_the_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(SettingsError, match=r"pip install 'ureca-ray\[sam\]'"):
        SamMaskGenerator(SamConfig(checkpoint=checkpoint))


def reference_records(sam: Any, image: Any, **arguments: Any) -> list[dict[str, Any]]:
    """Generate masks of an image with the package's own generator."""
    generator = segment_anything.SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **arguments)
    records: list[dict[str, Any]] = generator.generate(image)
    return [record for record in records if record["area"] > 0]


@pytest.mark.parametrize(
    ("points_that_fit", "masks_that_fit"), [(99, 99), (3, 99), (99, 2), (1, 1)], ids=["all", "points", "masks", "one"]
)
def test_sam_out_of_memory_makes_the_same_masks_in_smaller_parts(
    image: Any, monkeypatch: pytest.MonkeyPatch, points_that_fit: int, masks_that_fit: int
) -> None:
    sam = build_tiny_sam()
    arguments = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "crop_n_layers": 1}
    expected = reference_records(sam, image, **arguments)
    decode, upscale = sam.mask_decoder.forward, sam.postprocess_masks

    def decode_some(**inputs: Any) -> Any:
        if len(inputs["sparse_prompt_embeddings"]) > points_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.61 GiB")
        return decode(**inputs)

    def upscale_some(masks: Any, *sizes: Any) -> Any:
        if len(masks) > masks_that_fit:
            raise RuntimeError("CUDA error: out of memory")
        return upscale(masks, *sizes)

    monkeypatch.setattr(sam.mask_decoder, "forward", decode_some)
    monkeypatch.setattr(sam, "postprocess_masks", upscale_some)
    masks = SamMaskGenerator.from_model(sam, AutomaticMaskSettings(**arguments)).generate(image)

    assert len(expected) > 5
    assert [mask.rle for mask in masks] == [record["segmentation"] for record in expected]
    assert [mask.stability_score for mask in masks] == [record["stability_score"] for record in expected]
    assert [mask.extra["point_coords"] for mask in masks] == [record["point_coords"] for record in expected]


def test_sam_upscales_only_masks_of_sufficient_quality_and_few_at_a_time(
    image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam = build_tiny_sam()
    everything = SamMaskGenerator.from_model(sam, EVERYTHING).generate(image)
    median = float(np.median([mask.predicted_iou for mask in everything if mask.predicted_iou is not None]))
    upscaled: list[int] = []
    upscale = sam.postprocess_masks

    def record(masks: Any, *sizes: Any) -> Any:
        upscaled.append(len(masks))
        return upscale(masks, *sizes)

    monkeypatch.setattr(sam, "postprocess_masks", record)
    # 10 bytes for each pixel of the image and of the model's input: room for three masks.
    monkeypatch.setattr("ureca.masks.generators.everything.MAX_UPSCALED_BYTES", 3 * 10 * (40 * 60 + 64 * 64))
    settings = EVERYTHING.model_copy(update={"pred_iou_thresh": max(median, 1e-9)})
    masks = SamMaskGenerator.from_model(sam, settings).generate(image)
    assert max(upscaled) <= 3
    assert len(masks) <= sum(upscaled) < 4 * 4 * 3


def test_sam_image_that_does_not_fit_alone_is_an_error_row(
    image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image[:, ::-1].copy()).save(tmp_path / "b.png")
    sam = build_tiny_sam()
    encode, seen = sam.image_encoder.forward, []

    def encode_the_second(inputs: Any) -> Any:
        seen.append(None)
        if len(seen) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(inputs)

    monkeypatch.setattr(sam.image_encoder, "forward", encode_the_second)
    entries = [ManifestEntry.from_row(row) for row in list_images(str(tmp_path)).to_pylist()]
    partition = generate_masks(0, entries, SamMaskGenerator.from_model(sam, EVERYTHING), ImageLimits())
    first, second = partition.images
    assert first.error is not None
    assert (first.error.stage, first.error.kind) == ("masks", "out_of_memory")
    assert "60 x 40 px" in first.error.message
    assert second.error is None
    assert len(second.masks) > 5
