"""Stages that work on a unit as a whole, and image by image once a process has died with it.

What takes a process down can be any image of the unit. So the next process takes them one at a time, and gives up the
one that further processes die with; the others get their rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ureca.corpus.manifest import ManifestEntry
from ureca.curation.stages import ProposedImage, ProposedUnit, RowError
from ureca.dataset.attempts import Attempts

Image = TypeVar("Image", ManifestEntry, ProposedImage)

ProposeStage = Callable[[int, Sequence[ManifestEntry]], ProposedUnit]
"""From the number and the images of a unit to their masks."""


def guarded(stage: ProposeStage, attempts: Attempts) -> ProposeStage:
    """The stage that makes masks, of which no image can hold up the rest."""

    def propose(number: int, entries: Sequence[ManifestEntry]) -> ProposedUnit:
        return _guard(number, entries, lambda some: stage(number, some), "propose", attempts)

    return propose


def guarded_plant(
    unit: ProposedUnit, plant: Callable[[ProposedUnit], ProposedUnit], attempts: Attempts
) -> ProposedUnit:
    """Plant the trees of a unit, of which no image can hold up the rest."""
    return _guard(unit.number, unit.images, lambda some: plant(replace(unit, images=tuple(some))), "tree", attempts)


def _guard(
    number: int,
    images: Sequence[Image],
    work: Callable[[Sequence[Image]], ProposedUnit],
    stage: str,
    attempts: Attempts,
) -> ProposedUnit:
    unit_key = f"unit {number}\n"  # no image's id has a line's end at its end
    deaths = attempts.deaths(unit_key)
    if not deaths:
        with attempts.attempt(unit_key):
            return work(images)
    whole = work(())
    done: list[ProposedImage] = []
    seconds = dict(whole.seconds)
    for image in images:
        entry = image if isinstance(image, ManifestEntry) else image.entry
        if (reason := attempts.given_up(entry.image_id, earlier=deaths)) is not None:
            done.append(_failed(image, RowError.of(stage, reason)))
            continue
        with attempts.attempt(entry.image_id):
            one = work([image])
        done += one.images
        seconds[stage] += one.seconds[stage] - whole.seconds[stage]
    return replace(whole, images=tuple(done), seconds=seconds)


def _failed(image: ManifestEntry | ProposedImage, error: RowError) -> ProposedImage:
    if isinstance(image, ManifestEntry):
        return ProposedImage(image, error=error)
    return replace(image, masks=(), parents={}, error=error)
