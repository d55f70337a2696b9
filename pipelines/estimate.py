"""``--plan``: what a run would take, from some of its images, with nothing started and nothing written."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from pipelines.actors import RowStage
from pipelines.batch_run import BatchVerb
from pipelines.estimate_text import Sample, estimate_text
from pipelines.pools import Work, plan_pools
from pipelines.session import Cluster
from ureca.corpus.manifest import ManifestEntry
from ureca.corpus.selection import Selection, select
from ureca.curation.quarantine import ProposeStage
from ureca.curation.stages import ProposedUnit
from ureca.dataset import Output, UnitReport
from ureca.dataset.plan import new_images, unit_offsets
from ureca.errors import InputError
from ureca.mllm.counting import Questions
from ureca.schema import Dataset
from ureca.settings.batch import PlannableSettings
from ureca.settings.resources import ActorResources

Settings = TypeVar("Settings", bound=PlannableSettings)

_NO_IDS = pa.chunked_array([pa.array([], pa.string())])


@dataclass(frozen=True)
class Rehearsal:
    """How a verb goes through some images in this process.

    Attributes:
        propose: makes masks.
        prepare: what comes between masks and captions.
        write: makes rows; None: the model that makes them is not asked.
        questions: what ``write`` has asked a chat model, by stage.
        asks_model: it is the real one.
        engine_places: answers that the engine gives at a time, by number of actors, where that is known; None: there
            is no engine but ``write`` itself.
    """

    propose: ProposeStage
    prepare: Callable[[ProposedUnit], ProposedUnit]
    write: RowStage | None
    questions: Mapping[str, Questions]
    asks_model: bool
    engine_places: Callable[[int], int | None] | None


def estimate(verb: BatchVerb[Settings], settings: Settings, rehearsal: Rehearsal, stage: str) -> str:
    """Go through some images and say what all would take, as lines for people.

    Args:
        verb: that would be run.
        settings: of the verb.
        rehearsal: of the verb.
        stage: name of the stage of actors that makes rows.

    Raises:
        InputError: there is nothing to do.
    """
    planning = settings.planning
    manifest, num_to_do = _to_do(verb, settings)
    drawn = select(manifest, Selection(sample=planning.images), _NO_IDS)
    sample = asyncio.run(_go_through(drawn, rehearsal, verb.dataset, stage))
    num_units = len(unit_offsets(num_to_do, settings.images_per_unit)) - 1
    cluster = Cluster(planning.num_cpus or max(2, os.cpu_count() or 1), planning.num_gpus, may_grow=False)
    resources = settings.resources
    pools = plan_pools(resources, Work(num_units, num_to_do), cluster)
    names = [name for name, each in resources if isinstance(each, ActorResources)]
    actors = {name: pool.initial_size or 1 for name, pool in zip(names, pools, strict=True)}
    places = 0 if rehearsal.engine_places is None else rehearsal.engine_places(actors[stage])
    return estimate_text(sample, num_to_do, planning, actors, places)


def _to_do(verb: BatchVerb[Settings], settings: Settings) -> tuple[pa.Table, int]:
    """The images that are selected, and how many of them are not done."""
    output = Output(settings.output, verb.dataset)
    manifest = verb.list_input(settings)
    held = output.held_ids() if output.exists() and not settings.overwrite else _NO_IDS
    selected = select(manifest, settings.selection, held)
    num_new = new_images(selected, held).num_rows
    sizes = output.unit_sizes() if held.length() else {}
    num_missing = sum(sizes[unit] for unit in sizes.keys() - set(output.done_units()))
    if not num_new + num_missing:
        raise InputError(f"all {selected.num_rows} images are done: there is nothing to plan")
    return selected, num_new + num_missing


async def _go_through(manifest: pa.Table, rehearsal: Rehearsal, dataset: Dataset, stage: str) -> Sample:
    entries = [ManifestEntry.from_row(row) for row in manifest.to_pylist()]
    proposed = await asyncio.to_thread(rehearsal.propose, 0, entries)
    unit = await asyncio.to_thread(rehearsal.prepare, proposed)
    num_masks = sum(len(image.masks) for image in unit.images)
    seconds = {"propose": proposed.seconds.get("propose", 0.0) / len(entries)}
    if rehearsal.write is None:
        errors = Counter(f"{image.error.stage}:{image.error.kind}" for image in unit.images if image.error is not None)
        report = UnitReport(num_images=len(entries), num_failed=errors.total(), failures=dict(errors))
        return Sample(num_masks, report, seconds, {}, asked=False)
    started, started_cpu = time.monotonic(), time.process_time()
    rows, work = await rehearsal.write(unit)
    # What a process waits for its engine is the engine's time; where it is the engine itself, all time is its own.
    own_s = time.process_time() - started_cpu if rehearsal.engine_places else time.monotonic() - started
    seconds[stage] = own_s / len(entries)
    report = UnitReport.of_rows(rows, dataset) + work
    return Sample(num_masks, report, seconds, rehearsal.questions, asked=rehearsal.asks_model)
