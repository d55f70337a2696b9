"""Dry run of a batch command: what a run would take, from some of its images; nothing is started or written."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ureca.data.coco_annotations import attach_coco_file
from ureca.data.manifest import ManifestEntry, select
from ureca.data.masked import MaskedPartition, MaskStage
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport, new_images
from ureca.data.settings import ImageSelection
from ureca.errors import InputError
from ureca.llm.fake import RequestCounts
from ureca.ops.forecast import Calibrated, forecast, forecast_text
from ureca.ops.measured import Measured, Questions, kinds_asked, latency_quantiles_s, questions_of
from ureca.ops.simulator import Service
from ureca.pipelines.batch.actors import RowStage
from ureca.pipelines.batch.arrangement import EngineSlots, arrange
from ureca.pipelines.batch.graph import BatchCommand
from ureca.pipelines.settings import PlannableSettings, PlanningSettings
from ureca.schema import REGIONS_DATASET, Dataset, conform
from ureca.wording import quantity

_CHARACTERS_PER_TOKEN = 4.0
"""Typical of tokenizers for English text."""

Settings = TypeVar("Settings", bound=PlannableSettings)

_NO_IDS = pa.chunked_array([pa.array([], pa.string())])


@dataclass(frozen=True)
class DryRun:
    """The operators of a command, for a run over some images in this process.

    Attributes:
        generate: generates masks.
        prepare: prepares the images between masks and rows, such as by building trees.
        write: makes the rows; None: the model that makes them is not loaded.
        questions: questions that ``write`` has asked a chat model, by stage.
        asks_model: ``write`` asks the real model.
        engine: chat model that ``write`` waits for; None: there is none, or a fake one in this process.
        facts: further lines of the prediction: name and text of each.
    """

    generate: MaskStage
    prepare: Callable[[MaskedPartition], MaskedPartition]
    write: RowStage | None
    questions: Mapping[str, RequestCounts]
    asks_model: bool
    engine: EngineSlots | None
    facts: Sequence[tuple[str, str]] = ()


def with_gpus_of_this_machine(settings: Settings) -> Settings:
    """Return the settings of a run in this process, whose operators have no GPU where this machine has none."""
    resources: Any = settings.resources
    with_gpus = {name: operator for name, operator in resources if getattr(operator, "num_gpus", 0)}
    if not with_gpus or has_gpu():
        return settings
    without = {name: operator.model_copy(update={"num_gpus": 0.0}) for name, operator in with_gpus.items()}
    return settings.model_copy(update={"resources": resources.model_copy(update=without)})


def has_gpu() -> bool:
    """Return True if torch can use a GPU of this machine."""
    if find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


@dataclass(frozen=True)
class Sample:
    """Measurements of the sampled images.

    Attributes:
        num_masks: number of generated masks.
        report: report of the rows; without rows, of the errors.
        rows: rows that were made.
        seconds: mean seconds of one process for an image, by operator.
        pixel_bytes: mean bytes of a decoded image.
        mask_bytes: mean bytes of an image's masks as run lengths.
        questions: questions to the chat model, by stage.
        asked: the questions were answered by the model itself, so its tokens and times are in the report.
    """

    num_masks: int
    report: PartitionReport
    rows: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]
    pixel_bytes: float
    mask_bytes: float
    questions: Mapping[str, RequestCounts]
    asked: bool


def estimate(command: BatchCommand[Settings], settings: Settings, dry_run: DryRun) -> str:
    """Process a sample of the images, and render a prediction for all of them.

    Args:
        command: command that would be run.
        settings: settings of the command.
        dry_run: operators of the command.

    Raises:
        InputError: there is nothing to do.
    """
    planning, stage = settings.planning, command.row_actor.name
    manifest, num_to_do = _images_to_do(command, settings)
    drawn = select(manifest, ImageSelection(sample=planning.images), _NO_IDS)
    with TemporaryDirectory() as folder:
        drawn = attach_coco_file(drawn, folder, settings.listing.only_below)
        sample = asyncio.run(_process(drawn, dry_run, command.dataset, stage))
    engine = dry_run.engine or EngineSlots()
    measured = _measured(sample, settings, command.dataset, dry_run)
    num_steps = sum(len(image.kinds) - image.count(["wait"]) for image in measured.images) / len(measured.images)
    answer_s = measured.answer_s
    if planning.seconds_per_answer is not None:
        answer_s = (planning.seconds_per_answer,)
    service = Service(
        generate_s=measured.generate_s,
        tree_s=measured.tree_s,
        step_s=sample.seconds.get(stage, 0.0) / num_steps,
        answer_s=answer_s or (0.0,),
        calls_per_question=measured.calls_per_question,
    )
    arrangement = arrange(
        settings,
        stage,
        num_to_do,
        engine,
        pixels_per_image=measured.pixel_bytes / 3,
        num_cpus=planning.num_cpus or max(2, os.cpu_count() or 1),
        num_gpus=planning.num_gpus,
    )
    calibrated = Calibrated(service, startup_s=0.0)
    predicted = forecast(measured, calibrated, arrangement, num_to_do, settings.images_per_partition)
    counts = [
        ("images", f"{num_to_do} to do, estimated from {sample.report.num_images} of them; nothing is written"),
        *_regions(sample, num_to_do / sample.report.num_images),
        *_calls(sample, num_to_do / sample.report.num_images, planning),
        *dry_run.facts,
    ]
    if dry_run.write is None:
        counts.append(("not counted", "the time of the model, which --planning.ask-model measures"))
    elif measured.asked and not answer_s:
        counts.append(("not counted", "the engine's time, which is not known: set --planning.seconds-per-answer"))
    elif measured.asked and arrangement.engine_slots == float("inf"):
        counts.append(("not counted", "waiting for the engine: the number of its slots is not known"))
    return forecast_text(predicted, measured, calibrated, arrangement, counts)


def _images_to_do(command: BatchCommand[Settings], settings: Settings) -> tuple[pa.Table, int]:
    """Return the selected images, and how many of them are not done."""
    output = Output(settings.output, command.dataset)
    manifest = command.list_input(settings)
    held = output.held_ids() if output.exists() and not settings.overwrite else _NO_IDS
    selected = select(manifest, settings.selection, held)
    num_new = new_images(selected, held).num_rows
    sizes = output.partition_sizes() if held.length() else {}
    num_missing = sum(sizes[partition] for partition in sizes.keys() - set(output.done_partitions()))
    if not num_new + num_missing:
        raise InputError(f"{quantity(selected.num_rows, 'image')} of INPUT, all done: there is nothing to plan")
    return selected, num_new + num_missing


async def _process(manifest: pa.Table, dry_run: DryRun, dataset: Dataset, stage: str) -> Sample:
    entries = [ManifestEntry.from_row(row) for row in manifest.to_pylist()]
    masked = await asyncio.to_thread(dry_run.generate, 0, entries)
    started = time.monotonic()
    partition = await asyncio.to_thread(dry_run.prepare, masked)
    seconds = {
        "masks": masked.seconds.get("masks", 0.0) / len(entries),
        "tree": (time.monotonic() - started) / len(entries),
    }
    masks = [mask for image in partition.images for mask in image.masks]
    rows: Sequence[Mapping[str, Any]] = ()
    if dry_run.write is None:
        errors = Counter(
            f"{image.error.stage}:{image.error.kind}" for image in partition.images if image.error is not None
        )
        report = PartitionReport(num_images=len(entries), num_failed=errors.total(), failures=dict(errors))
    else:
        started, started_cpu = time.monotonic(), time.process_time()
        rows, work = await dry_run.write(partition)
        # The process waits for its engine, whose time is not its own; without an engine, all time is its own.
        own_s = time.process_time() - started_cpu if dry_run.engine is not None else time.monotonic() - started
        seconds[stage] = own_s / len(entries)
        report = PartitionReport.of_rows(rows, dataset) + work
    return Sample(
        num_masks=len(masks),
        report=report,
        rows=rows,
        seconds=seconds,
        pixel_bytes=3.0 * sum((each.height_px or 0) * (each.width_px or 0) for each in partition.images) / len(entries),
        mask_bytes=sum(len(mask.rle["counts"]) for mask in masks) / len(entries),
        questions=dry_run.questions,
        asked=dry_run.asks_model,
    )


def _measured(sample: Sample, settings: PlannableSettings, dataset: Dataset, dry_run: DryRun) -> Measured:
    """Convert a sample to the measurements that a simulation starts from."""
    dump = settings.model_dump(mode="json")
    num_images, num_calls = sample.report.num_images, sample.report.num_calls
    images = [questions_of(row) for row in sample.rows] if dataset is REGIONS_DATASET else []
    if not images:
        images = [Questions()]
        images[0].add("decode", [])
    asked = kinds_asked(dump) if dry_run.engine is not None else frozenset()
    num_questions = sum(image.count(asked) for image in images)
    stored_bytes = 0
    if sample.rows:
        buffer = pa.BufferOutputStream()
        pq.write_table(conform(sample.rows, dataset.schema), buffer, compression="zstd")
        stored_bytes = buffer.getvalue().size
    return Measured(
        settings=dump,
        num_images=num_images,
        num_calls=num_calls,
        images=images,
        asked=asked,
        calls_per_question=max(1.0, num_calls / num_questions) if num_questions else 1.0,
        prompt_tokens_per_call=sample.report.num_prompt_tokens / max(1, num_calls),
        new_tokens_per_call=sample.report.num_new_tokens / max(1, num_calls),
        answer_s=tuple(latency_quantiles_s(sample.report.latency_ms)) if sample.asked else (),
        generate_s=sample.seconds["masks"],
        tree_s=sample.seconds["tree"],
        rows_s=0.0,
        wall_s=0.0,
        pixel_bytes=sample.pixel_bytes,
        mask_bytes=sample.mask_bytes,
        regions_per_image=sample.report.num_regions / num_images,
        masks_per_image=sample.num_masks / num_images,
        stored_bytes=stored_bytes / num_images,
    )


def _regions(sample: Sample, times: float) -> Iterator[tuple[str, str]]:
    report = sample.report
    yield "masks", f"about {times * sample.num_masks:.0f} ({sample.num_masks / report.num_images:.1f} an image)"
    if report.num_regions:
        each = report.num_regions / report.num_images
        yield "captioned regions", f"about {times * report.num_regions:.0f} ({each:.1f} an image)"
    if report.failures:
        reasons = ", ".join(f"{number} x {reason}" for reason, number in sorted(report.failures.items()))
        yield "failures", f"about {quantity(round(times * report.num_failed), 'image')}; in the sample: {reasons}"


def _calls(sample: Sample, times: float, planning: PlanningSettings) -> Iterator[tuple[str, str]]:
    report, questions = sample.report, sample.questions
    num_calls = report.num_calls
    if num_calls:
        stages = ", ".join(f"{stage} {times * each.num_requests:.0f}" for stage, each in questions.items())
        num_retries = num_calls - sum(each.num_requests for each in questions.values())
        retried = f", retried {times * num_retries:.0f}" if num_retries else ""
        yield "model calls", f"about {times * num_calls:.0f}: {stages}{retried}"
    characters = sum(each.num_characters for each in questions.values())
    pixels = sum(each.num_pixels for each in questions.values())
    prompt_tokens: float = report.num_prompt_tokens
    counted_as = "as the model counts them"
    if not sample.asked:
        prompt_tokens = characters / _CHARACTERS_PER_TOKEN + pixels / planning.pixels_per_token
        counted_as = f"{planning.pixels_per_token:g} pixels or {_CHARACTERS_PER_TOKEN:g} characters a token"
    if num_calls:
        yield "tokens in", f"about {times * prompt_tokens:.0f} ({counted_as})"
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
            f"at most {times * most:.0f}, if all answers are of maximum length; set --planning.new-tokens-per-answer",
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
