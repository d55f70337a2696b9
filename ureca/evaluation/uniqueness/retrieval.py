"""Self-retrieval: whether a caption leads an image-text encoder to its own region, among those of its image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ureca.evaluation.measures import Measure, mean_of
from ureca.evaluation.uniqueness.encoders import ImageTextEncoder, Vectors

_EQUAL = 1e-5
"""Cosines that are nearer than this are equal: the same crop in another batch gives another last digit."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Where a caption's own region came in.

    Regions that fit equally well come in any order: the values are their means over all orders.

    Attributes:
        is_first: 1 where its own region fits best, 0 where another does, 1 / k where k regions do equally.
        reciprocal_rank: 1 / place of its own region.
        num_candidates: regions of the image, its own among them.
    """

    is_first: float
    reciprocal_rank: float
    num_candidates: int


def retrieve(
    captions: Sequence[str], crops: Sequence[npt.NDArray[np.uint8]], encoder: ImageTextEncoder
) -> list[Retrieved | None]:
    """Find each caption's region among all regions of one image.

    Args:
        captions: one a region; a blank one finds nothing.
        crops: of the same regions, uint8 RGB [h, w, 3]. ``Views.crop`` has the rest of the image blurred, so that
            what is shown of two nested regions differs.
        encoder: of both.

    Returns:
        None for all of them where the image has only one region: there is nothing to be told apart.
    """
    if len(captions) != len(crops):
        raise ValueError(f"{len(captions)} captions do not fit {len(crops)} crops")
    if len(crops) < 2:
        return [None] * len(crops)
    spoken = [place for place, caption in enumerate(captions) if caption.strip()]
    found: list[Retrieved | None] = [Retrieved(0.0, 0.0, len(crops))] * len(crops)
    if spoken:
        images = encoder.encode_images(crops)
        texts = encoder.encode_texts([captions[place] for place in spoken])
        for place, row in zip(spoken, texts @ images.T, strict=True):
            found[place] = _place(row, place)
    return found


def _place(cosines: Vectors, own: int) -> Retrieved:
    num_better = int((cosines > cosines[own] + _EQUAL).sum())
    num_equal = int((np.abs(cosines - cosines[own]) <= _EQUAL).sum())
    ranks = np.arange(num_better + 1, num_better + num_equal + 1)
    return Retrieved(0.0 if num_better else 1 / num_equal, float((1 / ranks).mean()), len(cosines))


def retrieval_measures(
    found: Sequence[Retrieved | None], encoder_name: str, *, of_references: Sequence[Retrieved | None] | None = None
) -> list[Measure]:
    """R@1 and MRR of captions and, where it was found out, R@1 of the reference captions.

    Args:
        found: for each prediction; None where a region does not count.
        encoder_name: for the reader.
        of_references: the same for a reference caption of each, if there is one.
    """
    counted = [item for item in found if item is not None]
    chance = np.mean([1 / item.num_candidates for item in counted]) if counted else 0
    remark = f"Retrieval: {encoder_name}, among the regions of an image; by chance R@1 would be {100 * chance:.1f} %."
    measures = [
        mean_of("Retrieval R@1", [None if item is None else item.is_first for item in found], (remark,)),
        mean_of("Retrieval MRR", [None if item is None else item.reciprocal_rank for item in found]),
    ]
    if of_references is not None:
        firsts = [None if item is None else item.is_first for item in of_references]
        measures.append(mean_of("Retrieval ceiling", firsts))
    return measures
