"""Self-retrieval by colours alone."""

import numpy as np
import numpy.typing as npt
import pytest

from ureca.evaluation.encoders import ColourWordEncoder, DualEncoder, build_encoder
from ureca.evaluation.settings import COLOUR_WORDS, DualEncoderSettings
from ureca.evaluation.uniqueness import Retrieved, retrieve

COLOURS = {"red": (200, 0, 0), "dark green": (31, 58, 31), "light blue": (180, 212, 236), "grey": (136, 136, 136)}


def plain(*names: str) -> list[npt.NDArray[np.uint8]]:
    """Plain images of different sizes."""
    return [np.full((30 + 9 * place, 200, 3), COLOURS[name], np.uint8) for place, name in enumerate(names)]


def test_colour_word_encoder_retrieves_crop_of_named_colour() -> None:
    texts = ["The red disc on the left.", "A Dark-Green leaf.", "It is pale blue", "a gray strip"]
    assert retrieve(texts, plain(*COLOURS), ColourWordEncoder()) == [Retrieved(1.0, 1.0, 4)] * 4


def test_colour_word_encoder_distinguishes_dark_from_light() -> None:
    crops = [np.full((9, 9, 3), value, np.uint8) for value in ((31, 58, 31), (144, 238, 144))]
    texts = ColourWordEncoder().encode_texts(["a dark green leaf", "a light green one", "green"])
    images = ColourWordEncoder().encode_images(crops)
    cosines = texts @ images.T
    assert cosines[0, 0] > 0.5 > cosines[0, 1] == 0
    assert cosines[1, 1] > 0.5 > cosines[1, 0] == 0
    assert cosines[2].min() > 0.5


def test_colour_word_encoder_of_text_without_colour_ties_all_regions() -> None:
    found = retrieve(["the second from the left", "the grey one"], plain("red", "grey"), ColourWordEncoder())
    assert found == [Retrieved(0.5, 0.75, 2), Retrieved(1.0, 1.0, 2)]


def test_colour_word_encoder_vectors_have_length_one() -> None:
    encoder = ColourWordEncoder()
    rng = np.random.default_rng(0)
    images = encoder.encode_images([rng.integers(0, 256, (40, 300, 3), dtype=np.uint8) for _ in range(3)])
    texts = encoder.encode_texts(["red, blue and beige", "light grey", "coloured"])
    assert np.linalg.norm(images, axis=1) == pytest.approx([1, 1, 1])
    assert np.linalg.norm(texts, axis=1) == pytest.approx([1, 1, 0])
    assert images.shape[1] == texts.shape[1] == 39


def test_build_encoder_of_colour_words_builds_encoder_without_weights() -> None:
    encoder = build_encoder(DualEncoderSettings(checkpoint=COLOUR_WORDS))
    assert isinstance(encoder, ColourWordEncoder)
    assert not isinstance(encoder, DualEncoder)
    assert build_encoder(None) is None
