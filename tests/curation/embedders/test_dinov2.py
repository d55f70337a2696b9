import builtins

import numpy as np
import pytest
from pydantic import ValidationError

from ureca.curation.embedders import Dinov2Embedder, pad_to_square
from ureca.curation.protocols import RegionCrop
from ureca.curation.settings import Dinov2Config
from ureca.errors import SettingsError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A DINOv2 of two narrow layers with random weights."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    configuration = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(configuration).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=True
    ).save_pretrained(folder)
    return str(folder)


def _crops(count):
    rng = np.random.default_rng(0)
    return [
        RegionCrop(rng.integers(0, 256, (20 + 9 * index, 60, 3)).astype(np.uint8), np.ones((20 + 9 * index, 60), bool))
        for index in range(count)
    ]


def test_dinov2_embedding_is_the_normalized_class_token(checkpoint):
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    vector = Dinov2Embedder(Dinov2Config(checkpoint=checkpoint, device="cpu")).embed(
        [RegionCrop(pixels, np.ones((40, 40), bool))]
    )[0]
    inputs = AutoImageProcessor.from_pretrained(checkpoint)(images=[Image.fromarray(pixels)], return_tensors="pt")
    with torch.no_grad():
        token = AutoModel.from_pretrained(checkpoint)(**inputs).last_hidden_state[0, 0].numpy()
    assert vector == pytest.approx(token / np.linalg.norm(token), abs=1e-5)


def test_dinov2_embedding_does_not_depend_on_its_batch(checkpoint):
    crops = _crops(5)
    by_two, at_once = (
        Dinov2Embedder(Dinov2Config(checkpoint=checkpoint, batch_size=size)).embed(crops) for size in (2, 32)
    )
    assert by_two.shape == (5, 16)
    assert by_two.dtype == np.float32
    assert by_two == pytest.approx(at_once, abs=1e-5)
    assert np.linalg.norm(by_two, axis=1) == pytest.approx(1, abs=1e-5)


def test_dinov2_long_region_keeps_its_ends(checkpoint):
    plain = np.full((20, 200, 3), 128, np.uint8)
    with_ends = plain.copy()
    with_ends[:, :40], with_ends[:, -40:] = (255, 0, 0), (0, 255, 0)
    a, b = Dinov2Embedder(Dinov2Config(checkpoint=checkpoint)).embed(
        [RegionCrop(pixels, np.ones((20, 200), bool)) for pixels in (plain, with_ends)]
    )
    assert not np.allclose(a, b, atol=1e-3)


def test_dinov2_without_crops_is_empty(checkpoint):
    assert Dinov2Embedder(Dinov2Config(checkpoint=checkpoint)).embed([]).shape == (0, 16)


def test_dinov2_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"checkpoint '.*nothing' cannot be loaded"):
        Dinov2Embedder(Dinov2Config(checkpoint=str(tmp_path / "nothing")))


def test_dinov2_pickled_code_in_a_checkpoint_is_not_run(checkpoint, tmp_path):
    import os
    import shutil

    import torch

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    folder = tmp_path / "hostile"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(SettingsError, match="cannot be loaded"):
        Dinov2Embedder(Dinov2Config(checkpoint=str(folder)))
    assert not (tmp_path / "run").exists()


def test_dinov2_damaged_weights_are_named(checkpoint, tmp_path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(SettingsError, match="cannot be loaded"):
        Dinov2Embedder(Dinov2Config(checkpoint=str(folder)))


def test_dinov2_missing_device_is_named(checkpoint):
    with pytest.raises(SettingsError, match="device 'abacus' cannot be used"):
        Dinov2Embedder(Dinov2Config(checkpoint=checkpoint, device="abacus"))


def test_dinov2_missing_package_is_named(checkpoint, monkeypatch):
    genuine = builtins.__import__

    def without_transformers(name, *arguments, **keywords):
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return genuine(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_transformers)
    with pytest.raises(SettingsError, match=r"'transformers', which is not installed: pip install"):
        Dinov2Embedder(Dinov2Config(checkpoint=checkpoint))


def test_dinov2_config_with_unknown_key_is_rejected():
    with pytest.raises(ValidationError, match="batchsize"):
        Dinov2Config(batchsize=3)


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory):
    """A DINOv3 of two narrow layers with random weights."""
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov3")
    configuration = DINOv3ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        num_register_tokens=2,
    )
    DINOv3ViTModel(configuration).save_pretrained(folder)
    DINOv3ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_dinov3_embedding_is_the_normalized_class_token(dinov3):
    import torch
    from transformers import AutoImageProcessor, AutoModel

    (crop,) = _crops(1)
    square = np.asarray(pad_to_square(crop.pixels))
    (vector,) = Dinov2Embedder(Dinov2Config(checkpoint=dinov3, device="cpu")).embed([crop])
    inputs = AutoImageProcessor.from_pretrained(dinov3)(images=[square], return_tensors="pt")
    with torch.no_grad():
        token = AutoModel.from_pretrained(dinov3)(**inputs).last_hidden_state[0, 0].numpy()
    assert vector == pytest.approx(token / np.linalg.norm(token), abs=1e-5)


def test_dinov2_in_bfloat16_is_close_to_float32(checkpoint):
    import torch

    crops = _crops(3)
    full, half = (
        Dinov2Embedder(Dinov2Config(checkpoint=checkpoint, device="cpu", dtype=dtype)) for dtype in ("auto", "bfloat16")
    )
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in full.model.parameters()} == {torch.float32}
    similarity = (full.embed(crops) * half.embed(crops)).sum(axis=1)
    assert similarity == pytest.approx(1, abs=0.01)
    assert half.embed(crops).dtype == np.float32
