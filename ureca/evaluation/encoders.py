"""Image-text encoders: images and texts as vectors of one space; and loading encoders in transformers' format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ureca.curation.embedders import pad_to_square
from ureca.curation.rule_based.colours import FAMILIES, fits_colour, measure_colours
from ureca.devices import torch_device
from ureca.errors import SettingsError
from ureca.evaluation.settings import COLOUR_WORDS, DualEncoderSettings
from ureca.extras import not_installed
from ureca.memory import first_line, in_parts_that_fit

if TYPE_CHECKING:
    import torch


Vectors = npt.NDArray[np.float32]

_SIDE_PX = 64  # longest side of the images whose colours are counted
_MODIFIERS = ("", "dark ", "light ")
_SYNONYMS = {"gray": "grey", "tan": "beige", "teal": "turquoise", "cyan": "turquoise", "violet": "purple"}
_MODIFIER_SYNONYMS = {"pale ": "light ", "bright ": "light ", "deep ": "dark "}
_COLOUR_WORD = re.compile(
    rf"\b(?P<modifier>(?:{'|'.join(map(str.strip, (*_MODIFIERS[1:], *_MODIFIER_SYNONYMS)))})[ -])?"
    rf"(?P<family>{'|'.join((*FAMILIES, *_SYNONYMS))})\b"
)


class ImageTextEncoder(Protocol):
    """Encodes images and texts so that the cosine of two vectors measures how well image and text fit."""

    name: str
    """The encoder's name with its version or checkpoint."""

    def encode_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Vectors:
        """Encode uint8 RGB images [h, w, 3] of any size as vectors of length 1, [len(images), D]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Encode texts as vectors of length 1, [len(texts), D]."""
        ...


class DualEncoder:
    """An ``ImageTextEncoder`` by a checkpoint with ``get_image_features`` and ``get_text_features``.

    Images are padded to squares, so that nothing is cropped; texts longer than the network's limit are truncated.

    Args:
        settings: checkpoint, batch size and device.

    Raises:
        SettingsError: transformers or torch is not installed, the checkpoint cannot be loaded or does not encode both
            images and texts, or the device does not exist.
    """

    def __init__(self, settings: DualEncoderSettings) -> None:
        self.name = settings.checkpoint
        self._batch_size = settings.batch_size
        self.network, self._processor, self._device = load_encoder(
            settings.checkpoint, "AutoProcessor", settings.device
        )
        if not all(hasattr(self.network, f"get_{kind}_features") for kind in ("image", "text")):
            raise SettingsError(
                f"checkpoint '{settings.checkpoint}' is a {type(self.network).__name__}; an encoder of images and "
                "texts is needed, such as CLIP or SigLIP"
            )
        # SigLIP was trained on texts padded to full length; its features of shorter ones are poor.
        self._padding = "max_length" if "siglip" in self.network.config.model_type else "longest"
        self._max_tokens = int(self.network.config.text_config.max_position_embeddings)

    def encode_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Vectors:
        """Encode uint8 RGB images [h, w, 3] of any size as vectors of length 1, [len(images), D]."""

        def encode(batch: Sequence[npt.NDArray[np.uint8]]) -> Any:
            inputs = self._processor(images=[pad_to_square(pixels) for pixels in batch], return_tensors="pt")
            return self.network.get_image_features(**inputs.to(self._device))

        return self._in_batches(images, encode)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Encode texts as vectors of length 1, [len(texts), D]."""

        def encode(batch: Sequence[str]) -> Any:
            inputs = self._processor(
                text=list(batch),
                padding=self._padding,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            return self.network.get_text_features(**inputs.to(self._device))

        return self._in_batches(texts, encode)

    def _in_batches(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], Any]) -> Vectors:
        import torch

        def vectors(batch: Sequence[Any]) -> Vectors:
            encoded = encode(batch)
            features = encoded if isinstance(encoded, torch.Tensor) else encoded.pooler_output
            return np.asarray(torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy(), np.float32)

        with torch.inference_mode():
            batches = [
                batch
                for _, batch in in_parts_that_fit(
                    vectors, items, self._batch_size, f"the encoding of one image or text by {self.name}"
                )
            ]
        return np.concatenate(batches) if batches else np.zeros((0, 0), np.float32)


class ColourWordEncoder:
    """An ``ImageTextEncoder`` without weights, whose 39 features are 13 colour words, each alone, dark and light.

    The features of an image are the shares of its pixels that fit each word; those of a text are its counts of each
    word. It ignores places and shapes, so it retrieves few regions, and those by colour only.
    """

    name = "colour-words-1"

    def encode_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Vectors:
        """Encode uint8 RGB images [h, w, 3] of any size as vectors of length 1, [len(images), 39]."""
        return _unit_vectors([_pixel_shares(image) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Encode texts as vectors of length 1, [len(texts), 39]; a text without a colour word has the zero vector."""
        return _unit_vectors([_word_counts(text) for text in texts])


