"""Training one model until its budget is used up: the steps of ``ureca train``, without Ray, in one process."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ureca.dataset import Output
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor
from ureca.model.region_prompt import shares_image
from ureca.model.scratch import build_scratch
from ureca.science.optimizers import build_optimizers
from ureca.science.variants import VARIANTS
from ureca.settings.science import ScienceSettings, ScienceTraining
from ureca.training.augmentation import AugmentationSettings
from ureca.training.examples import ExampleSettings
from ureca.training.index import IndexSettings
from ureca.training.indexing import prepare_index
from ureca.training.loss import PackedLoss
from ureca.training.micro_batches import MicroBatchMaker
from ureca.training.plan import PlanSettings
from ureca.training.questions import QuestionSettings
from ureca.training.run_plan import RunPlan
from ureca.training.sources import RegionsSource
from ureca.training.stages import Full, prepare
from ureca.training.tokens import ProcessorTextTokens, costs_of

_QUESTIONS = QuestionSettings(default_fraction=1)
_STEPS_A_LINE = 20
_WITHOUT_END = 2**31


def train_variant(
    name: str, settings: ScienceSettings, scenes: Path, folder: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Train a model from nothing; it and ``metrics.jsonl``, a line every few steps, are written to a folder.

    Args:
        name: of a variant.
        settings: of the experiment.
        scenes: set to learn from.
        folder: that exists.
        tell: is told for people how far it is.

    Returns:
        Figures of the training: CPU and wall seconds, steps, regions, parameters, the loss at the end.
    """
    model, processor = _build(name, settings, scenes)
    maker = _batches(processor, settings, scenes, folder / "index")
    figures = _train(model, maker, settings.training, metrics=folder / "metrics.jsonl", tell=tell)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return figures | {"parameters": sum(weight.numel() for weight in model.parameters())}


def _build(name: str, settings: ScienceSettings, scenes: Path) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    variant = VARIANTS[name]
    captions = (region["caption"] for row in Output(str(scenes)).rows() for region in row["regions"])
    return build_scratch(
        captions,
        variant.sizes(settings.sizes),
        region_prompt=variant.region_prompt,
        dynamic_mask=variant.dynamic_mask,
        seed=settings.seed,
    )


def _batches(processor: UrecaProcessor, settings: ScienceSettings, scenes: Path, path: Path) -> MicroBatchMaker:
    sources = (RegionsSource(path=str(scenes.absolute())),)
    tiles = processor.image_processor
    index = prepare_index(
        str(path),
        IndexSettings(
            sources=sources, tile_size_px=tiles.tile_size_px, max_tiles=tiles.max_tiles, questions=_QUESTIONS
        ),
        ProcessorTextTokens(processor),
    )
    training = settings.training
    shared = shares_image(processor.region_prompt)
    batch = PlanSettings(
        images_per_device=training.images,
        regions_per_image=training.regions_per_image if shared else training.views_per_image,
    )
    plan = RunPlan(
        index.counts(),
        costs_of(processor),
        batch,
        AugmentationSettings(),
        seed=settings.seed,
        world_size=1,
        epochs=1,
        max_steps=_WITHOUT_END,
    )
    return MicroBatchMaker(processor, index, plan, ExampleSettings(questions=_QUESTIONS), seed=settings.seed)


def _train(
    model: UrecaForConditionalGeneration,
    maker: MicroBatchMaker,
    settings: ScienceTraining,
    *,
    metrics: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Steps until the budget is used up; what it has already cost to begin does not count."""
    loss_of = PackedLoss(prepare(model, Full()))
    optimizers = build_optimizers(model, settings)
    precision = choose_precision(settings.precision)
    losses: list[float] = []
    num_regions, began_cpu, began = 0, time.process_time(), time.perf_counter()
    with metrics.open("w", encoding="utf-8") as lines:
        while (cpu_s := time.process_time() - began_cpu) < settings.budget_s:
            made = maker.make(len(losses), 0, 0)
            batch = maker.unpack(made)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of(batch) / made.num_answer_tokens
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm, error_if_nonfinite=True)
            optimizers.step(cpu_s / settings.budget_s)
            losses.append(float(loss.detach()))
            num_regions += made.num_regions
            if len(losses) % _STEPS_A_LINE == 0:
                line = {"step": len(losses), "regions": num_regions, "cpu_s": cpu_s, "loss": _end_of(losses)}
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                tell(f"{cpu_s / settings.budget_s:4.0%} of its budget, {num_regions} regions, loss {line['loss']:.3f}")
    return {
        "cpu_s": time.process_time() - began_cpu,
        "wall_s": time.perf_counter() - began,
        "steps": len(losses),
        "regions": num_regions,
        "loss": _end_of(losses),
        "precision": precision,
    }


def _end_of(losses: list[float]) -> float:
    last = losses[-_STEPS_A_LINE:]
    return sum(last) / len(last)


def choose_precision(wanted: str) -> str:
    """``fp32`` or ``bf16``; ``auto`` is bf16 where the CPU has instructions for it, else it would be slower."""
    if wanted != "auto":
        return wanted
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older ones do not tell
    return "bf16" if can.get("avx512_bf16") or can.get("amx_bf16") else "fp32"
