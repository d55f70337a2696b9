"""``--plan``: what a run would take, from some of its images, with nothing started and nothing written.

[from] What some images took, and what all would take, as lines for people."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from ureca.data.manifest import ImageSelection, ManifestEntry, select
from ureca.data.masked import MaskedPartition, MaskStage
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport, new_images, partition_offsets
from ureca.errors import InputError
from ureca.llm.fake import RequestCounts
from ureca.llm.load import latencies_s
from ureca.ops.status import duration
from ureca.pipelines.batch.actors import RowStage
from ureca.pipelines.batch.resources import Work, plan_pools
from ureca.pipelines.batch.runner import BatchCommand
from ureca.pipelines.batch.session import Cluster
from ureca.pipelines.settings import ActorResources, PlannableSettings, PlanningSettings
from ureca.schema import Dataset

_CHARACTERS_PER_TOKEN = 4.0
"""About as many as tokenizers take English text by."""


@dataclass(frozen=True)
class Sample:
    """What some images took.

    Attributes:
        num_masks: that were proposed.
        report: of their rows; without those, of their errors.
        seconds: of one process an image, by stage of actors.
        questions: to the chat model, by stage.
        asked: the model itself was asked: its tokens and times are in the report.
    """

    num_masks: int
    report: PartitionReport
    seconds: Mapping[str, float]
    questions: Mapping[str, RequestCounts]
    asked: bool


def estimate_text(
    sample: Sample, num_to_do: int, planning: PlanningSettings, actors: Mapping[str, int], engine_slots: int | None
) -> str:
    """Lines with names and values.

    Args:
        sample: of the images.
        num_to_do: images in all.
        planning: what is known beside.
        actors: by stage.
        engine_slots: answers that the engine gives at a time; None: nobody has said; 0: there is no engine.
    """
    times = num_to_do / sample.report.num_images
    rows = [
        ("images", f"{num_to_do} to do, estimated from {sample.report.num_images} of them; nothing is written"),
        *_regions(sample, times),
        *_calls(sample, times, planning),
        *_time(sample, num_to_do, planning, actors, engine_slots),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def _regions(sample: Sample, times: float) -> Iterator[tuple[str, str]]:
    report = sample.report
    yield "masks", f"about {times * sample.num_masks:.0f} ({sample.num_masks / report.num_images:.1f} an image)"
    if report.num_regions:
        each = report.num_regions / report.num_images
        yield "captioned regions", f"about {times * report.num_regions:.0f} ({each:.1f} an image)"
    if report.failures:
        reasons = ", ".join(f"{number} x {reason}" for reason, number in sorted(report.failures.items()))
        yield "failures", f"about {times * report.num_failed:.0f} images; of those looked at: {reasons}"


def _calls(sample: Sample, times: float, planning: PlanningSettings) -> Iterator[tuple[str, str]]:
    report, questions = sample.report, sample.questions
    num_calls = report.num_calls
    if num_calls:
        stages = ", ".join(f"{stage} {times * each.num_requests:.0f}" for stage, each in questions.items())
        again = num_calls - sum(each.num_requests for each in questions.values())
        yield (
            "model calls",
            f"about {times * num_calls:.0f}: {stages}" + (f", again {times * again:.0f}" if again else ""),
        )
    characters = sum(each.num_characters for each in questions.values())
    pixels = sum(each.num_pixels for each in questions.values())
    prompt_tokens: float = report.num_prompt_tokens
    said = "as the model counts them"
    if not sample.asked:
        prompt_tokens = characters / _CHARACTERS_PER_TOKEN + pixels / planning.pixels_per_token
        said = f"{planning.pixels_per_token:g} pixels or {_CHARACTERS_PER_TOKEN:g} characters a token"
    if num_calls:
        yield "tokens in", f"about {times * prompt_tokens:.0f} ({said})"
    new_tokens: float | None = None
    if sample.asked:
        new_tokens = report.num_new_tokens
    elif planning.new_tokens_per_answer is not None:
        new_tokens = num_calls * planning.new_tokens_per_answer
    if new_tokens:
        yield "tokens out", f"about {times * new_tokens:.0f}"
    elif num_calls:
        most = sum(each.max_new_tokens for each in questions.values())
        yield (
            "tokens out",
            f"at most {times * most:.0f}, if each answer had all it may; --planning.new-tokens-per-answer says better",
        )
    yield from _price(times * prompt_tokens, None if new_tokens is None else times * new_tokens, planning)


def _price(prompt_tokens: float, new_tokens: float | None, planning: PlanningSettings) -> Iterator[tuple[str, str]]:
    in_price, out_price = planning.prompt_token_price, planning.new_token_price
    parts = []
    if in_price is not None:
        parts.append(("in", prompt_tokens * in_price / 1e6))
    if out_price is not None and new_tokens is not None:
        parts.append(("out", new_tokens * out_price / 1e6))
    if parts:
        yield "price", " + ".join(f"{price:.2f} ({what})" for what, price in parts)


def _time(
    sample: Sample,
    num_to_do: int,
    planning: PlanningSettings,
    actors: Mapping[str, int],
    engine_slots: int | None,
) -> Iterator[tuple[str, str]]:
    parts = {
        f"{stage} ({actors[stage]} actors, {seconds:.3g} s an image)": num_to_do * seconds / actors[stage]
        for stage, seconds in sample.seconds.items()
    }
    calls = num_to_do * sample.report.num_calls / sample.report.num_images
    each_s = _seconds_per_answer(sample, planning)
    unknown = ""
    if calls and engine_slots is None:
        unknown = "; how many answers the engine gives at a time is not known"
    elif calls and engine_slots and each_s is None:
        unknown = "; the engine's time is not known, which --planning.seconds-per-answer says"
    elif calls and engine_slots and each_s is not None:
        parts[f"engine ({engine_slots} answers at a time, {each_s:.3g} s each)"] = calls * each_s / engine_slots
    for name, seconds in parts.items():
        yield "time", f"{duration(seconds)} {name}"
    if parts:
        longest = max(parts, key=lambda name: parts[name])
        yield (
            "time in all",
            f"about {duration(parts[longest])}, as {longest.split()[0]} sets the pace, and the start{unknown}",
        )


def _seconds_per_answer(sample: Sample, planning: PlanningSettings) -> float | None:
    if planning.seconds_per_answer is not None:
        return planning.seconds_per_answer
    if not sample.asked or not sample.report.latency_ms:
        return None
    latencies = list(latencies_s(sample.report.latency_ms))
    return sum(seconds * number for seconds, number in latencies) / sum(number for _, number in latencies)


Settings = TypeVar("Settings", bound=PlannableSettings)

_NO_IDS = pa.chunked_array([pa.array([], pa.string())])


@dataclass(frozen=True)
class DryRun:
    """How a verb goes through some images in this process.

    Attributes:
        propose: makes masks.
        prepare: what comes between masks and captions.
        write: makes rows; None: the model that makes them is not asked.
        questions: what ``write`` has asked a chat model, by stage.
        asks_model: it is the real one.
        engine_slots: answers that the engine gives at a time, by number of actors, where that is known; None: there
            is no engine but ``write`` itself.
    """

    generate: MaskStage
    prepare: Callable[[MaskedPartition], MaskedPartition]
    write: RowStage | None
    questions: Mapping[str, RequestCounts]
    asks_model: bool
    engine_slots: Callable[[int], int | None] | None


def estimate(command: BatchCommand[Settings], settings: Settings, dry_run: DryRun, stage: str) -> str:
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
    manifest, num_to_do = _to_do(command, settings)
    drawn = select(manifest, ImageSelection(sample=planning.images), _NO_IDS)
    sample = asyncio.run(_go_through(drawn, dry_run, command.dataset, stage))
    num_partitions = len(partition_offsets(num_to_do, settings.images_per_partition)) - 1
    cluster = Cluster(planning.num_cpus or max(2, os.cpu_count() or 1), planning.num_gpus, may_grow=False)
    resources = settings.resources
    pools = plan_pools(resources, Work(num_partitions, num_to_do), cluster)
    names = [name for name, each in resources if isinstance(each, ActorResources)]
    actors = {name: pool.initial_size or 1 for name, pool in zip(names, pools, strict=True)}
    slots = 0 if dry_run.engine_slots is None else dry_run.engine_slots(actors[stage])
    return estimate_text(sample, num_to_do, planning, actors, slots)


def _to_do(command: BatchCommand[Settings], settings: Settings) -> tuple[pa.Table, int]:
    """The images that are selected, and how many of them are not done."""
    output = Output(settings.output, command.dataset)
    manifest = command.list_input(settings)
    held = output.held_ids() if output.exists() and not settings.overwrite else _NO_IDS
    selected = select(manifest, settings.selection, held)
    num_new = new_images(selected, held).num_rows
    sizes = output.partition_sizes() if held.length() else {}
    num_missing = sum(sizes[partition] for partition in sizes.keys() - set(output.done_partitions()))
    if not num_new + num_missing:
        raise InputError(f"all {selected.num_rows} images are done: there is nothing to plan")
    return selected, num_new + num_missing


async def _go_through(manifest: pa.Table, dry_run: DryRun, dataset: Dataset, stage: str) -> Sample:
    entries = [ManifestEntry.from_row(row) for row in manifest.to_pylist()]
    masked = await asyncio.to_thread(dry_run.generate, 0, entries)
    partition = await asyncio.to_thread(dry_run.prepare, masked)
    num_masks = sum(len(image.masks) for image in partition.images)
    seconds = {"masks": masked.seconds.get("masks", 0.0) / len(entries)}
    if dry_run.write is None:
        errors = Counter(
            f"{image.error.stage}:{image.error.kind}" for image in partition.images if image.error is not None
        )
        report = PartitionReport(num_images=len(entries), num_failed=errors.total(), failures=dict(errors))
        return Sample(num_masks, report, seconds, {}, asked=False)
    started, started_cpu = time.monotonic(), time.process_time()
    rows, work = await dry_run.write(partition)
    # What a process waits for its engine is the engine's time; where it is the engine itself, all time is its own.
    own_s = time.process_time() - started_cpu if dry_run.engine_slots else time.monotonic() - started
    seconds[stage] = own_s / len(entries)
    report = PartitionReport.of_rows(rows, dataset) + work
    return Sample(num_masks, report, seconds, dry_run.questions, asked=dry_run.asks_model)