def _pixel_shares(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Shares of the pixels that fit each word [families, modifiers]; a colour counts for every word that it fits."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    colours = measure_colours(np.asarray(image).reshape(-1, 3))
    shares = np.zeros((len(FAMILIES), len(_MODIFIERS)))
    for index, (family, share) in enumerate(zip(FAMILIES, colours.shares, strict=True)):
        fits = [True, *(fits_colour(modifier + family, colours) for modifier in _MODIFIERS[1:])]
        shares[index] = share * np.array(fits)
    return shares


def _word_counts(text: str) -> npt.NDArray[np.float64]:
    """Counts of each word [families, modifiers]."""
    counts = np.zeros((len(FAMILIES), len(_MODIFIERS)))
    for match in _COLOUR_WORD.finditer(text.lower()):
        modifier = (match["modifier"] or "").replace("-", " ")
        family = _SYNONYMS.get(match["family"], match["family"])
        counts[FAMILIES.index(family), _MODIFIERS.index(_MODIFIER_SYNONYMS.get(modifier, modifier))] += 1
    return counts


def _unit_vectors(amounts: Sequence[npt.NDArray[np.float64]]) -> Vectors:
    vectors = np.sqrt(np.array([amount.ravel() for amount in amounts]))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths, lengths, 1), np.float32)


def build_encoder(settings: DualEncoderSettings | None) -> ImageTextEncoder | None:
    """Load the image-text encoder of the settings; None for None.

    Raises:
        SettingsError: the checkpoint cannot be loaded, or a package is missing.
    """
    if settings is None:
        return None
    return ColourWordEncoder() if settings.checkpoint == COLOUR_WORDS else DualEncoder(settings)


def load_encoder(checkpoint: str, companion: str, device: str) -> tuple[Any, Any, torch.device]:
    """Load a network of ``AutoModel`` in evaluation mode, without running any code or pickle of the checkpoint.

    Args:
        checkpoint: folder or hub name of the checkpoint.
        companion: class that reads the inputs, "AutoTokenizer" or "AutoProcessor".
        device: torch device (cpu, cuda:1); auto: a GPU if available.

    Returns:
        The network, its tokenizer or processor, and its device.

    Raises:
        SettingsError: transformers or torch is not installed, the checkpoint cannot be loaded, or the device does not
            exist.
    """
    tokenizer_or_processor = check_checkpoint(checkpoint, companion)
    import transformers

    chosen = torch_device(device)
    with _loading_errors(checkpoint, companion):
        network = transformers.AutoModel.from_pretrained(checkpoint, trust_remote_code=False, weights_only=True)
    return network.to(chosen).eval(), tokenizer_or_processor, chosen


def check_checkpoint(checkpoint: str, companion: str) -> Any:
    """Load the tokenizer or processor of a checkpoint that ``AutoModel`` knows, but not its weights.

    Args:
        checkpoint, companion: as for ``load_encoder``.

    Raises:
        SettingsError: transformers or torch is not installed, or the checkpoint cannot be loaded.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise not_installed("an encoder", error, "model") from error
    with _loading_errors(checkpoint, companion):
        transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        return getattr(transformers, companion).from_pretrained(checkpoint, trust_remote_code=False)


@contextmanager
def _loading_errors(checkpoint: str, companion: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError, UnpicklingError, ImportError) as error:
        raise SettingsError(
            f"checkpoint '{checkpoint}' cannot be loaded: it must be a folder, or the name of a model on the hub, that "
            f"transformers' AutoModel and {companion} read ({first_line(error)})"
        ) from error
