"""Packed batches as bytes: pixels as uint8 and masks as bits, from which the same batch comes back, bit for bit."""

import numpy as np
import torch
from safetensors.torch import load, save

from ureca.model.image_processing import UrecaImageProcessor
from ureca.training.packing import PackedBatch

_BITS, _BIT_SHAPE = "mask_bits", "mask_shape"


def to_bytes(batch: PackedBatch, image_processor: UrecaImageProcessor) -> bytes:
    """Encode a batch whose pixels that image processor has normalised."""
    tensors = batch.tensors()
    mean, std = _statistics(image_processor)
    pixels = (tensors["pixel_values"] * std + mean) * 255
    tensors["pixel_values"] = pixels.round().clamp(0, 255).to(torch.uint8)
    masks = tensors["mask_values"]
    if masks.dtype == torch.uint8 and not (masks > 1).any():
        del tensors["mask_values"]
        tensors[_BITS] = torch.from_numpy(np.packbits(masks.numpy()))
        tensors[_BIT_SHAPE] = torch.tensor(masks.shape)
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def from_bytes(data: bytes, image_processor: UrecaImageProcessor) -> PackedBatch:
    """Decode a batch, on the CPU."""
    tensors = load(data)
    if _BITS in tensors:
        shape = tensors.pop(_BIT_SHAPE).tolist()
        bits = np.unpackbits(tensors.pop(_BITS).numpy(), count=int(np.prod(shape)))
        tensors["mask_values"] = torch.from_numpy(bits).view(shape)
    mean, std = _statistics(image_processor)
    tensors["pixel_values"] = (tensors["pixel_values"] / 255 - mean) / std
    return PackedBatch(**tensors)


def _statistics(image_processor: UrecaImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.tensor(image_processor.image_mean).view(3, 1, 1)
    return mean, torch.tensor(image_processor.image_std).view(3, 1, 1)
