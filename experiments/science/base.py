"""Training of a model that recognises scenes: dense labels first, captions then, in one plain process.

Stage by stage:

- *seeing*: the vision encoder and the mask encoder learn, from the scenes' own tree, the kind, colour and pattern of
  each pixel and region at every level, boxes, places among siblings, numbers of look-alikes. No words.
- *telling*: the language model learns captions, and all else goes on learning.

The learning rate is constant until the last part of the budget, in which it falls to zero. A checkpoint every few
minutes makes a run resumable.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from experiments.science.muon import Muon
from experiments.science.recogniser import Recogniser
from experiments.science.views import DrawnScene, SceneBatches, View, disturb
from ureca.io import replacing
from ureca.model.checkpoints import save_checkpoint
from ureca.model.mask_encoder import ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration, maps_of
from ureca.model.processing import UrecaProcessor
from ureca.training.loss import PackedLoss

_STEPS_PER_LINE = 50
_CHANGED_FRACTION = 0.25


class CapturingLoss(PackedLoss):
    """A packed loss that keeps the vision encoder's maps and the mask tokens of its last pass."""

    def __init__(self, model: UrecaForConditionalGeneration) -> None:
        super().__init__(model)
        self.maps: tuple[torch.Tensor, ...] = ()
        self.tokens: torch.Tensor | None = None
        core, encode, refer = model.model, model.model.get_image_features, model.model.get_mask_features

        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            encoded = encode(*args, **kwargs)
            self.maps = maps_of(encoded)
            return encoded

        def get_mask_features(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.tokens = refer(*args, **kwargs)
            return self.tokens

        # Methods of the instance, which all callers of the class's methods find first.
        core.__dict__.update(get_image_features=get_image_features, get_mask_features=get_mask_features)


def split_parameters(modules: Sequence[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split trainable weights into those that Muon moves, and embeddings, heads, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    known: set[int] = set()
    for module in modules:
        for name, weight in module.named_parameters():
            if id(weight) in known or not weight.requires_grad:
                continue
            known.add(id(weight))
            is_head = any(
                part in name for part in ("embed_tokens", "lm_head", "stem.", "tile_positions", "dense.", "region.2")
            )
            (others if weight.ndim < 2 or is_head else matrices).append(weight)
    return matrices, others


@dataclass(frozen=True)
class BaseSettings:
    """Budget and rates of a run.

    Attributes:
        budget_s: CPU seconds.
        telling_from: share of the budget from which captions are learned.
        falling_from: share of the budget from which the learning rate falls.
        images: scenes of a step while seeing, and while telling.
        regions: regions of a scene in a step, likewise.
        matrix_rate, rate: peak learning rates of Muon and AdamW.
        telling_labels: weight of the losses of labels while telling.
        seed: seed of the order of scenes.
    """

    budget_s: float
    telling_from: float = 0.18
    falling_from: float = 0.62
    images: tuple[int, int] = (8, 8)
    regions: tuple[int, int] = (6, 10)
    matrix_rate: float = 0.02
    rate: float = 3e-3
    telling_labels: float = 0.3
    seed: int = 0


class BaseRun:
    """A run of the base model, which goes on from the state in its folder if there is one.

    Args:
        model: the model at its initial weights; changed in place.
        processor: its processor.
        scenes: the scenes to learn from.
        settings: budget and rates.
        folder: existing folder for the state and the model.
    """

    def __init__(
        self,
        model: UrecaForConditionalGeneration,
        processor: UrecaProcessor,
        scenes: Sequence[DrawnScene],
        settings: BaseSettings,
        folder: Path,
    ) -> None:
        self.model, self.processor, self.scenes = model, processor, scenes
        self.settings, self.folder = settings, folder
        self.done: dict[str, Any] = {"cpu_s": 0.0, "step": 0, "images": 0, "regions": 0, "curve": [], "validation": []}
        self._recogniser = Recogniser(model)
        self._loss = CapturingLoss(model)
        matrices, self._others = split_parameters([model, self._recogniser])
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, lr=settings.matrix_rate),
            torch.optim.AdamW(self._others, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self._batches = SceneBatches(processor)
        if self._state_path.exists():
            self._load()

    @property
    def _state_path(self) -> Path:
        return self.folder / "state.pt"

    def train(
        self,
        tell: Callable[[str], None],
        *,
        save_every_s: float = 180,
        measure: Callable[[], dict[str, float]] | None = None,
    ) -> dict[str, Any]:
        """Train until the budget is used up.

        Args:
            tell: callback that gets a line every 50 steps, and one for every measurement.
            save_every_s: CPU seconds between two savings of the state.
            measure: measurement of the model at every saving, whose time does not count.

        Returns:
            CPU seconds, steps, images, regions, the curve of the losses, and the measurements, ``validation``.
        """
        done, settings = self.done, self.settings
        self.model.train()
        self.model.model.vision_tower.to(memory_format=torch.channels_last)
        order = _endless(len(self.scenes), settings.seed, done["images"])
        rng = np.random.default_rng((settings.seed, done["step"]))
        before, began, last_save = done["cpu_s"], time.process_time(), done["cpu_s"]
        recent: list[dict[str, float]] = []
        while (cpu_s := before + time.process_time() - began) < settings.budget_s:
            share = cpu_s / settings.budget_s
            is_telling = share >= settings.telling_from
            views = [self._view(next(order), rng) for _ in range(settings.images[is_telling])]
            regions = [
                rng.permutation(np.flatnonzero(view.labels.areas_px))[: settings.regions[is_telling]] for view in views
            ]
            losses = self._losses(views, regions, rng, is_telling=is_telling)
            losses["total"].backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._others, 1.0, error_if_nonfinite=True)
            self._update(min(1.0, (1 - share) / (1 - settings.falling_from)) * min(1.0, (done["step"] + 1) / 30))
            done["step"] += 1
            done["images"] += len(views)
            done["regions"] += sum(map(len, regions))
            done["cpu_s"] = cpu_s
            recent.append({name: float(value.detach()) for name, value in losses.items()})
            if done["step"] % _STEPS_PER_LINE == 0:
                means = {name: round(sum(row[name] for row in recent) / len(recent), 4) for name in recent[-1]}
                counts = {name: done[name] for name in ("step", "images", "regions")}
                done["curve"].append({"cpu_s": round(cpu_s, 1), **counts, **means})
                tell(json.dumps(done["curve"][-1]))
                recent.clear()
            if cpu_s - last_save > save_every_s:
                last_save = cpu_s
                began += self._save_measured(measure, tell)
        self._save_measured(measure, tell)
        return done

    def _save_measured(self, measure: Callable[[], dict[str, float]] | None, tell: Callable[[str], None]) -> float:
        """Save, with a measurement if there is one; returns the CPU seconds that this took."""
        began = time.process_time()
        if measure is not None:
            self.model.eval()
            self.done["validation"].append({"cpu_s": round(self.done["cpu_s"], 1), **measure()})
            self.model.train()
            tell(json.dumps(self.done["validation"][-1]))
        self.save()
        return time.process_time() - began

    def save(self) -> None:
        """Save the state, and the model for ``RegionCaptioner.from_pretrained``."""
        state = {
            "model": self.model.state_dict(),
            "recogniser": self._recogniser.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "done": self.done,
        }
        with replacing(self._state_path, overwrite=True) as temporary:
            torch.save(state, temporary)
        save_checkpoint(self.model, self.processor, self.folder / "model", overwrite=True)

    def _load(self) -> None:
        state = torch.load(self._state_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self._recogniser.load_state_dict(state["recogniser"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done |= state["done"]

    def _view(self, number: int, rng: np.random.Generator) -> View:
        tiles = self.processor.image_processor
        mirrored, changed = rng.random(2) < (0.5, _CHANGED_FRACTION)
        change = partial(disturb, rng=rng) if changed else None
        return View.of(self.scenes[number], tiles.tile_size_px, tiles.max_tiles, mirrored=mirrored, change=change)

    def _losses(
        self,
        views: Sequence[View],
        regions: Sequence[npt.NDArray[np.int64]],
        rng: np.random.Generator,
        *,
        is_telling: bool,
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch by name, and their weighted sum, "total"."""
        batch = self._batches.pack(views, regions)
        caption_loss = torch.zeros(())
        if is_telling:
            caption_loss = self._loss(batch) / batch.num_answer_tokens
        else:
            encoded = self.model.model.get_image_features(batch.pixel_values, return_dict=True)
            shown = ShownTiles(encoded.pooler_output, batch.pixel_values, batch.mask_tile_images, maps_of(encoded))
            self.model.model.get_mask_features(batch.mask_values, shown)
        tokens = self._loss.tokens
        if tokens is None:
            raise RuntimeError("the model did not encode any mask")
        num_tiles = [
            len(view.tiles) if self._batches.shows_all_tiles else 1
            for view, own in zip(views, regions, strict=True)
            for _ in own
        ]
        losses = self._recogniser.losses(
            model=self.model,
            maps=self._loss.maps,
            views=views,
            regions=regions,
            tokens=[part.flatten(0, 1) for part in torch.split(tokens, num_tiles)],
            masks=batch.mask_values[torch.tensor(num_tiles).cumsum(0) - 1].float(),
            rng=rng,
        )
        labels = losses["dense"] + 1.5 * losses["things"] + 4 * losses["counts"] + 0.5 * losses["region"]
        total = caption_loss + (self.settings.telling_labels if is_telling else 1.0) * labels
        return losses | {"captions": caption_loss, "total": total}

    def _update(self, scale: float) -> None:
        peaks = (self.settings.matrix_rate, self.settings.rate)
        for optimizer, peak in zip(self._optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _endless(count: int, seed: int, start: int) -> Iterator[int]:
    """Yield all numbers below ``count`` in a new order, again and again, from position ``start`` on."""
    epoch, position = divmod(start, count)
    while True:
        yield from np.random.default_rng((seed, epoch)).permutation(count)[position:].tolist()
        epoch, position = epoch + 1, 0
