"""A small vision encoder of convolutions and attention, whose maps keep small regions apart.

A vision transformer needs many images to recognise anything, and its patches mix a small region with its surroundings.
Here convolutions at strides 1, 2, 4 and 8 see details, attention on the coarsest map sees the whole tile, and a decoder
brings the result back to stride 2. The coarsest map gives the tokens of the language model; the mask encoder sees all
four. Meant for models of a few million parameters; InternViT is the encoder of all others.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

STRIDES = (1, 2, 4, 8)
"""Strides of the maps in pixels."""


@strict
class HybridVisionConfig(PreTrainedConfig):
    """Sizes of a hybrid vision encoder.

    Args:
        image_size: height and width of a tile in pixels, each a multiple of 8.
        patch_size: height and width of the square that a token stands for; always 8.
        hidden_size: width of the tokens, and channels of the map at stride 8.
        channels: channels of the maps at strides 1, 2 and 4.
        num_blocks: residual blocks before attention at strides 2, 4 and 8.
        num_hidden_layers: attention layers.
        num_attention_heads: heads of an attention layer.
        intermediate_size: width of the feed-forward network of an attention layer.
    """

    model_type = "ureca_hybrid_vision"

    image_size: tuple[int, int] | list[int] = (56, 56)
    patch_size: tuple[int, int] | list[int] = (8, 8)
    hidden_size: int = 128
    channels: tuple[int, int, int] | list[int] = (16, 40, 80)
    num_blocks: tuple[int, int, int] | list[int] = (1, 1, 2)
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if any(side < STRIDES[-1] or side % STRIDES[-1] for side in self.image_size):
            raise ValueError(f"image_size must be multiples of {STRIDES[-1]}, got {list(self.image_size)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )

    @property
    def map_channels(self) -> tuple[int, int, int, int]:
        """Channels of the maps, from stride 1 to stride 8."""
        first, second, third = self.channels
        return first, second, third, self.hidden_size


class HybridConv2d(nn.Conv2d):
    """Convolution without bias that preserves the size of its input at stride 1, initialised by fan-in."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class ResidualBlock(nn.Module):
    """``depth`` convolutions with batch normalisation, added to their input."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(HybridConv2d(channels, channels) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(depth))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Transform a map [N, C, H, W]."""
        changed = values
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            changed = norm(convolution(functional.relu(changed) if number else changed))
        return functional.relu(values + changed)


class Halving(nn.Module):
    """Strided convolution that halves height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = HybridConv2d(inputs, outputs, stride=2)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Transform a map [N, C, H, W] to [N, C', H/2, W/2]."""
        halved: torch.Tensor = functional.relu(self.norm(self.convolution(values)))
        return halved


class Doubling(nn.Module):
    """Addition of a coarse map to one of twice its size, and a residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = HybridConv2d(inputs, outputs, kernel=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.block = ResidualBlock(outputs, 1)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Add [N, C, H/2, W/2] to [N, C', H, W]."""
        doubled: torch.Tensor = self.block(
            fine + functional.interpolate(self.norm(self.convolution(coarse)), scale_factor=2)
        )
        return doubled


class HybridAttention(nn.Module):
    """Layer of attention and feed-forward network over the tokens of a tile, which starts as the identity."""

    def __init__(self, config: HybridVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Transform tokens [N, L, C]."""
        num_tiles, length, width = tokens.shape
        parts = self.queries_keys_values(self.attention_norm(tokens))
        parts = parts.view(num_tiles, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        tokens = tokens + self.output(attended.transpose(1, 2).reshape(num_tiles, length, width))
        updated: torch.Tensor = tokens + self.down(functional.gelu(self.up(self.mlp_norm(tokens))))
        return updated


class HybridVisionModel(PreTrainedModel):
    """Vision encoder of convolutions and attention; see the module."""

    config: HybridVisionConfig
    config_class = HybridVisionConfig
    main_input_name = "pixel_values"
    base_model_prefix = "hybrid_vision"
    input_modalities = ("image",)
    _supports_sdpa = True

    def __init__(self, config: HybridVisionConfig) -> None:
        super().__init__(config)
        c1, c2, c4, c8 = config.map_channels
        self.stem = HybridConv2d(3, c1)
        self.stem_norm = nn.BatchNorm2d(c1)
        stages = []
        for inputs, outputs, num_blocks in zip((c1, c2, c4), (c2, c4, c8), config.num_blocks, strict=True):
            stages.append(
                nn.Sequential(Halving(inputs, outputs), *(ResidualBlock(outputs, 2) for _ in range(num_blocks)))
            )
        self.stages = nn.ModuleList(stages)
        num_tokens = (config.image_size[0] // STRIDES[-1]) * (config.image_size[1] // STRIDES[-1])
        self.tile_positions = nn.Parameter(torch.zeros(1, num_tokens, c8))
        self.layers = nn.ModuleList(HybridAttention(config) for _ in range(config.num_hidden_layers))
        self.to_stride_4 = Doubling(c8, c4)
        self.to_stride_2 = Doubling(c4, c2)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, HybridConv2d):
            init.kaiming_uniform_(module.weight, nonlinearity="linear")
        elif isinstance(module, HybridAttention):
            for linear in (module.queries_keys_values, module.up):
                init.normal_(linear.weight, std=linear.in_features**-0.5)
            for linear in (module.output, module.down):
                init.zeros_(linear.weight)
            for linear in (module.queries_keys_values, module.output, module.up, module.down):
                init.zeros_(linear.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, HybridVisionModel):
            init.normal_(module.tile_positions, std=0.3)

    def forward(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode tiles.

        Args:
            pixel_values: float [N, 3, S, S], normalised.
            return_dict, kwargs: ignored.

        Returns:
            ``last_hidden_state`` [N, 1 + (S / 8)^2, C]: a token in the place of a class token, which InternVL drops,
            then the tokens row by row. ``hidden_states``: the maps [N, C, S / stride, S / stride].
        """
        fine = pixel_values.contiguous(memory_format=torch.channels_last)
        maps = [functional.relu(self.stem_norm(self.stem(fine)))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        coarsest = maps[-1]
        tokens = coarsest.flatten(2).transpose(1, 2) + self.tile_positions
        for layer in self.layers:
            tokens = layer(tokens)
        attended = tokens.transpose(1, 2).reshape(coarsest.shape)
        at_stride_4 = self.to_stride_4(attended, maps[2])
        at_stride_2 = self.to_stride_2(at_stride_4, maps[1])
        return BaseModelOutputWithPooling(
            last_hidden_state=torch.cat([tokens[:, :1], tokens], dim=1),
            hidden_states=(maps[0], at_stride_2, at_stride_4, attended),
        )
