"""What writes captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ureca.curation.image import CurationImage


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
