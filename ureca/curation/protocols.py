"""What the curation finds out about a region, and what becomes of an answer that there is not.

[from] An image under curation: what annotators and embedders look at.
[from] What writes captions.
[from] What tells look-alikes: a vector a region."""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ureca.errors import AnswerError
from ureca.masks.mask import Mask
from ureca.masks.tree import MaskTree
from ureca.masks.views import Views


@dataclass(frozen=True)
class CurationImage:
    """Pixels, masks, their tree, and the views of them.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: every mask of the image, by id.
        tree: over all of them.
        main_objects: ids of the top-level regions that are captioned.
        regions: ids of everything that is captioned, parents before children, in the order of the tree. The parent of
            a region that is no main object is a region too.
        views: renders what an MLLM is shown.
    """

    pixels: npt.NDArray[np.uint8]
    masks: Mapping[int, Mask]
    tree: MaskTree
    main_objects: tuple[int, ...]
    regions: tuple[int, ...]
    views: Views


@dataclass(frozen=True, slots=True)
class LookAlike:
    """Another region of the image that could be taken for the one being captioned."""

    region_id: int
    caption: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a caption is true of its region, and why."""

    accepted: bool
    reason: str


Choice = int | Literal["none", "several"]
"""What a listener takes a caption for: the id of a region, none of those it was shown, or several of them."""


class Annotator(Protocol):
    """Writes and judges the captions of regions (paper, stages 2 to 4 and verification).

    Every method raises ``AnswerError`` when it has no usable answer; the region then fails with the error's kind.
    Methods of one annotator run concurrently for many regions and images.
    """

    name: str
    """What it is, with its version or model, for the provenance of a row."""

    async def short_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        parent_caption: str | None,
        sibling_captions: Sequence[str],
    ) -> str:
        """One sentence that names a region with its attributes and its place or function (stage 2).

        Args:
            image: the image that has the region.
            region_id: one of ``image.regions``.
            parent_caption: short caption of the parent; None for a main object.
            sibling_captions: short captions of the siblings captioned before, elder first.
        """
        ...

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        """One paragraph that composes a region's short caption with its children's detailed ones (stage 3).

        Args:
            image: the image that has the region.
            region_id: one of ``image.regions`` that has children among them.
            short_caption: the region's own.
            child_captions: detailed captions of its children, in the order of the tree; at least one.
        """
        ...

    async def unique_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        caption: str,
        lookalikes: Sequence[LookAlike],
        confused_with: Choice | None = None,
    ) -> str:
        """The caption rewritten so that it fits the region and none of its look-alikes (stage 4).

        Args:
            image: the image that has the region.
            region_id: one of ``image.regions``.
            caption: the region's caption at this time: the detailed one, or the one written in the round before.
            lookalikes: at least one; with their captions at this time; those with an equal caption first, then the
                most alike.
            confused_with: what a listener took ``caption`` for, where one did not take it for the region; if it is a
                region, it is the first of ``lookalikes``.
        """
        ...

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        """Judge whether a caption is true of the region (paper: a stronger MLLM, test set only)."""
        ...


@dataclass(frozen=True, slots=True)
class RegionCrop:
    """The crop of a region's box.

    Attributes:
        pixels: uint8 RGB [h, w, 3], everything outside the mask blurred.
        mask: bool [h, w], at least one pixel inside.
    """

    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]


class Embedder(Protocol):
    """Embeds regions so that the cosine of two tells how alike they look. Built once an actor."""

    name: str
    """What it is, with its version or checkpoint, for the provenance of a row."""

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, float32 [len(crops), D]; the vector of a crop does not depend on the others."""
        ...


Answer = TypeVar("Answer")


@dataclass(slots=True)
class RegionCaptions:
    """What the stages found out about one region; a caption is None where its stage failed or was not reached."""

    short_caption: str | None = None
    detailed_caption: str | None = None
    caption: str | None = None
    lookalike_ids: list[int] = field(default_factory=list)
    listener_choice: Choice | None = None
    """What the listener took ``caption`` for; None: it was not asked, or had no usable answer."""
    listener_rounds: int = 0
    """Times the region's captions were put before the listener."""
    verdict: Verdict | None = None
    failure: str | None = None
    """``<stage>:<kind>`` of the first answer that was unusable."""

    async def answered(self, stage: str, answer: Awaitable[Answer]) -> Answer | None:
        """Wait for an answer; None, and the region has failed, where there is no usable one."""
        try:
            return await answer
        except AnswerError as error:
            self.failure = self.failure or f"{stage}:{error.kind}"
            return None


def captions_now(regions: Mapping[int, RegionCaptions]) -> dict[int, str]:
    """The captions of the regions that have one, by id."""
    return {id: region.caption for id, region in regions.items() if region.caption is not None}


async def at_once(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of them side by side; the first error ends all."""
    async with asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)
