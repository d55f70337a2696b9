"""What texts, images and masks cost in tokens with a given processor; it agrees with ``ureca.training.packing``.

[from] How many tokens each image and each region costs, without reading any."""

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

Numbers = npt.NDArray[np.int64]


class TokenCosts(BaseModel):
    """Tokens that a packed row spends, apart from the texts of questions and answers.

    ``ureca.training.token_costs.costs_of`` has those of a processor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: NonNegativeInt
    """Of a prefix apart from its image tiles: system message, start and end of the image."""
    image_tile: NonNegativeInt
    """Of a tile of the image."""
    region: NonNegativeInt
    """Of a segment apart from mask tiles, question and answer."""
    mask_tile: NonNegativeInt
    """Of a tile of the mask."""
    one_mask_tile: bool = False
    """A mask is one tile, whatever the image is; otherwise it has as many as the image."""
    shared: bool = True
    """Regions share the image's tokens; otherwise each region pays for an image of its own."""
    tiles: NonNegativeInt | None = None
    """Tiles of every image that a region is shown as, where that does not follow from the image; None: it does."""

    def of_images(self, num_tiles: npt.NDArray[np.integer]) -> Numbers:
        """Tokens of the prefixes of images with so many tiles."""
        tiles = num_tiles.astype(np.int64) if self.tiles is None else np.full(num_tiles.shape, self.tiles, np.int64)
        return self.image + self.image_tile * tiles

    def of_segments(self, text_tokens: npt.NDArray[np.integer], num_tiles: npt.NDArray[np.integer]) -> Numbers:
        """Tokens of the segments of regions, whose images have so many tiles."""
        mask_tiles = np.ones_like(num_tiles, np.int64) if self.one_mask_tile else num_tiles.astype(np.int64)
        return self.region + self.mask_tile * mask_tiles + text_tokens


@dataclass(frozen=True, eq=False)
class SampleCosts:
    """What a plan needs to know of an index: numbers only, 4 bytes a region and about 16 an image.

    Attributes:
        first_regions: int64 [images + 1]: where the regions of each image begin in ``text_tokens``, and its length.
        text_tokens: int32 [regions]: tokens of the longest question that may be asked, and of the answer.
        num_tiles: uint8 [images, scales]: tiles at each scale of the size augmentation, thumbnail included.
        image_keys: uint64 [images]: hash of the image id, by which chance is drawn for an image.
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
        """Number of regions by image."""
        return np.diff(self.first_regions)


class TextTokens(Protocol):
    """Counts tokens of texts.

    Attributes:
        identity: differs where the counts may; part of an index's fingerprint.
        special_tokens: texts that no question and no answer may hold, since they are no text to the tokenizer.
    """

    identity: str
    special_tokens: tuple[str, ...]

    def of_questions(self, questions: Sequence[str]) -> list[int]:
        """Tokens of a segment from its mask's end to its answer, for each question."""
        ...

    def of_answers(self, answers: Sequence[str]) -> list[int]:
        """Tokens of each answer with the end of its turn."""
        ...


class ProcessorTextTokens:
    """Counts tokens as a processor's prompts have them.

    Args:
        processor: of the model that is trained.
    """

    def __init__(self, processor: UrecaProcessor) -> None:
        from ureca.training.packing import end_of_turn

        self._processor = processor
        vocabulary = sorted(processor.tokenizer.get_vocab().items())
        parts = (vocabulary, processor.chat_template, processor.region_prompt)
        self.identity = digest([repr(parts)]).hex()
        self.special_tokens = tuple(processor.tokenizer.all_special_tokens)
        (self._end_of_turn,) = self._count([end_of_turn(processor)])
        # Sources ask few questions of many regions, and templates are slow.
        self._of_question = lru_cache(maxsize=65_536)(self._count_question)

    def of_questions(self, questions: Sequence[str]) -> list[int]:
        """Tokens of a segment from its mask's end to its answer, for each question."""
        return [self._of_question(question) for question in questions]

    def of_answers(self, answers: Sequence[str]) -> list[int]:
        """Tokens of each answer with the end of its turn."""
        return [count + self._end_of_turn for count in self._count(answers)]

    def _count_question(self, question: str) -> int:
        (count,) = self._count([self._processor.split_prompt(question)[1]])
        return count

    def _count(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in self._processor.tokenizer(list(texts), add_special_tokens=False).input_ids]


def costs_of(processor: UrecaProcessor) -> TokenCosts:
    """What a packed row spends on images and masks with this processor."""
    beginning = processor.split_prompt(QUESTION)[0].replace(processor.image_token, processor.image_placeholders(0))
    prompt = processor.region_prompt
    with_mask = prompt == "mask"
    return TokenCosts(
        image=len(processor.tokenizer(beginning, add_special_tokens=False).input_ids),
        image_tile=processor.image_seq_length,
        region=2 if with_mask else 0,
        mask_tile=processor.num_mask_tokens if with_mask else 0,
        one_mask_tile=not processor.dynamic_mask,
        shared=shares_image(prompt),
        # A crop has a grid of its own, which only its pixels tell.
        tiles=processor.image_processor.max_tiles + 1 if prompt == "crop" else None,
    )
