"""Validation while training: the loss on other images, and captions of the same few regions."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ureca.model.captioner import RegionCaptioner
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.data import PackingTask, packed_micro_batches
from ureca.pipelines.training.engine import Engine
from ureca.pipelines.training.run_folder import RunFolder
from ureca.pipelines.training.step import Inputs, gather, sum_figures
from ureca.training.augmentation import AugmentationSettings
from ureca.training.index import TrainingIndex
from ureca.training.packing import PackedMicroBatch
from ureca.training.phases import train_mode
from ureca.training.sampler import RunPlan
from ureca.training.token_costs import costs_of
from ureca.training.validation import caption_shown, score_captions, shown_regions


class Validation:
    """Validates a model again and again on the same samples. All methods are collective.

    Args:
        settings: of the verb.
        run: its folder, with the index of the validation's samples.
        model: that is trained.
        processor: of the model.
        engine: that trains it.
        device: of this rank.
    """

    def __init__(  # noqa: PLR0917
        self,
        settings: TrainSettings,
        run: RunFolder,
        model: UrecaForConditionalGeneration,
        processor: UrecaProcessor,
        engine: Engine,
        device: torch.device,
    ) -> None:
        self._settings, self._run, self._model, self._engine, self._device = settings, run, model, engine, device
        self._inputs = Inputs(processor.image_processor, device, cache=None)
        self._captioner = RegionCaptioner(model, processor)
        train_mode(model)
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        index = TrainingIndex(run.validation_index)
        self._task = PackingTask(settings, run.validation_index, self._rank, world_size, is_validation=True)
        plan = RunPlan(
            index.sample_costs(),
            costs_of(processor),
            settings.batch,
            AugmentationSettings(),
            seed=settings.seed,
            world_size=world_size,
            epochs=1,
        )
        wanted = plan.num_steps * settings.batch.gradient_accumulation
        self._num_micro_batches = min(wanted, settings.validation.max_micro_batches or wanted)
        self._kept: list[tuple[PackedMicroBatch, Path]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ureca-validation-")
        shown = shown_regions(index, settings.validation.captions, settings.image_limits)
        # Sharded weights come together layer by layer, so that all ranks must ask for the same layers: for the same
        # captions. Otherwise each rank writes its share.
        self._shares = settings.deepspeed.zero_stage < 3
        self._shown = shown[self._rank :: world_size] if self._shares else shown

    def validate(self, step: int) -> dict[str, Any]:
        """Figures after so many steps; captions and figures are also written to the run's folder."""
        started = time.perf_counter()
        self._model.eval()
        sums = {"loss": 0.0, "answer_tokens": 0.0, "regions": 0.0}
        for made in self._micro_batches():
            sums["loss"] += self._engine.evaluate(self._inputs.of(made)) * made.weight
            sums["answer_tokens"] += made.num_answer_tokens
            sums["regions"] += made.num_regions
        sums = sum_figures(sums, self._device)
        figures: dict[str, Any] = {"step": step, "loss": sums["loss"] / max(1.0, sums["answer_tokens"])}
        figures["regions"] = int(sums["regions"])
        captions = caption_shown(self._captioner, self._shown, self._settings.validation.max_new_tokens)
        train_mode(self._model)
        lines: list[dict[str, Any]] = [
            {"image_id": shown.image_id, "region_id": shown.region_id, "caption": caption, "reference": shown.reference}
            for shown, caption in zip(self._shown, captions, strict=True)
        ]
        lines = gather(lines) if self._shares else lines
        if self._rank == 0:
            if lines:
                figures |= score_captions([line["caption"] for line in lines], [line["reference"] for line in lines])
            self._run.add_validation(figures | {"seconds": round(time.perf_counter() - started, 3)}, lines)
        return figures

    def _micro_batches(self) -> Iterator[PackedMicroBatch]:
        """Packed once, then read from a temporary folder: actors would take longer to start than to pack again."""
        if self._kept:
            yield from (replace(made, data=path.read_bytes()) for made, path in self._kept)
            return
        for number, made in enumerate(packed_micro_batches(self._task, 0, self._num_micro_batches)):
            path = Path(self._folder.name) / f"{number:06d}"
            path.write_bytes(made.data)
            self._kept.append((replace(made, data=b""), path))
            yield made
