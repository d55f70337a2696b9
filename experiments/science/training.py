"""Training of one model for a fixed budget of CPU time, in one process and without Ray.

Steps are those of ``ureca train``; the optimizers are Muon for weight matrices and AdamW for all other weights, which
learn more in little time.
"""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.science.settings import VARIANTS, ScienceSettings, ScienceTraining, Variant
from ureca.data.output import Output
from ureca.data.questions import QuestionSettings
from ureca.data.settings import RegionsSource
from ureca.model.checkpoints import load_checkpoint
from ureca.model.initialization import build_scratch
from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.processing import UrecaProcessor
from ureca.model.prompt import shares_image
from ureca.training.index import IndexSettings
from ureca.training.index_writer import prepare_index
from ureca.training.loss import PackedLoss
from ureca.training.packing import ExampleSettings, MicroBatchPacker
from ureca.training.phases import Full, learning_rate_scale, parameter_groups, prepare
from ureca.training.sampler import RunPlan
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.token_costs import ProcessorTextTokens, costs_of

_TICKS = 100_000
"""Number of parts of a budget, for a schedule that counts steps."""


@dataclass(frozen=True)
class Optimizers:
    """Several optimizers with one learning rate schedule.

    Attributes:
        parts: optimizers of disjoint parameters.
        peak_rates: peak learning rate of each optimizer.
        warmup_fraction: share of the budget for the warm-up.
    """

    parts: Sequence[torch.optim.Optimizer]
    peak_rates: Sequence[float]
    warmup_fraction: float

    def step(self, share: float) -> None:
        """Update the weights and reset the gradients.

        Args:
            share: share of the budget used so far, at least 0 and below 1.
        """
        scale = learning_rate_scale(int(share * _TICKS), _TICKS, self.warmup_fraction)
        for part, peak_rate in zip(self.parts, self.peak_rates, strict=True):
            for group in part.param_groups:
                group["lr"] = peak_rate * scale
            part.step()
            part.zero_grad(set_to_none=True)


def build_optimizers(model: nn.Module, settings: ScienceTraining) -> Optimizers:
    """Build Muon for the matrices that multiply hidden states, and AdamW for embeddings, head and all other weights.

    In the few hundred steps of a budget, models learn to distinguish objects with Muon, but hardly with AdamW alone.
    """
    heads = {id(weight) for name, weight in model.named_parameters() if "lm_head" in name}
    matrices: list[nn.Parameter] = []
    others = []
    for group in parameter_groups(model, settings.weight_decay):
        decays = group["weight_decay"] > 0
        hidden = [weight for weight in group["params"] if decays and weight.ndim == 2 and id(weight) not in heads]
        matrices += hidden
        known = {id(weight) for weight in hidden}
        others.append({**group, "params": [weight for weight in group["params"] if id(weight) not in known]})
    muon = torch.optim.Muon(matrices, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay)
    adam = torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, settings.adam_beta_2))
    rates = (settings.matrix_learning_rate, settings.learning_rate)
    return Optimizers((muon, adam), rates, settings.warmup_fraction)


_QUESTIONS = QuestionSettings(default_fraction=1)
_STEPS_PER_LINE = 20
_UNLIMITED_STEPS = 2**31


