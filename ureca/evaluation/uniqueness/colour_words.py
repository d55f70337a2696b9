"""An image-text encoder without weights: the colours that are seen, and the colour words that are read."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.curation.describer.colours import FAMILIES, fits_colour, measure_colours
from ureca.evaluation.uniqueness.encoders import Vectors

_SIDE_PX = 64
_MODIFIERS = ("", "dark ", "light ")
_SYNONYMS = {"gray": "grey", "tan": "beige", "teal": "turquoise", "cyan": "turquoise", "violet": "purple"}
_LIKE = {"pale ": "light ", "bright ": "light ", "deep ": "dark "}
_WORDS = re.compile(
    rf"\b(?P<modifier>(?:{'|'.join(map(str.strip, (*_MODIFIERS[1:], *_LIKE)))})[ -])?"
    rf"(?P<family>{'|'.join((*FAMILIES, *_SYNONYMS))})\b"
)


class ColourWords:
    """Knows nothing but thirteen colour words, each alone, dark or light; an ``ImageTextEncoder``.

    An image is the shares of its pixels that can be called so; a text, how often it says so. Of a caption that tells a
    region by its place or form it hears nothing, so it finds few regions, and finds them for one reason only.
    """

    name = "colour-words-1"

    def encode_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Vectors:
        """Vectors of length 1, [len(images), 39], of uint8 RGB images [h, w, 3] of any size."""
        return _vectors([_seen(image) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, [len(texts), 39]; of a text without a colour word, 0."""
        return _vectors([_read(text) for text in texts])


def _seen(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Shares [families, modifiers]; one that can be called by several words is all of them."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    colours = measure_colours(np.asarray(image).reshape(-1, 3))
    seen = np.zeros((len(FAMILIES), len(_MODIFIERS)))
    for place, (family, share) in enumerate(zip(FAMILIES, colours.shares, strict=True)):
        fitting = [True, *(fits_colour(modifier + family, colours) for modifier in _MODIFIERS[1:])]
        seen[place] = share * np.array(fitting)
    return seen


def _read(text: str) -> npt.NDArray[np.float64]:
    """Mentions [families, modifiers]."""
    read = np.zeros((len(FAMILIES), len(_MODIFIERS)))
    for match in _WORDS.finditer(text.lower()):
        modifier = (match["modifier"] or "").replace("-", " ")
        family = _SYNONYMS.get(match["family"], match["family"])
        read[FAMILIES.index(family), _MODIFIERS.index(_LIKE.get(modifier, modifier))] += 1
    return read


def _vectors(amounts: Sequence[npt.NDArray[np.float64]]) -> Vectors:
    vectors = np.sqrt(np.array([amount.ravel() for amount in amounts]))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths, lengths, 1), np.float32)
