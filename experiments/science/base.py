"""Training of a model that recognises scenes: dense labels first, captions then, in one plain process.

Stage by stage:

- *seeing*: the vision encoder and the mask encoder learn, from the scenes' own tree, the kind, colour and pattern of
  each pixel and region at every level, boxes, places among siblings, numbers of look-alikes. No words.
- *telling*: the language model learns captions, and all else goes on learning.

The learning rate is constant until the last part of the budget, in which it falls to zero. A checkpoint every few
minutes makes a run resumable.
"""

import io
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
from PIL import Image
from torch import nn
from torch.nn import functional

from experiments.science.muon import Muon
from ureca.io import replacing
from ureca.model.checkpoints import save_checkpoint
from ureca.model.image_processing import choose_grid, tile_image, tile_mask
from ureca.model.mask_encoder import ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration, maps_of
from ureca.model.pooled_mask_encoder import CELL_STRIDE, PooledMaskEncoder
from ureca.model.processing import UrecaProcessor
from ureca.scenes.labels import NUM_LEVELS, NUM_PLACES, NUM_WORDS, SceneLabels, label_scene
from ureca.scenes.scene import Scene
from ureca.training.loss import PackedLoss
from ureca.training.packing import IGNORED, PackedBatch, Packer

_POINTS_OF_TILES, _POINTS_OF_THUMBNAIL = 6, 4
_ATTRIBUTES = ("kind", "colour", "pattern")
_DENSE_SIZES = [NUM_WORDS[name] for name in _ATTRIBUTES for _ in range(NUM_LEVELS)] + [
    NUM_WORDS["size"],
    8,
    NUM_LEVELS * NUM_PLACES,
]
_REGION_SIZES = [NUM_WORDS["kind"], NUM_WORDS["colour"], NUM_LEVELS, NUM_PLACES, NUM_WORDS["kind"], NUM_PLACES]
_STEPS_PER_LINE = 50
_TOP_KIND_LIMIT = 16
_BOX_SCALE_PX = 16
_CHANGED_FRACTION = 0.25


@dataclass(frozen=True, eq=False)
class DrawnScene:
    """A scene with its pixels.

    Attributes:
        pixels: uint8 [H, W, 3].
        region_map: int16 [H, W].
        scene: its regions.
        captions: captions by region id.
    """

    pixels: npt.NDArray[np.uint8]
    region_map: npt.NDArray[np.int16]
    scene: Scene
    captions: dict[int, str]