def train_variant(
    name: str, settings: ScienceSettings, scenes: Path, folder: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Train a model, and write it and ``metrics.jsonl``, a line every few steps, to a folder.

    Args:
        name: name of the variant.
        settings: settings of the experiment.
        scenes: folder of the training scenes.
        folder: existing folder for the model and its metrics.
        tell: callback that gets messages on the progress.

    Returns:
        Figures of the training: CPU and wall-clock seconds, steps, regions, parameters, and the final loss.
    """
    model, processor = _build(name, settings, scenes)
    maker = _batches(processor, settings, scenes, folder / "index")
    figures = _train(model, maker, settings.training, metrics=folder / "metrics.jsonl", tell=tell)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return figures | {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "mask_tokens": processor.num_mask_tokens,
    }


def _build(name: str, settings: ScienceSettings, scenes: Path) -> tuple[UrecaForConditionalGeneration, UrecaProcessor]:
    variant = VARIANTS[name]
    if settings.base is not None:
        model, processor = load_checkpoint(settings.base, dtype=torch.float32)
        processor.region_prompt, processor.dynamic_mask = variant.region_prompt, variant.dynamic_mask
        if variant.num_mask_tokens or variant.mask_encoder:
            model = with_mask_encoder(model, variant, settings.seed)
            processor.num_mask_tokens = model.config.num_mask_tokens
        return model, processor
    captions = (region["caption"] for row in Output(str(scenes)).rows() for region in row["regions"])
    return build_scratch(
        captions,
        variant.sizes(settings.sizes),
        region_prompt=variant.region_prompt,
        dynamic_mask=variant.dynamic_mask,
        seed=settings.seed,
    )


@torch.no_grad()
def with_mask_encoder(
    model: UrecaForConditionalGeneration, variant: Variant, seed: int
) -> UrecaForConditionalGeneration:
    """Build a model with another mask encoder or number of mask tokens, and all other weights of a base.

    A mask encoder of the base's kind keeps the weights of the tokens that it has; the rest of it is initialised anew.
    """
    config = copy.deepcopy(model.config)
    config.num_mask_tokens = variant.num_mask_tokens or config.num_mask_tokens
    config.mask_encoder = variant.mask_encoder or config.mask_encoder
    same_kind = config.mask_encoder == model.config.mask_encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        other = UrecaForConditionalGeneration(config)
    known = model.state_dict()
    for name, values in other.state_dict().items():
        if same_kind or not name.startswith("model.mask_encoder."):
            base = known[name]
            kept = tuple(slice(0, min(*sides)) for sides in zip(values.shape, base.shape, strict=True))
            values[kept] = base[kept]
    other.generation_config = model.generation_config
    return other


def _batches(processor: UrecaProcessor, settings: ScienceSettings, scenes: Path, path: Path) -> MicroBatchPacker:
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
    batch = MicroBatchSettings(
        images_per_device=training.images,
        regions_per_image=training.regions_per_image if shared else training.views_per_image,
    )
    plan = RunPlan(
        index.sample_costs(),
        costs_of(processor),
        batch,
        AugmentationSettings(),
        seed=settings.seed,
        world_size=1,
        epochs=1,
        max_steps=_UNLIMITED_STEPS,
    )
    return MicroBatchPacker(processor, index, plan, ExampleSettings(questions=_QUESTIONS), seed=settings.seed)


def _train(
    model: UrecaForConditionalGeneration,
    maker: MicroBatchPacker,
    settings: ScienceTraining,
    *,
    metrics: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Train until the budget is used up, not counting the preparation."""
    loss_of = PackedLoss(prepare(model, Full()))
    optimizers = build_optimizers(model, settings)
    precision = choose_precision(settings.precision)
    losses: list[float] = []
    num_regions, began_cpu, began = 0, time.process_time(), time.perf_counter()
    with metrics.open("w", encoding="utf-8") as lines:
        while (cpu_s := time.process_time() - began_cpu) < settings.budget_s:
            made = maker.pack(len(losses), 0, 0)
            batch = maker.unpack(made)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of(batch) / made.num_answer_tokens
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm, error_if_nonfinite=True)
            optimizers.step(cpu_s / settings.budget_s)
            losses.append(float(loss.detach()))
            num_regions += made.num_regions
            if len(losses) % _STEPS_PER_LINE == 0:
                line = {"step": len(losses), "regions": num_regions, "cpu_s": cpu_s, "loss": _recent_loss(losses)}
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                tell(f"{cpu_s / settings.budget_s:4.0%} of its budget, {num_regions} regions, loss {line['loss']:.3f}")
    return {
        "cpu_s": time.process_time() - began_cpu,
        "wall_s": time.perf_counter() - began,
        "steps": len(losses),
        "regions": num_regions,
        "loss": _recent_loss(losses),
        "precision": precision,
    }


def _recent_loss(losses: list[float]) -> float:
    last = losses[-_STEPS_PER_LINE:]
    return sum(last) / len(last)


def choose_precision(wanted: str) -> str:
    """Resolve "auto" to "bf16" if the CPU has instructions for it, else to "fp32", which is then faster."""
    if wanted != "auto":
        return wanted
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    return "bf16" if can.get("avx512_bf16") or can.get("amx_bf16") else "fp32"
