"""Stages that work on a unit as a whole, and image by image once a process has died with it.

What takes a process down can be any image of the unit. So the next process takes them one at a time, and gives up the
one that further processes die with; the others get their rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ureca.corpus.manifest import ManifestEntry
from ureca.curation.stages import ProposedImage, ProposedUnit, RowError
from ureca.dataset.attempts import Attempts

Image = TypeVar("Image", ManifestEntry, ProposedImage)

ProposeStage = Callable[[int, Sequence[ManifestEntry]], ProposedUnit]
"""From the number and the images of a unit to their masks."""


PiecewiseStage = Callable[[int, Sequence[ManifestEntry]], Iterator[ProposedUnit]]
"""The same piece by piece, each as soon as it is ready."""


def guarded(stage: ProposeStage, attempts: Attempts, images_per_piece: int | None = None) -> PiecewiseStage:
    """The stage that makes masks, of which no image can hold up the rest.

    Args:
        stage: that may die.
        attempts: of the stage.
        images_per_piece: None: the whole unit. Which images make which piece depends on nothing else: pieces that a
            process has made before it died are not asked for again.
    """

    def propose(number: int, entries: Sequence[ManifestEntry]) -> Iterator[ProposedUnit]:
        pieces = _pieces(entries, images_per_piece)
        key = _unit_key(number)
        deaths = attempts.deaths(key)
        with nullcontext() if deaths else attempts.attempt(key):
            for place, piece in enumerate(pieces):
                if deaths:
                    unit = _one_by_one(piece, partial(stage, number), "propose", attempts, deaths)
                else:
                    unit = stage(number, piece)
                yield replace(unit, piece=place, num_pieces=len(pieces))

    return propose


def _pieces(entries: Sequence[ManifestEntry], images_per_piece: int | None) -> list[Sequence[ManifestEntry]]:
    # Images of a Parquet file are read together: a row group for each of them would be read many times.
    if images_per_piece is None or any(entry.row is not None for entry in entries):
        return [entries]
    return [entries[start : start + images_per_piece] for start in range(0, len(entries), images_per_piece)]


def guarded_plant(
    unit: ProposedUnit, plant: Callable[[ProposedUnit], ProposedUnit], attempts: Attempts
) -> ProposedUnit:
    """Plant the trees of a unit, of which no image can hold up the rest."""
    key = _unit_key(unit.number, unit.piece)
    deaths = attempts.deaths(key)
    if not deaths:
        with attempts.attempt(key):
            return plant(unit)
    return _one_by_one(
        unit.images, lambda some: plant(replace(unit, images=tuple(some))), "tree", attempts, earlier=deaths
    )


def _unit_key(number: int, piece: int = 0) -> str:
    return f"unit {number}.{piece}\n"  # no image's id has a line's end at its end


def _one_by_one(
    images: Sequence[Image],
    work: Callable[[Sequence[Image]], ProposedUnit],
    stage: str,
    attempts: Attempts,
    earlier: int,
) -> ProposedUnit:
    """Work on images of which one may be guilty of some ``earlier`` deaths."""
    whole = work(())
    done: list[ProposedImage] = []
    seconds = dict(whole.seconds)
    for image in images:
        entry = image if isinstance(image, ManifestEntry) else image.entry
        if (reason := attempts.given_up(entry.image_id, earlier)) is not None:
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
