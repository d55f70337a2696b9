"""Captions that several regions of an image share, or nearly share."""

import unicodedata
from collections.abc import Sequence
from itertools import combinations

from pydantic import BaseModel, ConfigDict, Field

from ureca.curation.lookalikes import equal_captions
from ureca.errors import SettingsError
from ureca.evaluation.measures import Measure, mean_of
from ureca.evaluation.predictions import Prediction, by_image


class DuplicateSettings(BaseModel):
    """When two captions count as nearly the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    near_similarity: float = Field(
        default=0.9, gt=0, le=1, description="share of words in common, in the same order, from which on they do"
    )


def measure_duplicates(predictions: Sequence[Prediction], settings: DuplicateSettings) -> list[Measure]:
    """Rates of regions whose caption another region of the same image has too, and nearly has.

    Two captions are the same but for case, spaces and full stops at the end (as in the curation's uniqueness stage).
    They are nearly the same if 2 c / (m + n) is at least ``near_similarity``, where m and n are their numbers of words
    (letters and digits, without regard to case) and c is the most that both have in the same order. Blank captions
    single out nothing: each counts as shared, even alone.
    """
    shared, nearly = [0.0] * len(predictions), [0.0] * len(predictions)
    for places in by_image(predictions).values():
        captions = {place: predictions[place].caption for place in places}
        blank = {place for place in places if predictions[place].is_blank}
        equal = {*equal_captions(captions)} | blank
        for place in equal:
            shared[place] = 1.0
        for place in equal | _near(captions, settings.near_similarity):
            nearly[place] = 1.0
    remark = f"Near-duplicates have at least {settings.near_similarity:g} of their words in common, in order."
    return [mean_of("Duplicates", shared), mean_of("Near-duplicates", nearly, (remark,))]


def _near(captions: dict[int, str], threshold: float) -> set[int]:
    try:
        from rapidfuzz.distance import Indel
    except ImportError as error:
        raise SettingsError(
            f"near-duplicates need the package '{error.name}', which is not installed: "
            "pip install 'ureca-ray[evaluate]'"
        ) from error
    words = {place: _words(caption) for place, caption in captions.items()}
    found: set[int] = set()
    for one, other in combinations(words, 2):
        num_words = len(words[one]) + len(words[other])
        most_apart = int((1 - threshold) * num_words + 1e-9)
        if words[one] and Indel.distance(words[one], words[other], score_cutoff=most_apart) <= most_apart:
            found |= {one, other}
    return found


def _words(caption: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", caption).casefold()
    return "".join(letter if letter.isalnum() else " " for letter in folded).split()
