"""Encoding of the prompts of regions: one vision pass and one prefix for an image, a suffix for each region."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ureca.hashing import digest
from ureca.memory import in_parts_that_fit
from ureca.model.attention import Prefix
from ureca.model.mask_encoder import ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration, maps_of, sees_image
from ureca.model.prepared import Region, RegionPreparation
from ureca.model.processing import UrecaProcessor
from ureca.model.region_memory import values_per_token


@dataclass(frozen=True)
class EncodedImage:
    """An image after its forward pass.

    Args:
        prefix: keys and values of the prompt up to and including the image.
        shown: its tiles, for a mask encoder that uses them; else None.
    """

    prefix: Prefix
    shown: ShownTiles | None

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        shown = () if self.shown is None else (self.shown.features, self.shown.pixels, *self.shown.maps)
        return sum(map(_num_bytes, (*self.prefix.keys, *self.prefix.values, *shown)))


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _concatenated(parts: Sequence[BaseModelOutputWithPooling]) -> BaseModelOutputWithPooling:
    """Concatenate the outputs of the vision encoder for some tiles each."""
    if len(parts) == 1:
        return parts[0]
    together: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, torch.Tensor):
            together[name] = torch.cat(values)
        else:
            maps = zip(*values, strict=True)  # None for an encoder that keeps no maps
            together[name] = tuple(None if each[0] is None else torch.cat(each) for each in maps)
    return type(parts[0])(**together)


class PromptEncoder:
    """Encodes the prompts of regions in two parts: a prefix for each image and a suffix for each region.

    Args:
        model: model that the prompts are for.
        processor: processor of the model.
        preparation: preparation of the regions.
        cached_images: number of encoded images to keep, the most recently used; 0 keeps none.
        max_cached_bytes: bytes that the kept images may take together with the one that is being encoded; None: any.
        max_mask_values: pixels of mask tiles that are encoded in one call of the mask encoder; regions with more take
            several calls.
    """

    def __init__(
        self,
        model: UrecaForConditionalGeneration,
        processor: UrecaProcessor,
        preparation: RegionPreparation,
        *,
        cached_images: int,
        max_cached_bytes: int | None = None,
        max_mask_values: int = 2**25,
    ) -> None:
        self._model = model
        self._processor = processor
        self._preparation = preparation
        self._max_cached = cached_images
        self.max_cached_bytes = max_cached_bytes
        self.max_mask_values = max_mask_values
        self._cached: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._cached_bytes = 0
        self._shown_bytes_per_tile = 0  # as of the last encoded image
        self._bytes_per_token = values_per_token(model.config.text_config) * model.dtype.itemsize

    @property
    def num_cached(self) -> int:
        """Number of images that are kept."""
        return len(self._cached)

    @property
    def cached_bytes(self) -> int:
        """Bytes of the images that are kept."""
        return self._cached_bytes

    def clear(self) -> None:
        """Drop the images that are kept, and the regions that are prepared."""
        self._preparation.clear()
        self._cached.clear()
        self._cached_bytes = 0

    def encode_image(
        self, tiles: npt.NDArray[np.uint8], prompt: torch.Tensor | None = None, key: bytes | None = None
    ) -> EncodedImage:
        """Run vision encoder and language model on an image, or return a cached result.

        Images are dropped before one is encoded that would not fit beside them.

        Args:
            tiles: tiles of the image, uint8 [N, S, S, 3].
            prompt: tokens of the prompt up to and including the image, int64 [L], if they are known.
            key: digest of the tiles, if it is known.
        """
        if key is None:
            key = digest([tiles]) if self._max_cached else b""
        if encoded := self._cached.get(key):
            self._cached.move_to_end(key)
            return encoded
        token_ids = self._preparation.prompt(len(tiles)) if prompt is None else prompt
        token_ids = token_ids[None].to(self._model.device)
        expected_bytes = token_ids.shape[1] * self._bytes_per_token + len(tiles) * self._shown_bytes_per_tile
        self._make_room(expected_bytes)
        pixel_values = self._processor.image_processor.normalise(torch.tensor(tiles, device=self._model.device))
        parts = in_parts_that_fit(
            lambda part: self._model.get_image_features(part, return_dict=True),
            pixel_values,
            len(pixel_values),
            "the vision encoder with one tile",
        )
        image_outputs = _concatenated([outputs for _, outputs in parts])
        outputs = self._model.model(input_ids=token_ids, mm_encoder_outputs={"image": image_outputs}, use_cache=True)
        shown = None
        if sees_image(self._model.model.mask_encoder):
            shown = ShownTiles.one_by_one(
                image_outputs.pooler_output, pixel_values.to(self._model.dtype), maps_of(image_outputs)
            )
            shown_bytes = sum(map(_num_bytes, (shown.features, shown.pixels, *shown.maps)))
            self._shown_bytes_per_tile = shown_bytes // len(tiles)
        encoded = EncodedImage(Prefix.from_cache(outputs.cache), shown)
        num_bytes = encoded.num_bytes
        if self._max_cached and (self.max_cached_bytes is None or num_bytes <= self.max_cached_bytes):
            self._make_room(num_bytes)
            self._cached[key] = encoded
            self._cached_bytes += num_bytes
        return encoded

    def _make_room(self, num_bytes: int) -> None:
        """Drop the images that were used longest ago, until one more of a number of bytes may be kept."""
        while self._cached and (
            len(self._cached) >= self._max_cached
            or (self.max_cached_bytes is not None and self._cached_bytes + num_bytes > self.max_cached_bytes)
        ):
            _, dropped = self._cached.popitem(last=False)
            self._cached_bytes -= dropped.num_bytes

    def encode_regions(self, regions: Sequence[Region], images: Sequence[EncodedImage]) -> list[torch.Tensor]:
        """Embed the rest of the prompts of regions; the mask encoder is called once for all that fit into a call.

        Args:
            regions: the regions.
            images: result of `encode_image` for the view of each.

        Returns:
            [L_i, D] for each.

        Raises:
            ValueError: a mask has another number of tiles than one and than its image.
        """
        parts: list[slice] = []
        start = 0
        while start < len(regions):
            end, num_values = start, 0
            while end < len(regions) and (end == start or num_values < self.max_mask_values):
                image, index, _ = regions[end]
                tiles = image.mask_of(index)
                num_values += 0 if tiles is None else tiles.num_values
                end += 1
            parts.append(slice(start, end))
            start = end
        suffixes: list[torch.Tensor] = []
        for part in parts:
            inputs = self._preparation.take(regions[part])
            self._preparation.ahead(regions[part.stop :])  # while the model encodes these
            masks = [each.mask_values for each in inputs]
            features = self._encode_masks(
                [(image, mask) for image, mask in zip(images[part], masks, strict=True) if mask is not None]
            )
            texts = [ids for each in inputs for ids in (each.before, each.after)]
            embedded = self._model.get_input_embeddings()(torch.cat(texts).to(self._model.device))
            pieces = iter(embedded.split([len(ids) for ids in texts]))
            for mask in masks:
                before, after = next(pieces), next(pieces)
                middle = [] if mask is None else [next(features).flatten(0, 1).to(self._model.dtype)]
                suffixes.append(torch.cat([before, *middle, after]))
        return suffixes

    def _encode_masks(self, masks: Sequence[tuple[EncodedImage, torch.Tensor]]) -> Iterator[torch.Tensor]:
        """Encode the tiles of masks, [N_i, 1, S, S] each, in one call; returns the features [N_i, T, D] of each."""
        if not masks:
            return iter(())
        images = {id(image): image for image, _ in masks}
        all_shown = [image.shown for image in images.values() if image.shown is not None]
        shown = None
        if all_shown:
            num_tiles = [len(each.features) for each in all_shown]
            first_tiles = dict(zip(images, accumulate([0, *num_tiles]), strict=False))
            tiles: list[int] = []
            for image, mask in masks:
                first, count = first_tiles[id(image)], len(image.shown.features) if image.shown else 0
                if len(mask) not in {1, count}:
                    raise ValueError(f"a mask of {len(mask)} tiles does not fit its image of {count}")
                # The last tile shows the whole image, as a mask's only tile does.
                tiles += range(first + count - len(mask), first + count)
            shown = ShownTiles(
                _joined([each.features for each in all_shown]),
                _joined([each.pixels for each in all_shown]),
                torch.tensor(tiles, device=self._model.device),
                tuple(map(_joined, zip(*(each.maps for each in all_shown), strict=True))),
            )
        values = torch.cat([mask for _, mask in masks]).to(self._model.device)
        features: torch.Tensor = self._model.model.get_mask_features(values, shown)
        ends = accumulate(len(mask) for _, mask in masks)
        return (features[end - len(mask) : end] for end, (_, mask) in zip(ends, masks, strict=True))
