"""An image-text encoder without weights: the colours that are seen, and the colour words that are read.

[from] Loading the encoders that judge captions: folders, or names on the hub, in transformers' format.
[from] Image-text encoders: images and texts as vectors of one space."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from ureca.config import MAY_CHANGE
from ureca.curation.embedders import squared
from ureca.curation.rule_based.colours import FAMILIES, fits_colour, measure_colours
from ureca.errors import SettingsError

if TYPE_CHECKING:
    import torch


def load_encoder(checkpoint: str, companion: str, device: str) -> tuple[Any, Any, torch.device]:
    """A network of ``AutoModel`` in evaluation mode, its tokenizer or processor, and where it runs.

    No code from a checkpoint is run, and no pickled object in it.

    Args:
        checkpoint: folder or name on the hub.
        companion: "AutoTokenizer" or "AutoProcessor".
        device: as torch names it (cpu, cuda:1); auto: a GPU if there is one.

    Raises:
        SettingsError: transformers or torch is not installed, the checkpoint cannot be loaded, or there is no such
            device.
    """
    reader = check_checkpoint(checkpoint, companion)
    place = _device(device)
    import transformers

    with _loading(checkpoint, companion):
        network = transformers.AutoModel.from_pretrained(checkpoint, trust_remote_code=False, weights_only=True)
    return network.to(place).eval(), reader, place


def check_checkpoint(checkpoint: str, companion: str) -> Any:
    """The tokenizer or processor of a checkpoint that ``AutoModel`` knows; its weights are not loaded.

    Args:
        checkpoint, companion: as ``load_encoder`` takes them.

    Raises:
        SettingsError: transformers or torch is not installed, or there is no such checkpoint.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise SettingsError(
            f"an encoder needs the package '{error.name}', which is not installed: pip install 'ureca-ray[model]'"
        ) from error
    with _loading(checkpoint, companion):
        transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        return getattr(transformers, companion).from_pretrained(checkpoint, trust_remote_code=False)


@contextmanager
def _loading(checkpoint: str, companion: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError, UnpicklingError, ImportError) as error:
        raise SettingsError(
            f"checkpoint '{checkpoint}' cannot be loaded: it must be a folder, or the name of a model on the hub, that "
            f"transformers' AutoModel and {companion} read ({_first_line(error)})"
        ) from error


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device '{name}' cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


COLOUR_WORDS = "colour-words"

Vectors = npt.NDArray[np.float32]


class ImageTextEncoder(Protocol):
    """Encodes images and texts so that the cosine of two tells how well they fit."""

    name: str
    """What it is, with its version or checkpoint."""

    def encode_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Vectors:
        """Vectors of length 1, [len(images), D], of uint8 RGB images [h, w, 3] of any size."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, [len(texts), D]."""
        ...


class DualEncoderSettings(BaseModel):
    """Which checkpoint encodes, and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        description="folder, or name on the hub, of a CLIP, SigLIP or the like in transformers' format; "
        f"{COLOUR_WORDS}: colours and the words for them, without weights"
    )
    batch_size: Annotated[int, MAY_CHANGE] = Field(
        default=32, ge=1, description="images, or texts, in one pass of the network"
    )
    device: Annotated[str, MAY_CHANGE] = Field(
        default="auto", description="as torch names it (cpu, cuda:1); auto: a GPU if there is one"
    )


class DualEncoder:
    """A checkpoint with ``get_image_features`` and ``get_text_features``; an ``ImageTextEncoder``.

    Images are padded to squares, so that nothing is cut off; texts longer than the network takes are cut.

    Raises:
        SettingsError: transformers or torch is not installed, the checkpoint cannot be loaded or encodes no images or
            no texts, or there is no such device.
    """

    def __init__(self, settings: DualEncoderSettings) -> None:
        self.name = settings.checkpoint
        self._batch_size = settings.batch_size
        self._network, self._processor, self._device = load_encoder(
            settings.checkpoint, "AutoProcessor", settings.device
        )
        if not all(hasattr(self._network, f"get_{kind}_features") for kind in ("image", "text")):
            raise SettingsError(
                f"checkpoint '{settings.checkpoint}' is a {type(self._network).__name__}; an encoder of images and "
                "texts is needed, such as CLIP or SigLIP"
            )
        # SigLIP has learned from texts padded to full length, and reads others badly.
        self._padding = "max_length" if "siglip" in self._network.config.model_type else "longest"
        self._max_tokens = int(self._network.config.text_config.max_position_embeddings)

    def encode_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Vectors:
        """Vectors of length 1, [len(images), D], of uint8 RGB images [h, w, 3] of any size."""

        def encode(batch: Sequence[npt.NDArray[np.uint8]]) -> Any:
            inputs = self._processor(images=[squared(pixels) for pixels in batch], return_tensors="pt")
            return self._network.get_image_features(**inputs.to(self._device))

        return self._in_batches(images, encode)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, [len(texts), D]."""

        def encode(batch: Sequence[str]) -> Any:
            inputs = self._processor(
                text=list(batch),
                padding=self._padding,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            return self._network.get_text_features(**inputs.to(self._device))

        return self._in_batches(texts, encode)

    def _in_batches(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], Any]) -> Vectors:
        import torch

        batches = []
        with torch.inference_mode():
            for start in range(0, len(items), self._batch_size):
                encoded = encode(items[start : start + self._batch_size])
                features = encoded if isinstance(encoded, torch.Tensor) else encoded.pooler_output
                batches.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy())
        return np.concatenate(batches) if batches else np.zeros((0, 0), np.float32)


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


def build_encoder(settings: DualEncoderSettings | None) -> ImageTextEncoder | None:
    """Load the image-text encoder that settings name, if they name one.

    Raises:
        SettingsError: its checkpoint or a package is missing.
    """
    if settings is None:
        return None
    return ColourWords() if settings.checkpoint == COLOUR_WORDS else DualEncoder(settings)


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
