"""Waiting time of images whose masks are ready, with slow and uneven masks: whole partitions against chunks.

Run as ``python -m tests.pipelines.measure_chunks``. Two mask generators take 0.5 s an image on average, from 0.2 s to
2 s; two annotators have room for 16 images each. Both ways are run one after the other on one Ray session.
"""

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.drawn import write_corpus
from tests.pipelines.test_chunks import NotingCurateActor, notes_of
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedPartition, MaskStage
from ureca.pipelines.batch.session import shared_session
from ureca.pipelines.curate import CURATE, build_mask_stage, curate
from ureca.pipelines.curate_settings import CurateSettings

NUM_IMAGES, IMAGES_PER_PARTITION = 128, 16
_SECONDS = (0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.4, 0.4, 0.7, 2.0)


def build_slow_mask_stage(settings: CurateSettings) -> MaskStage:
    """Masks that take their time, and a note when those of an image are made."""
    stage = build_mask_stage(settings)

    def generate(number: int, entries: Sequence[ManifestEntry]) -> MaskedPartition:
        for entry in entries:
            time.sleep(random.Random(entry.image_id).choice(_SECONDS))
            (notes_of(settings) / f"made-{entry.image_id}").touch()
        return stage(number, entries)

    return generate


def measure(folder: Path, images_per_chunk: int | None) -> dict[str, float]:
    """Curate, and read the notes."""
    resources = {
        "masks": {"num_actors": 2, "images_per_chunk": images_per_chunk},
        "curate": {"num_actors": 2, "images_in_flight": 16},
    }
    settings = CurateSettings(
        input=str(folder / "in"),
        output=str(folder / f"{images_per_chunk}" / "out"),
        listing={"annotations": "beside"},
        masks={"kind": "annotations"},
        annotator={"kind": "prompted"},
        mllm={"kind": "standin", "seconds_per_answer": 0.1},
        images_per_partition=IMAGES_PER_PARTITION,
        resources=resources,
    )
    notes_of(settings).mkdir(parents=True)
    command = replace(CURATE, build_mask_stage=build_slow_mask_stage, row_actor=NotingCurateActor)
    curate(settings, command=command)
    made, begun = (
        {path.name.removeprefix("made-"): path.stat().st_mtime for path in notes_of(settings).glob(pattern)}
        for pattern in ("made-*", "img_*")
    )
    first = min(made.values())
    waits = np.array([begun[id] - made[id] for id in made])
    pauses = np.diff(sorted(begun.values()))
    return {
        "first image begun, after its masks": min(begun.values()) - first,
        "an image waits, mean": float(waits.mean()),
        "an image waits, longest": float(waits.max()),
        "longest time in which none was begun": float(pauses.max()),
        "from the first masks to the end": max(part.stat().st_mtime for part in Path(settings.output).rglob("part-*"))
        - first,
    }


def main() -> None:
    """Measure both, and print them side by side."""
    with tempfile.TemporaryDirectory() as name, shared_session():
        folder = Path(name)
        write_corpus(folder / "in", NUM_IMAGES)
        figures: dict[str, dict[str, Any]] = {
            f"partitions of {IMAGES_PER_PARTITION}": measure(folder, IMAGES_PER_PARTITION),
            "one by one": measure(folder, 1),
        }
    print(f"| seconds | {' | '.join(figures)} |\n|---|{'---|' * len(figures)}")
    for what in next(iter(figures.values())):
        print(f"| {what} | {' | '.join(f'{of[what]:.1f}' for of in figures.values())} |")


if __name__ == "__main__":
    main()
