"""Protocols of the curation's components, and the data that they exchange."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ureca.masks.mask import Mask
from ureca.masks.tree import MaskTree
from ureca.masks.views import Views

Choice = int | Literal["none", "several"]
"""A listener's answer: the id of the region that a caption fits, none of the regions shown, or several of them."""


@dataclass(frozen=True)
class CurationImage:
    """An image under curation.

    Attributes:
        pixels: uint8 RGB [H, W, 3].
        masks: all masks of the image, by id.
        tree: mask tree of all masks.
        main_objects: ids of the top-level regions that are captioned.
        regions: ids of all regions that are captioned, parents before children, in the order of the tree. The parent
            of a region that is not a main object is a region, too.
        views: renderer of the views for chat models.
    """

    pixels: npt.NDArray[np.uint8]
    masks: Mapping[int, Mask]
    tree: MaskTree
    main_objects: tuple[int, ...]
    regions: tuple[int, ...]
    views: Views


@dataclass(frozen=True, slots=True)
class LookAlike:
    """Another region of the image that could be mistaken for the captioned one."""

    region_id: int
    caption: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Judgement of a caption, with its reason."""

    accepted: bool
    reason: str


class Annotator(Protocol):
    """Writes and judges captions of regions (paper, stages 2 to 4 and verification).

    Every method raises ``AnswerError`` when it has no usable answer: a region without a short caption fails with the
    error's kind, any other one keeps its last caption and verdict. The kind ``too_long`` means that the question
    exceeds the context of the model: it is asked again with shorter captions of other regions. The methods of one
    annotator run concurrently for many regions and images.
    """

    name: str
    """Name with version or model, for the provenance of a row."""

    async def short_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        parent_caption: str | None,
        sibling_captions: Sequence[str],
    ) -> str:
        """Write one sentence that names a region with its attributes and its place or function (stage 2).

        Args:
            image: image of the region.
            region_id: id of one of ``image.regions``.
            parent_caption: short caption of the parent; None for a main object.
            sibling_captions: short captions of the siblings captioned before, the nearest in place last.
        """
        ...

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        """Write one paragraph that composes a region's short caption with its children's detailed ones (stage 3).

        Args:
            image: image of the region.
            region_id: id of one of ``image.regions`` that has children among them.
            short_caption: short caption of the region.
            child_captions: detailed captions of its children, or short ones if those were too long for the model, the
                largest child first; at least one.
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
        """Rewrite a caption so that it fits the region and none of its look-alikes (stage 4).

        Called for regions with look-alikes or with the caption of another region, and again while captions are equal;
        regions whose captions are equal after all rounds fail.

        Args:
            image: image of the region.
            region_id: id of one of ``image.regions``.
            caption: current caption of the region: the detailed one, or that of the previous round.
            lookalikes: look-alikes with their current captions, at least one; those with an equal caption first, then
                the most similar ones.
            confused_with: answer of a listener that did not choose the region by ``caption``; a region is the first of
                ``lookalikes``. None: no listener has mistaken the caption.
        """
        ...

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        """Judge if a caption is true of the region (paper: by a stronger MLLM, for the test set only).

        Called on the annotator of ``verification`` only, which need not be the one that wrote the caption.

        Args:
            image: image of the region.
            region_id: id of one of ``image.regions``.
            caption: final caption of the region, which a listener, if there is one, has not rejected.
        """
        ...


class Listener(Protocol):
    """Chooses the region that a caption fits, for many captions concurrently on one event loop."""

    name: str
    """Name with version or model, for the provenance of a row."""

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
        """Choose the region that a caption fits.

        Args:
            views: views of the image.
            candidates: ids of the regions to choose from; the choice does not depend on their order.
            caption: caption of one of them, or of another region.
            shuffle: number of the shuffle, from 0: a listener that is shown numbers gives each candidate another one
                than in other shuffles, as long as there are numbers left.

        Returns:
            One of the candidates, ``"none"`` or ``"several"``.

        Raises:
            AnswerError: there is no usable answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class RegionCrop:
    """Crop of a region's box.

    Attributes:
        pixels: uint8 RGB [h, w, 3], blurred outside the mask.
        mask: bool [h, w], with at least one pixel.
    """

    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]


class Embedder(Protocol):
    """Embeds regions so that the cosine of two embeddings measures how similar the regions look.

    An attribute ``crop_side_px``, if there is one, is the longest side of the crops that it gets, in pixels, instead
    of 448.
    """

    name: str
    """Name with version or checkpoint, for the provenance of a row."""

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        """Return embeddings of length 1, float32 [len(crops), D]; each depends on its own crop only."""
        ...


@runtime_checkable
class RegionEmbedder(Embedder, Protocol):
    """Embedder that measures regions in their image: it needs no crops of them, and may share what others measured."""

    def embed_regions(self, image: CurationImage, region_ids: Sequence[int]) -> Sequence[npt.NDArray[np.float32]]:
        """Return factors of the regions' embeddings, float32 [len(region_ids), D] each, with rows of length 1.

        The cosine of two regions is the product of the cosines of their factors.
        """
        ...
