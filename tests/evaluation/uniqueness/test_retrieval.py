from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.tiny_encoders import save_dual_encoder
from ureca.errors import DataError, SettingsError
from ureca.evaluation.encoders import DualEncoder
from ureca.evaluation.settings import DualEncoderSettings
from ureca.evaluation.uniqueness import Retrieved, retrieval_measures, retrieve

Pixels = npt.NDArray[np.uint8]


class GreyEncoder:
    """Sees the mean grey of an image, and reads a number as a grey; greys are angles of a quarter circle."""

    name = "grey"

    def encode_images(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        return self._vectors([float(image.mean()) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self._vectors([float(text) for text in texts])

    def _vectors(self, greys: Sequence[float]) -> npt.NDArray[np.float32]:
        angles = np.array(greys) / 255 * np.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def grey(*values: int) -> list[Pixels]:
    return [np.full((4, 5, 3), value, np.uint8) for value in values]


def test_retrieve_ranks_region_of_each_caption() -> None:
    found = retrieve(["0", "200", "190"], grey(0, 100, 200), GreyEncoder())
    assert found == [Retrieved(1.0, 1.0, 3), Retrieved(0.0, 0.5, 3), Retrieved(1.0, 1.0, 3)]


def test_retrieve_of_tied_regions_averages_their_orders() -> None:
    first, *_ = retrieve(["50", "50", "50"], grey(50, 50, 250), GreyEncoder())
    assert first == Retrieved(1 / 2, (1 + 1 / 2) / 2, 3)


@given(st.integers(2, 9))
def test_retrieve_with_constant_encoder_has_expected_value_of_random_order(num_regions: int) -> None:
    found = retrieve(["7"] * num_regions, grey(*[7] * num_regions), GreyEncoder())
    (remark,) = retrieval_measures(found, "grey")[0].remarks
    first, reciprocal = (measure.value() for measure in retrieval_measures(found, "grey"))
    assert first == pytest.approx(1 / num_regions)
    assert reciprocal == pytest.approx(sum(1 / rank for rank in range(1, num_regions + 1)) / num_regions)
    assert f"{100 / num_regions:.1f} %" in remark


def test_retrieve_of_blank_caption_or_single_region_counts_as_miss_or_not_at_all() -> None:
    assert retrieve(["", "9"], grey(0, 9), GreyEncoder()) == [Retrieved(0.0, 0.0, 2), Retrieved(1.0, 1.0, 2)]
    assert retrieve(["", " "], grey(0, 9), GreyEncoder()) == [Retrieved(0.0, 0.0, 2)] * 2
    alone = retrieve(["3"], grey(3), GreyEncoder())
    measures = retrieval_measures([*alone, Retrieved(0.0, 0.5, 2)], "grey", of_references=[None, Retrieved(1, 1, 2)])
    assert {measure.name: measure.value() for measure in measures} == {
        "Retrieval R@1": 0,
        "Retrieval MRR": 0.5,
        "Retrieval ceiling": 1,
    }
    with pytest.raises(ValueError, match="1 captions do not fit 2 crops"):
        retrieve(["1"], grey(1, 2), GreyEncoder())


@pytest.fixture(scope="module", params=["clip", "siglip"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_dual_encoder(tmp_path_factory.mktemp(request.param), request.param)


def crops(count: int) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + 9 * index, 60, 3)).astype(np.uint8) for index in range(count)]


def test_dual_encoder_vectors_do_not_depend_on_batch_size(checkpoint: str) -> None:
    by_two, at_once = (
        DualEncoder(DualEncoderSettings(checkpoint=checkpoint, batch_size=size, device="cpu")) for size in (2, 32)
    )
    images, texts = crops(5), ["a red car", "a house", "a red car " * 30]
    for one, other in (
        (by_two.encode_images(images), at_once.encode_images(images)),
        (by_two.encode_texts(texts), at_once.encode_texts(texts)),
    ):
        assert one.dtype == np.float32
        assert np.linalg.norm(one, axis=1) == pytest.approx(1, abs=1e-5)
        assert one == pytest.approx(other, abs=1e-4)
        assert not np.allclose(one[0], one[1], atol=1e-3)
    found = retrieve(["a red car", "a blue house"], images[:2], at_once)
    assert {item.num_candidates for item in found if item} == {2}


def test_dual_encoder_cosines_agree_with_network_logits(checkpoint: str) -> None:
    """The cosines agree with the network's logits, which are a scale and a bias away from them."""
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    encoder = DualEncoder(DualEncoderSettings(checkpoint=checkpoint, device="cpu"))
    square, texts = np.random.default_rng(1).integers(0, 256, (28, 28, 3)).astype(np.uint8), ["a red car", "a house"]
    network, processor = AutoModel.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    padding = {"padding": "max_length", "max_length": 12} if "siglip" in checkpoint else {"padding": True}
    inputs = processor(images=[Image.fromarray(square)], text=texts, return_tensors="pt", **padding)
    with torch.no_grad():
        logits = network(**inputs).logits_per_image[0]
        bias = float(getattr(network, "logit_bias", torch.zeros(1)))
        scale = float(network.logit_scale.exp())
    cosines = encoder.encode_images([square]) @ encoder.encode_texts(texts).T
    assert cosines[0] == pytest.approx(((logits - bias) / scale).numpy(), abs=1e-4)


def test_dual_encoder_of_folder_without_model_raises_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be loaded"):
        DualEncoder(DualEncoderSettings(checkpoint=str(tmp_path), device="cpu"))


def test_dual_encoder_out_of_memory_encodes_the_same_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DualEncoderSettings(checkpoint=save_dual_encoder(tmp_path), batch_size=8, device="cpu")
    encoder = DualEncoder(settings)
    images, texts = grey(0, 50, 100, 150, 200), ["a", "b c", "d", "e", "f"]
    expected = encoder.encode_images(images), encoder.encode_texts(texts)
    most = [2]
    for kind in ("image", "text"):
        encode = getattr(encoder.network, f"get_{kind}_features")

        def encode_some(encode: Any = encode, **inputs: Any) -> Any:
            if len(next(iter(inputs.values()))) > most[0]:
                raise MemoryError("as on a small device")
            return encode(**inputs)

        monkeypatch.setattr(encoder.network, f"get_{kind}_features", encode_some)
    assert encoder.encode_images(images) == pytest.approx(expected[0], abs=1e-5)
    assert encoder.encode_texts(texts) == pytest.approx(expected[1], abs=1e-5)
    most[0] = 0
    with pytest.raises(DataError, match="out_of_memory: the encoding of one image or text"):
        encoder.encode_images(images)