@dataclass(eq=False)
class View:
    """A scene as it is shown in a step: tiles, labels and captions, perhaps mirrored."""

    tiles: npt.NDArray[np.uint8]
    label_tiles: npt.NDArray[np.int64]
    labels: SceneLabels
    captions: dict[int, str]
    size_px: int

    @classmethod
    def of(
        cls,
        drawn: DrawnScene,
        size_px: int,
        max_tiles: int,
        *,
        mirrored: bool,
        change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
    ) -> "View":
        """Cut a scene into tiles, after a change of its pixels if there is one."""
        pixels = drawn.pixels if change is None else change(drawn.pixels)
        pixels = np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels
        height, width = drawn.region_map.shape
        columns, rows = choose_grid(height, width, size=size_px, max_tiles=max_tiles)
        y, x = (
            ((np.arange(count * size_px) + 0.5) * length / (count * size_px)).astype(np.int64)
            for count, length in ((rows, height), (columns, width))
        )
        labels = label_scene(drawn.scene, drawn.region_map[y][:, x], mirrored=mirrored)
        label_map = labels.region_map
        cut = label_map.reshape(rows, size_px, columns, size_px).swapaxes(1, 2).reshape(-1, size_px, size_px)
        thumbnail = label_map[rows // 2 :: rows, columns // 2 :: columns]
        captions = {id: mirror(text) for id, text in drawn.captions.items()} if mirrored else drawn.captions
        return cls(
            tile_image(pixels, size=size_px, max_tiles=max_tiles),
            np.concatenate([cut, thumbnail[None]]) if columns * rows > 1 else cut,
            labels,
            captions,
            size_px,
        )


def disturb(pixels: npt.NDArray[np.uint8], *, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Add noise of a deviation of up to 12, or what JPEG of a quality from 50 to 95 does, to pixels [H, W, 3]."""
    if rng.random() < 0.5:
        noisy = pixels + rng.normal(0, rng.uniform(0, 12), pixels.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=int(rng.integers(50, 96)))
    return np.asarray(Image.open(stored).convert("RGB"))


_MIRRORED = {"leftmost": "rightmost", "rightmost": "leftmost", "left": "right", "right": "left"}


def mirror(caption: str) -> str:
    """Exchange left and right in a caption."""
    return " ".join(_MIRRORED.get(word, word) for word in caption.split(" "))


class Recogniser(nn.Module):
    """Heads for the labels of scenes, which are needed in training only.

    Args:
        model: model with a hybrid vision encoder and a pooled mask encoder.
    """

    def __init__(self, model: UrecaForConditionalGeneration) -> None:
        super().__init__()
        encoder = model.model.mask_encoder
        if not isinstance(encoder, PooledMaskEncoder):
            raise TypeError("labels need the pooled mask encoder")
        width = model.config.text_config.hidden_size
        self.dense = nn.Linear(encoder.region.weight.shape[0], sum(_DENSE_SIZES))
        self.region = nn.Sequential(nn.Linear(2 * width, 192), nn.ReLU(), nn.Linear(192, sum(_REGION_SIZES)))

    def losses(
        self,
        *,
        model: UrecaForConditionalGeneration,
        maps: tuple[torch.Tensor, ...],
        views: Sequence[View],
        regions: Sequence[npt.NDArray[np.int64]],
        tokens: Sequence[torch.Tensor] | None,
        masks: torch.Tensor,
        rng: np.random.Generator,
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch.

        Args:
            model: the model.
            maps: the vision encoder's maps of all tiles.
            views: the scenes.
            regions: regions of each scene to learn as regions.
            tokens: mask tokens of each of these regions, [tokens of all tiles, D]; None leaves them out.
            masks: their thumbnail masks, [regions, 1, S, S].
            rng: generator of the pixels to learn.
        """
        encoder = model.model.mask_encoder
        if not isinstance(encoder, PooledMaskEncoder):
            raise TypeError("labels need the pooled mask encoder")
        losses = {"dense": self._dense_loss(encoder, maps, views, rng)}
        losses |= _thing_losses(encoder, maps, views, regions, masks)
        if tokens is not None:
            losses["region"] = self._region_loss(tokens, views, regions)
        return losses

    def _dense_loss(
        self,
        encoder: PooledMaskEncoder,
        maps: tuple[torch.Tensor, ...],
        views: Sequence[View],
        rng: np.random.Generator,
    ) -> torch.Tensor:
        points = [_sample_points(view, rng) for view in views]
        tiles_before = np.cumsum([0, *(len(view.tiles) for view in views)])
        tile = torch.from_numpy(
            np.concatenate([at[0] + first for at, first in zip(points, tiles_before, strict=False)])
        )
        row, column = (torch.from_numpy(np.concatenate([at[axis] for at in points])) for axis in (1, 2))
        features = torch.cat(
            [
                values[tile, :, row // stride, column // stride]
                for values, stride in zip(maps, (1, 2, 4, 8), strict=True)
            ],
            1,
        )
        outputs = self.dense(functional.relu(encoder.region(features))).split(_DENSE_SIZES, dim=1)
        words, sizes, boxes, places = (
            torch.from_numpy(np.concatenate(parts))
            for parts in zip(*(_targets_of(view, at) for view, at in zip(views, points, strict=True)), strict=True)
        )
        loss = functional.cross_entropy(outputs[-3], sizes)
        for attribute in range(len(_ATTRIBUTES)):
            for level in range(NUM_LEVELS):
                weight = 1.0 if attribute == 0 else 0.5 if attribute == 2 else 1.0
                if level == 0 and attribute > 0:
                    weight = 0.6 if attribute == 1 else 0.2
                loss = loss + weight * functional.cross_entropy(
                    outputs[attribute * NUM_LEVELS + level], words[:, level, attribute]
                )
        known = (places >= 0).float()
        flags = functional.binary_cross_entropy_with_logits(outputs[-1], places.clamp(min=0), reduction="none")
        loss = loss + 4 * functional.smooth_l1_loss(outputs[-2], boxes, beta=0.25)
        return loss + 6 * (flags * known).sum() / known.sum()

    def _region_loss(
        self, tokens: Sequence[torch.Tensor], views: Sequence[View], regions: Sequence[npt.NDArray[np.int64]]
    ) -> torch.Tensor:
        outputs = self.region(torch.stack([torch.cat([part.mean(0), part[-1]]) for part in tokens])).split(
            _REGION_SIZES, dim=1
        )

        def gather(of: Callable[[SceneLabels, npt.NDArray[np.int64]], npt.NDArray[Any]]) -> torch.Tensor:
            return torch.from_numpy(
                np.concatenate([of(view.labels, own) for view, own in zip(views, regions, strict=True)])
            )

        depths = gather(lambda labels, own: labels.depths[own])
        words = gather(lambda labels, own: labels.words[own])
        own_words = words[torch.arange(len(depths)), depths]
        flags = functional.binary_cross_entropy_with_logits
        return (
            functional.cross_entropy(outputs[0], own_words[:, 0])
            + functional.cross_entropy(outputs[1], own_words[:, 1])
            + functional.cross_entropy(outputs[2], depths)
            + 3 * flags(outputs[3], gather(lambda labels, own: labels.places[own]))
            + functional.cross_entropy(outputs[4], words[:, 0, 0])
            + 3 * flags(outputs[5], gather(lambda labels, own: labels.places[labels.ancestors[own, 0]]))
        )


def _sample_points(view: View, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], ...]:
    """Draw as many pixels of each visible region, so that small ones count as much: tile, row, column, region."""
    flat = view.label_tiles.reshape(-1)
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(view.labels.num_regions + 1))
    in_tiles = view.label_tiles[:-1].size
    chosen, owners = [], []
    for region in range(view.labels.num_regions):
        pixels = order[bounds[region] : bounds[region + 1]]
        split = int(np.searchsorted(pixels, in_tiles))
        for part, count in ((pixels[:split], _POINTS_OF_TILES), (pixels[split:], _POINTS_OF_THUMBNAIL)):
            if len(part):
                chosen.append(part[rng.integers(0, len(part), count)])
                owners.append(np.full(count, region))
    picked = np.concatenate(chosen)
    tile, place = np.divmod(picked, view.size_px**2)
    row, column = np.divmod(place, view.size_px)
    return tile, row, column, np.concatenate(owners)


def _targets_of(
    view: View, points: tuple[npt.NDArray[np.int64], ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Words, size, boxes relative to the pixel, and places at all levels, for each sampled pixel."""
    tile, row, column, region = points
    labels, size_px = view.labels, view.size_px
    columns = labels.region_map.shape[1] // size_px
    is_thumbnail = (tile == len(view.tiles) - 1)[:, None]
    scale = np.where(is_thumbnail, size_px / np.array(labels.region_map.shape[::-1]), 1.0)
    origin = np.where(is_thumbnail, 0, np.stack([tile % columns, tile // columns], axis=1) * size_px)
    here = np.stack([column, row], axis=1) + 0.5

    def relative(boxes: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        return np.concatenate([(boxes[:, :2] - origin) * scale - here, boxes[:, 2:] * scale], axis=1) / _BOX_SCALE_PX

    ancestors = labels.ancestors[region]
    boxes = np.concatenate([relative(labels.boxes[ancestors[:, 0]]), relative(labels.boxes[region])], axis=1)
    places = np.where(ancestors[..., None] >= 0, labels.places[ancestors], -1).reshape(len(region), -1)
    return labels.words[region], labels.sizes[region], boxes.astype(np.float32), places.astype(np.float32)


def _thing_losses(
    encoder: PooledMaskEncoder,
    maps: tuple[torch.Tensor, ...],
    views: Sequence[View],
    regions: Sequence[npt.NDArray[np.int64]],
    masks: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Losses of the cells' descriptions on thumbnails, and of the counts of look-alikes."""
    last = np.cumsum([len(view.tiles) for view in views]) - 1
    things = encoder.look_alikes.describe(tuple(values[torch.from_numpy(last)].float() for values in maps))
    properties = torch.split(things.logits.float(), [*encoder.look_alikes.groups, 2, 1], dim=-1)
    side = encoder.look_alikes.side
    half = CELL_STRIDE // 2
    words, sizes, centres, areas, weights = [], [], [], [], []
    for view in views:
        labels = view.labels
        top = labels.ancestors[view.label_tiles[-1][half::CELL_STRIDE, half::CELL_STRIDE].reshape(-1), 0]
        height, width = labels.region_map.shape
        words.append(labels.words[top, 0])
        sizes.append(labels.sizes[top])
        centres.append(labels.boxes[top, :2] / (width, height))
        cells = labels.areas_px[top] * (side * side / (height * width))
        areas.append(np.log(cells))
        weights.append(cells**-0.5)
    word, size, centre, area, weight = (
        torch.from_numpy(np.stack(parts)) for parts in (words, sizes, centres, areas, weights)
    )
    weight = (weight / weight.mean()).float()

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values * weight).mean()

    def entropy(number: int, target: torch.Tensor) -> torch.Tensor:
        return mean(functional.cross_entropy(properties[number].transpose(1, 2), target, reduction="none"))

    def distance(centres: torch.Tensor) -> torch.Tensor:
        cells = functional.smooth_l1_loss(centres * side, centre.float() * side, beta=0.5, reduction="none")
        return mean(cells.sum(-1))

    size_error = functional.smooth_l1_loss(properties[-1][..., 0], area.float(), beta=0.2, reduction="none")
    described = (
        entropy(0, word[..., 0].clamp(max=_TOP_KIND_LIMIT - 1))
        + entropy(1, size)
        + 0.6 * entropy(2, word[..., 1])
        + 0.7 * distance(things.cell_centres)
        + 0.7 * distance(things.centres)
        + mean(size_error)
    )
    coverage = functional.avg_pool2d(masks, CELL_STRIDE).flatten(1)
    coverage = coverage / coverage.sum(-1, keepdim=True).clamp(min=1e-4)
    first, errors = 0, []
    for view, own, thing_map in zip(views, regions, things.by_tile(), strict=True):
        _, counts = encoder.look_alikes(coverage[first : first + len(own)], thing_map)
        target = torch.from_numpy(view.labels.counts[own])
        errors.append(functional.smooth_l1_loss(counts.clamp(max=8), target, beta=0.25, reduction="none").mean((1, 2)))
        first += len(own)
    return {"things": described, "counts": torch.cat(errors).mean()}


class SceneBatches:
    """Prompts of views of scenes: packed batches as those of ``ureca train``, made from label maps without decoding.

    Args:
        processor: processor of the model.
    """

    def __init__(self, processor: UrecaProcessor) -> None:
        self._processor = processor
        self._packer = Packer(processor)
        beginning, end = processor.split_prompt("")
        self._beginning, self._end = beginning, list(self._packer._tokens_of(end))
        self.shows_all_tiles = processor.dynamic_mask

    def masks(self, view: View, region: int) -> npt.NDArray[np.uint8]:
        """Mask tiles of a region, uint8 [tiles, S, S]."""
        size, most = view.size_px, self._processor.image_processor.max_tiles
        return tile_mask(view.labels.mask(region), size=size, max_tiles=most if self.shows_all_tiles else 1).astype(
            np.uint8
        )

    def pack(self, views: Sequence[View], regions: Sequence[npt.NDArray[np.int64]]) -> PackedBatch:
        """Pack regions of scenes with their captions."""
        packer, processor = self._packer, self._processor
        ids: list[int] = []
        positions: list[int] = []
        labels: list[int] = []
        lengths, prefixes, masks, shown, first = [], [], [], [], 0
        for view, own in zip(views, regions, strict=True):
            prefix = list(
                packer._tokens_of(
                    self._beginning.replace(processor.image_token, processor.image_placeholders(len(view.tiles)))
                )
            )
            prefixes.append(len(prefix))
            ids += prefix
            positions += range(len(prefix))
            labels += [IGNORED] * len(prefix)
            for region in own.tolist():
                tiles = self.masks(view, region)
                tokens = processor.num_mask_tokens * len(tiles)
                head = [packer._mask_start, *[packer._mask_context] * tokens, packer._mask_end, *self._end]
                answer = [*packer._tokens_of(view.captions[region]), *packer._end_of_turn]
                ids += head + answer
                positions += range(len(prefix), len(prefix) + len(head) + len(answer))
                labels += [IGNORED] * (len(head) - 1) + answer + [IGNORED]
                lengths.append(len(head) + len(answer))
                masks.append(tiles)
                last = first + len(view.tiles)
                shown.append(np.arange(first, last) if len(tiles) > 1 else np.array([last - 1]))
            first += len(view.tiles)
        pixels = processor.image_processor.normalise(torch.from_numpy(np.concatenate([view.tiles for view in views])))
        return PackedBatch(
            input_ids=torch.tensor(ids),
            position_ids=torch.tensor(positions),
            labels=torch.tensor(labels),
            prefix_lengths=torch.tensor(prefixes),
            num_segments=torch.tensor([len(own) for own in regions]),
            segment_lengths=torch.tensor(lengths),
            num_tiles=torch.tensor([len(view.tiles) for view in views]),
            pixel_values=pixels,
            mask_values=torch.from_numpy(np.concatenate(masks)[:, None]),
            mask_tile_images=torch.from_numpy(np.concatenate(shown)),
        )


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
