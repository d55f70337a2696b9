"""On scenes truth and uniqueness are decided: which regions does a caption fit?"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from ureca.evaluation.measures import Measure, mean_of
from ureca.scenes import CaptionError, Scene, resolve

Resolution: TypeAlias = Literal["correct", "ambiguous", "wrong", "not_in_language"]
"""It fits its region and no other; it and others; not it (or nothing); or it is not of the language of scenes."""


def resolution(caption: str, region_id: int, scene: Scene) -> Resolution:
    """What a caption of a region is worth, by ``ureca.scenes.resolve``."""
    try:
        fitting = resolve(caption, scene)
    except CaptionError:
        return "not_in_language"
    if region_id not in fitting:
        return "wrong"
    return "correct" if len(fitting) == 1 else "ambiguous"


def resolution_measures(resolutions: Sequence[Resolution | None]) -> list[Measure]:
    """Shares of correct, ambiguous and wrong captions, and of those that are wrong for not being of the language.

    Args:
        resolutions: for each prediction; None where it is of no scene.
    """
    outcomes: tuple[tuple[str, tuple[Resolution, ...]], ...] = (
        ("Correct", ("correct",)),
        ("Ambiguous", ("ambiguous",)),
        ("Wrong", ("wrong", "not_in_language")),
        ("Not of the language", ("not_in_language",)),
    )
    return [
        mean_of(name, [None if found is None else float(found in counted) for found in resolutions])
        for name, counted in outcomes
    ]
