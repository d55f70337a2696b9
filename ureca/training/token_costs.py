"""Token counts of images, regions and texts, without packing them; they agree with `ureca.training.packing`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from ureca.hashing import digest
from ureca.model.prompt import QUESTION, shares_image

if TYPE_CHECKING:
    from ureca.model.processing import UrecaProcessor

TokenCounts = npt.NDArray[np.int64]


class TokenCosts(BaseModel):
    """Tokens that a packed row spends besides the texts of questions and answers; `costs_of` has a processor's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: NonNegativeInt
    """Tokens of a prefix besides its image tiles: system message, start and end of the image."""
    image_tile: NonNegativeInt
    """Tokens of an image tile."""
    region: NonNegativeInt
    """Tokens of a segment besides mask tiles, question and answer."""
    mask_tile: NonNegativeInt
    """Tokens of a mask tile."""
    one_mask_tile: bool = False
    """True if a mask is always one tile; otherwise it has as many as its image."""
    shared: bool = True
    """True if regions share the image's tokens; otherwise each region has an image of its own."""
    tiles: NonNegativeInt | None = None
    """Upper bound of the tiles of a view that depends on the region's pixels; None: the image decides."""

    def image_tokens(self, num_tiles: npt.NDArray[np.integer]) -> TokenCounts:
        """Count the tokens of prefixes whose images have so many tiles."""
        tiles = num_tiles.astype(np.int64) if self.tiles is None else np.full(num_tiles.shape, self.tiles, np.int64)
        return self.image + self.image_tile * tiles

    def segment_tokens(self, text_tokens: npt.NDArray[np.integer], num_tiles: npt.NDArray[np.integer]) -> TokenCounts:
        """Count the tokens of segments with so many tokens of text, whose images have so many tiles."""
        mask_tiles = np.ones_like(num_tiles, np.int64) if self.one_mask_tile else num_tiles.astype(np.int64)
        return self.region + self.mask_tile * mask_tiles + text_tokens


def costs_of(processor: UrecaProcessor) -> TokenCosts:
    """Return the token costs of a processor's prompts."""
    beginning = processor.split_prompt(QUESTION)[0].replace(processor.image_token, processor.image_placeholders(0))
    with_mask = processor.region_prompt == "mask"
    return TokenCosts(
        image=len(processor.tokenizer(beginning, add_special_tokens=False).input_ids),
        image_tile=processor.image_seq_length,
        region=2 if with_mask else 0,
        mask_tile=processor.num_mask_tokens if with_mask else 0,
        one_mask_tile=not processor.dynamic_mask,
        shared=shares_image(processor.region_prompt),
        # The grid of a crop is known only when its pixels are.
        tiles=processor.image_processor.max_tiles + 1 if processor.region_prompt == "crop" else None,
    )


@dataclass(frozen=True, eq=False)
class SampleCosts:
    """Token counts of all samples of an index: 4 bytes a region and about 16 an image.

    Attributes:
        first_regions: int64 [images + 1]: index of each image's first region in ``text_tokens``, and its length.
        text_tokens: int32 [regions]: tokens of the longest possible question and of the answer.
        num_tiles: uint8 [images, scales]: tiles at each scale of the size augmentation, thumbnail included.
        image_keys: uint64 [images]: hash of the image id, which seeds the random draws for an image.
    """

    first_regions: npt.NDArray[np.int64]
    text_tokens: npt.NDArray[np.int32]
    num_tiles: npt.NDArray[np.uint8]
    image_keys: npt.NDArray[np.uint64]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.image_keys)

    @property
    def num_regions(self) -> int:
        """Number of regions of all images."""
        return len(self.text_tokens)

    @property
    def regions_of_images(self) -> npt.NDArray[np.int64]:
        """Number of regions of each image, int64 [images]."""
        return np.diff(self.first_regions)


class TextTokens(Protocol):
    """Token counter of texts.

    Attributes:
        identity: a hash that differs where counts may; part of an index's fingerprint.
        special_tokens: strings that no question and no answer may contain, since the tokenizer treats them as control
            tokens.
    """

    identity: str
    special_tokens: tuple[str, ...]

    def of_questions(self, questions: Sequence[str]) -> list[int]:
        """Count, for each question, the tokens of a segment between its mask and its answer."""
        ...

    def of_answers(self, answers: Sequence[str]) -> list[int]:
        """Count the tokens of each answer with the end of its turn."""
        ...


class ProcessorTextTokens:
    """Token counter of texts in a processor's prompts.

    Args:
        processor: processor of the model to train.
    """

    def __init__(self, processor: UrecaProcessor) -> None:
        self._processor = processor
        vocabulary = sorted(processor.tokenizer.get_vocab().items())
        parts = (vocabulary, processor.chat_template, processor.region_prompt)
        self.identity = digest([repr(parts)]).hex()
        self.special_tokens = tuple(processor.tokenizer.all_special_tokens)
        (self._end_of_turn,) = self._count([processor.end_of_turn])
        # Few questions are asked about many regions, and rendering the chat template is slow.
        self._of_question = lru_cache(maxsize=65_536)(
            lambda question: self._count([self._processor.split_prompt(question)[1]])[0]
        )

    def of_questions(self, questions: Sequence[str]) -> list[int]:
        """Count, for each question, the tokens of a segment between its mask and its answer."""
        return [self._of_question(question) for question in questions]

    def of_answers(self, answers: Sequence[str]) -> list[int]:
        """Count the tokens of each answer with the end of its turn."""
        return [count + self._end_of_turn for count in self._count(answers)]

    def _count(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in self._processor.tokenizer(list(texts), add_special_tokens=False).input_ids]
