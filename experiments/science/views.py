"""Scenes as a step of training shows them: drawn, mirrored, disturbed, cut into tiles, and packed."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ureca.model.image_processing import choose_grid, tile_image, tile_mask
from ureca.model.processing import UrecaProcessor
from ureca.scenes.labels import SceneLabels, label_scene
from ureca.scenes.scene import Scene
from ureca.training.packing import IGNORED, PackedBatch, Packer

_MIRRORED = {"leftmost": "rightmost", "rightmost": "leftmost", "left": "right", "right": "left"}


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


def mirror(caption: str) -> str:
    """Exchange left and right in a caption."""
    return " ".join(_MIRRORED.get(word, word) for word in caption.split(" "))


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
