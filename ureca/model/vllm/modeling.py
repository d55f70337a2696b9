"""URECA as a model of vLLM: vLLM's InternVL with the mask encoder as a second tower."""

from collections import OrderedDict
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.multimodal import MULTIMODAL_REGISTRY

from ureca.model.configuration import UrecaConfig
from ureca.model.hybrid_vision import HybridVisionConfig, HybridVisionModel
from ureca.model.mask_encoder import ShownTiles
from ureca.model.pooled_mask_encoder import build_mask_encoder
from ureca.model.processing import IMAGE_TOKENS, MASK_TOKENS
from ureca.model.vllm.processing import UrecaDummyInputs, UrecaMultiModalProcessor, UrecaProcessingInfo

_MAX_FEATURES_BYTES = 256 << 20
"""Features of image tiles to keep for mask encoders that see the image: 128 tiles at 8B with the fused one."""

TileFeatures = tuple[torch.Tensor, ...]
"""Projected features [K, D] of an image tile, and its maps [C, S / stride, S / stride] by a hybrid vision encoder."""


@MULTIMODAL_REGISTRY.register_processor(
    UrecaMultiModalProcessor, info=UrecaProcessingInfo, dummy_inputs=UrecaDummyInputs
)
class UrecaForVllm(InternS1ForConditionalGeneration):
    """InternVL, as vLLM implements it, with URECA's own mask encoder; tensors have the same names on disk.

    Args:
        vllm_config: configuration of the engine.
        prefix: prefix of the names of modules.
    """

    packed_modules_mapping = {  # noqa: RUF012 - as in vLLM's models
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        towers: list[str] = self._tower_model_names
        with self._mark_tower_model(vllm_config, {"mask"}):
            self.mask_encoder = build_mask_encoder(self.config)
        self._tower_model_names: list[str] = [*towers, *self._tower_model_names]
        processor = vllm_config.model_config.hf_image_processor_config or {}
        for name, default in (("image_mean", (0.485, 0.456, 0.406)), ("image_std", (0.229, 0.224, 0.225))):
            value = torch.tensor(processor.get(name) or default, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self._features: OrderedDict[int, TileFeatures] = OrderedDict()
        self.num_encoded_tiles = {"image": 0, "mask": 0}

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return the placeholder of an item in a prompt."""
        return {"image": IMAGE_TOKENS[1], "mask": MASK_TOKENS[1]}[modality]

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """Encode items of one modality, of any number of requests.

        Args:
            kwargs: for images ``image_tiles`` uint8 [N, S, S, 3], ``num_image_tiles``, ``image_tile_keys``; for masks
                ``mask_tiles`` uint8 [N, S, S] and ``num_mask_tiles``, and for a mask encoder that sees the image
                ``shown_tiles`` uint8 [M, S, S, 3] and ``shown_tile_keys``: the image tiles under the M mask tiles with
                a pixel set.

        Returns:
            A tensor [tokens, D] for each item.
        """
        if (tiles := kwargs.get("image_tiles")) is not None:
            features = self._encode_images(tiles, kwargs["image_tile_keys"].flatten().tolist())
            return _split(features, kwargs["num_image_tiles"])
        if (tiles := kwargs.get("mask_tiles")) is not None:
            return _split(self._encode_masks(tiles, kwargs), kwargs["num_mask_tiles"])
        return []

    def get_mm_mapping(self) -> MultiModelKeys:
        """Return the names of the language model, the connectors and the towers."""
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector=["multi_modal_projector", "mask_encoder"],
            tower_model="vision_tower",
        )

    def _normalise(self, tiles: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = (tiles.permute(0, 3, 1, 2) / 255 - self.image_mean) / self.image_std
        return pixels.to(self.multi_modal_projector.linear_1.weight.dtype)

    def _init_vision_model(self, config: UrecaConfig, quant_config: Any, *, prefix: str) -> torch.nn.Module:
        """Build the vision tower; a hybrid one is small, and runs as in transformers."""
        if isinstance(config.vision_config, HybridVisionConfig):
            return HybridVisionModel(config.vision_config)
        tower: torch.nn.Module = super()._init_vision_model(config, quant_config, prefix=prefix)
        return tower

    def _extract(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the features [N, K, D] of tiles, and the maps [N, C, H, W] of a hybrid vision encoder."""
        if not isinstance(self.vision_tower, HybridVisionModel):
            return (self.extract_feature(pixels),)
        outputs = self.vision_tower(pixels)
        tokens = outputs.last_hidden_state[:, 1:]
        side = self.config.vision_config.image_size[0] // self.patch_size
        shuffled = self.pixel_shuffle(tokens.unflatten(1, (side, -1)), scale_factor=self.downsample_ratio)
        return self.multi_modal_projector(shuffled.flatten(1, 2)), *outputs.hidden_states

    def _encode_images(self, tiles: torch.Tensor, keys: list[int]) -> torch.Tensor:
        features = self._extract(self._normalise(tiles))
        self.num_encoded_tiles["image"] += len(tiles)
        if self.config.masks_need_images:
            self._keep(keys, features)
        return features[0]

    def _keep(self, keys: list[int], features: tuple[torch.Tensor, ...]) -> None:
        """Keep features of image tiles, the most recently used up to a number of bytes."""
        for key, *tile in zip(keys, *features, strict=True):
            self._features[key] = tuple(tile)
            self._features.move_to_end(key)
        tile_bytes = sum(values[0].numel() * values.element_size() for values in features)
        max_tiles = max(len(keys), _MAX_FEATURES_BYTES // tile_bytes)
        while len(self._features) > max_tiles:
            self._features.popitem(last=False)

    def _encode_masks(self, tiles: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Encode mask tiles to [N, T, D]; all without a pixel set, most of a small region's, are encoded once."""
        is_empty = ~(tiles != 0).flatten(1).any(dim=1)
        is_encoded = ~is_empty
        if bool(is_empty.any()):
            is_encoded[is_empty.nonzero()[0, 0]] = True
        encoded = is_encoded.nonzero()[:, 0]
        positions = torch.zeros(len(tiles), dtype=torch.long, device=tiles.device)
        positions[encoded] = torch.arange(len(encoded), device=tiles.device)
        if bool(is_empty.any()):
            positions[is_empty] = positions[is_empty.nonzero()[0, 0]]
        dtype = self.mask_encoder.projection.weight.dtype
        shown = None
        if self.config.masks_need_images:
            # An empty tile's tokens do not depend on the image: it is paired with any tile.
            of_encoded = (torch.cumsum(~is_empty, 0) - 1).clamp(min=0)[encoded]
            (features, *maps), pixels = self._shown(kwargs["shown_tiles"], kwargs["shown_tile_keys"].flatten().tolist())
            shown = ShownTiles(features, pixels, of_encoded, tuple(maps))
        self.num_encoded_tiles["mask"] += len(encoded)
        tokens: torch.Tensor = self.mask_encoder(tiles[encoded][:, None].to(dtype), shown)
        return tokens[positions]

    def _shown(self, tiles: torch.Tensor, keys: list[int]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return features and pixels of the image tiles under masks; features that are not kept are computed again."""
        pixels = self._normalise(tiles)
        missing = [index for index, key in enumerate(keys) if key not in self._features]
        if missing:
            self._keep([keys[index] for index in missing], self._extract(pixels[missing]))
            self.num_encoded_tiles["image"] += len(missing)
        features = zip(*(self._features[key] for key in keys), strict=True)
        return tuple(torch.stack(values) for values in features), pixels


def _split(features: torch.Tensor, num_tiles: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split features [N, K, D] of tiles into those of items."""
    counts: list[int] = num_tiles.flatten().tolist()
    return torch.split(features.flatten(0, 1), [count * features.shape[1] for count in counts])
