"""Validation during training: the loss on other images, and captions of the same few regions each time."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from ureca.errors import SettingsError
from ureca.evaluation.metrics.references import score
from ureca.hashing import hash64
from ureca.image_limits import ImageLimits
from ureca.model.captioner import RegionCaptioner
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.data import PackingTask, packed_micro_batches
from ureca.pipelines.training.engine import InputLoader, TrainingEngine, gather, sum_metrics
from ureca.pipelines.training.run_folder import RunFolder
from ureca.training.index import TrainingIndex
from ureca.training.packing import ExampleSettings, PackedMicroBatch, read_example
from ureca.training.phases import train_mode
from ureca.training.sampler import RunPlan


class Validation:
    """Validates a model in training on the same samples each time. All methods are collective.

    Args:
        settings: settings of ``ureca train``.
        run: folder of the run, with the index of the validation samples.
        model: the model in training.
        processor: processor of the model.
        engine: engine that trains the model.
        device: device of this rank.
    """

    def __init__(  # noqa: PLR0917
        self,
        settings: TrainSettings,
        run: RunFolder,
        model: UrecaForConditionalGeneration,
        processor: UrecaProcessor,
        engine: TrainingEngine,
        device: torch.device,
    ) -> None:
        self._settings, self._run, self._model, self._engine, self._device = settings, run, model, engine, device
        self._inputs = InputLoader(processor.image_processor, device, cache=None)
        self._captioner = RegionCaptioner(model, processor)
        train_mode(model)
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        index = TrainingIndex(run.validation_index)
        self._task = PackingTask(
            settings, run.validation_index, run.validation_plan, self._rank, world_size, is_validation=True
        )
        plan = RunPlan.open(run.validation_plan, world_size)
        num_available = plan.num_steps * plan.num_micro_batches_per_rank
        self._num_micro_batches = min(num_available, settings.validation.max_micro_batches or num_available)
        self._cached: list[tuple[PackedMicroBatch, Path]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ureca-validation-")
        regions = sample_regions(index, settings.validation.captions, settings.image_limits)
        # With ZeRO-3 the weights are gathered layer by layer, so that all ranks must write the same captions.
        # Otherwise each rank writes its share.
        self._shares_captions = settings.deepspeed.zero_stage < 3
        self._regions = regions[self._rank :: world_size] if self._shares_captions else regions

    def validate(self, step: int) -> dict[str, Any]:
        """Return metrics after so many steps; they and the captions are also written to the run's folder."""
        started = time.perf_counter()
        self._model.eval()
        sums = {"loss": 0.0, "answer_tokens": 0.0, "regions": 0.0}
        for packed in self._micro_batches():
            sums["loss"] += self._engine.evaluate(self._inputs.load(self._inputs.read(packed))) * packed.weight
            sums["answer_tokens"] += packed.num_answer_tokens
            sums["regions"] += packed.num_regions
        sums = sum_metrics(sums, self._device)
        metrics: dict[str, Any] = {"step": step, "loss": sums["loss"] / max(1.0, sums["answer_tokens"])}
        metrics["regions"] = int(sums["regions"])
        captions = self._captioner.caption_many(
            [region.pixels for region in self._regions],
            [[region.mask] for region in self._regions],
            max_new_tokens=self._settings.validation.max_new_tokens,
        )
        train_mode(self._model)
        lines: list[dict[str, Any]] = [
            {
                "image_id": region.image_id,
                "region_id": region.region_id,
                "caption": caption,
                "reference": region.reference,
            }
            for region, (caption,) in zip(self._regions, captions, strict=True)
        ]
        lines = gather(lines) if self._shares_captions else lines
        if self._rank == 0:
            if lines:
                metrics |= _score([line["caption"] for line in lines], [line["reference"] for line in lines])
            self._run.add_validation(metrics | {"seconds": round(time.perf_counter() - started, 3)}, lines)
        return metrics

    def _micro_batches(self) -> Iterator[PackedMicroBatch]:
        """Pack once, then read from a temporary folder: starting the packing actors takes longer than packing."""
        if self._cached:
            yield from (replace(packed, data=path.read_bytes()) for packed, path in self._cached)
            return
        for number, packed in enumerate(packed_micro_batches(self._task, 0, self._num_micro_batches)):
            path = Path(self._folder.name) / f"{number:06d}"
            path.write_bytes(packed.data)
            self._cached.append((replace(packed, data=b""), path))
            yield packed


@dataclass(frozen=True, eq=False)
class ValidationRegion:
    """A region whose caption is logged in every validation.

    Attributes:
        image_id, region_id: ids of the sample.
        pixels: uint8 RGB [H, W, 3].
        mask: bool [H, W].
        reference: caption of the sample.
    """

    image_id: str
    region_id: int
    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    reference: str


def sample_regions(index: TrainingIndex, count: int, limits: ImageLimits) -> list[ValidationRegion]:
    """Select at most ``count`` regions of different images, deterministically; bad samples are left out."""
    num_images = index.info.num_images
    image_numbers = sorted({number * num_images // count for number in range(count)}) if count else []
    regions = []
    for image in index.read(image_numbers):
        number = hash64("shown", image.image_id) % len(image.regions)
        found = read_example(image, (number,), epoch=0, seed=0, settings=ExampleSettings(image_limits=limits))
        if found.example is not None:
            (region,) = found.example.regions
            region_id = image.regions[number].region_id
            regions.append(
                ValidationRegion(image.image_id, region_id, found.example.pixels, region.mask, region.answer)
            )
    return regions


def _score(captions: list[str], references: list[str]) -> dict[str, Any]:
    """Compute ``exact``, the fraction of captions that equal their references, and the fast n-gram metrics.

    Metrics that cannot be computed here are left out, and ``missing`` gives the reason.
    """
    exact = float(np.mean([caption == reference for caption, reference in zip(captions, references, strict=True)]))
    try:
        scores = score(captions, [[reference] for reference in references], metrics=("BLEU", "ROUGE", "CIDEr"))
    except SettingsError as error:
        return {"exact": exact, "missing": str(error)}
    known = {name: value for name, value in scores.items() if isinstance(value, float)}
    return {"exact": exact, **known} | ({"missing": scores["missing"]} if scores["missing"] else {})
