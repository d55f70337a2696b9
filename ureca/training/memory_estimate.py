"""Memory that a training run needs on each device, computed before the run without weights or data.

The model is built on PyTorch's meta device, where tensors have shapes and no storage, and one forward and backward pass
of the longest micro-batch is made there with the code of the model; only the attention kernel is replaced by one with
the memory of the fused kernels. Every tensor is counted from its creation to its end. Weights, gradients and the
optimizer's state follow from the ZeRO stage.
"""

import json
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from ureca.model.attention import enable_prefix_attention
from ureca.model.configuration import UrecaConfig
from ureca.model.mask_encoder import ShownTiles
from ureca.model.modeling import UrecaForConditionalGeneration, maps_of
from ureca.training.loss import read_packed
from ureca.training.phases import Phase, prepare

_GIB = 2**30
_BUCKET_ELEMENTS = 5 * 10**8
"""Elements of DeepSpeed's buffer of gradients that are reduced together (``reduce_bucket_size``), at most."""

_DEVICE_BYTES_OF_CUDA = _GIB
"""CUDA context, kernels and the workspaces of cuBLAS and NCCL; an assumption."""

_FUSED = "shapes_of_a_fused_kernel"

_FRAGMENTATION = 0.05
"""Share of the memory that PyTorch's allocator cannot use; an assumption."""


@dataclass(frozen=True)
class MicroBatchSizes:
    """Sizes of a packed micro-batch.

    Attributes:
        num_tokens: tokens of the packed row.
        num_prefix_tokens: those of them that belong to images and system messages.
        num_image_tiles: image tiles.
        num_mask_tiles: mask tiles.
        num_answer_tokens: tokens that are learned.
    """

    num_tokens: int
    num_prefix_tokens: int
    num_image_tiles: int
    num_mask_tiles: int
    num_answer_tokens: int


@dataclass(frozen=True)
class Sharding:
    """Division of the state among workers; see ``ureca.pipelines.train_settings.DeepspeedSettings``.

    Attributes:
        num_workers: devices.
        zero_stage: 0 to 3.
        offload_optimizer: the optimizer's state is in the host's memory.
        offload_param: sharded weights are in the host's memory.
    """

    num_workers: int = 1
    zero_stage: int = 1
    offload_optimizer: bool = False
    offload_param: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device.

    Attributes:
        weights: weights of the model.
        gradients: gradients of the trained weights, and the buffers that reduce them.
        optimizer: master copies in float32 and the moments of AdamW.
        activations: largest amount of all else in a forward and backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def num_bytes(self) -> int:
        """Tensors of all kinds together."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def fits(self, device_gib: float) -> bool:
        """Return True if a GPU with so much memory is large enough, its context and fragmentation included."""
        return self.num_bytes * (1 + _FRAGMENTATION) + _DEVICE_BYTES_OF_CUDA <= device_gib * _GIB

    def __str__(self) -> str:
        divisor, suffix = (_GIB, "GiB") if self.num_bytes >= _GIB else (2**20, "MiB")
        parts = (
            f"{part} {getattr(self, part) / divisor:.1f}"
            for part in ("weights", "gradients", "optimizer", "activations")
        )
        return f"{self.num_bytes / divisor:.1f} {suffix} ({', '.join(parts)})"


def estimate_memory(
    config: UrecaConfig,
    phase: Phase,
    sizes: MicroBatchSizes,
    sharding: Sharding,
    *,
    bf16: bool = True,
    gradient_checkpointing: bool = True,
) -> MemoryEstimate:
    """Estimate the memory of a worker.

    Args:
        config: configuration of the model.
        phase: weights that are trained.
        sizes: the longest micro-batch.
        sharding: number of workers and ZeRO stage.
        bf16: weights and activations in bfloat16, else float32.
        gradient_checkpointing: activations of layers are computed again in the backward pass.
    """
    on_meta = _run_on_meta(config.to_json_string(), phase, sizes, bf16, gradient_checkpointing)
    num_trained, num_bytes = on_meta.num_trained, on_meta.weight_bytes
    stage, workers = sharding.zero_stage, sharding.num_workers
    size = 2 if bf16 else 4
    # Gradients: in the precision of the weights as they arise, and in float32 where they are accumulated.
    gradients = num_trained * size if stage < 2 else min(num_trained, _BUCKET_ELEMENTS) * size
    if stage:
        gradients += num_trained * 4 // (workers if stage > 1 else 1) if bf16 or stage > 1 else 0
    optimizer = 8 * num_trained + (4 * num_trained if stage else 0)
    if stage:
        optimizer = 0 if sharding.offload_optimizer else optimizer // workers
    if stage == 3:
        num_bytes = 2 * on_meta.largest_layer_bytes + (0 if sharding.offload_param else num_bytes // workers)
    return MemoryEstimate(num_bytes, gradients, optimizer, on_meta.activation_bytes)


def alternatives(
    config: UrecaConfig,
    phase: Phase,
    sizes: MicroBatchSizes,
    sharding: Sharding,
    device_gib: float,
    *,
    images_per_device: int,
    bf16: bool = True,
    gradient_checkpointing: bool = True,
) -> list[tuple[str, MemoryEstimate]]:
    """Find changes of the settings of a run that make it fit a GPU, each beside those before it.

    Args:
        config, phase, sizes, sharding, bf16, gradient_checkpointing: see `estimate_memory`.
        device_gib: memory of the GPU.
        images_per_device: images of the longest micro-batch.

    Returns:
        Settings and the estimate with them, the last of which fits if any does.
    """

    def smaller(factor: int) -> MicroBatchSizes:
        return MicroBatchSizes(*(-(-value // factor) for value in vars(sizes).values()))

    steps: list[tuple[str, MicroBatchSizes, Sharding]] = []
    if not gradient_checkpointing:
        steps.append(("--gradient-checkpointing", sizes, sharding))
    if images_per_device > 1:
        sizes = smaller(images_per_device)
        steps.append(("--batch.images-per-device 1", sizes, sharding))
    if phase.kind != "align":
        for stage in range(sharding.zero_stage + 1, 4):
            if sharding.num_workers > 1:
                sharding = replace(sharding, zero_stage=stage)
                steps.append((f"--deepspeed.zero-stage {stage}", sizes, sharding))
        sharding = replace(sharding, zero_stage=max(1, sharding.zero_stage), offload_optimizer=True)
        steps.append(("--deepspeed.offload-optimizer cpu", sizes, sharding))
    sharding = replace(sharding, zero_stage=3, offload_param=True)
    steps.append(("--deepspeed.zero-stage 3 --deepspeed.offload-param cpu", sizes, sharding))
    steps.append(
        ("--batch.regions-per-image 2", replace(smaller(2), num_prefix_tokens=sizes.num_prefix_tokens), sharding)
    )
    found = []
    for change, of_step, sharded in steps:
        found.append((change, estimate_memory(config, phase, of_step, sharded, bf16=bf16)))
        if found[-1][1].fits(device_gib):
            break
    return found


@dataclass(frozen=True)
class _MetaPass:
    """Sizes of a model and of a training pass with it, before they are divided among workers."""

    num_trained: int
    weight_bytes: int
    largest_layer_bytes: int
    activation_bytes: int


@lru_cache(maxsize=32)
def _run_on_meta(
    config: str, phase: Phase, sizes: MicroBatchSizes, bf16: bool, gradient_checkpointing: bool
) -> _MetaPass:
    """Make a training pass on the meta device, with the model of a configuration in JSON."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    with torch.device("meta"):
        model = UrecaForConditionalGeneration(UrecaConfig.from_dict(json.loads(config)))
        model.to(dtype)
        prepare(model, phase, gradient_checkpointing=gradient_checkpointing)
    for weight in model.parameters():  # peft gives adapters the type of their layer, but not on the meta device
        weight.data = weight.data.to(dtype)
    enable_prefix_attention(model.model.language_model.config)
    AttentionInterface.register(_FUSED, _attend_as_fused)
    model.model.vision_tower.config._attn_implementation = _FUSED
    return _MetaPass(
        num_trained=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        weight_bytes=_num_bytes([*model.parameters(), *model.buffers()]),
        largest_layer_bytes=max(_num_bytes(layer.parameters()) for layer in model.model.language_model.layers),
        activation_bytes=_measure_activations(model, sizes),
    )


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _measure_activations(model: UrecaForConditionalGeneration, sizes: MicroBatchSizes) -> int:
    """Make a training pass on the meta device; return the largest number of bytes beside weights and gradients."""
    parts = model.model
    language_model = parts.language_model
    dtype, width = language_model.embed_tokens.weight.dtype, model.config.text_config.hidden_size
    side = model.config.vision_config.image_size[0]
    trains_language = any(
        weight.requires_grad
        for part in (parts.vision_tower, parts.multi_modal_projector, language_model)
        for weight in part.parameters()
    )
    for weight in model.parameters():
        if weight.requires_grad:  # gradients are counted by their ZeRO stage
            weight.register_post_accumulate_grad_hook(_drop_gradient)
    with torch.device("meta"), count_tensors() as counter:
        pixels = torch.empty(sizes.num_image_tiles, 3, side, side, dtype=dtype)
        # Frozen parts must not keep their activations: their outputs need no gradient, as in a real pass.
        encoded = model.get_image_features(pixels, return_dict=True)
        features: torch.Tensor = encoded.pooler_output
        inputs = [features.flatten(0, 1)]
        if sizes.num_mask_tiles:
            masks = torch.empty(sizes.num_mask_tiles, 1, side, side, dtype=dtype)
            tiles = torch.arange(sizes.num_mask_tiles, device="cpu") % sizes.num_image_tiles  # pooled masks read them
            shown = ShownTiles(features, pixels, tiles, maps_of(encoded))
            inputs.append(parts.mask_encoder(masks, shown).flatten(0, 1))
        num_features = sum(map(len, inputs))
        inputs.append(torch.empty(max(0, sizes.num_tokens - num_features), width, dtype=dtype))
        embeddings = torch.cat(inputs)[None, : sizes.num_tokens]
        positions = torch.zeros(1, sizes.num_tokens, dtype=torch.long)
        if trains_language:
            hidden = read_packed(language_model, embeddings, positions, _FusedAttention())
        else:
            prefixes, end = _FusedAttention(keeps=True), sizes.num_prefix_tokens
            with torch.no_grad():
                read_packed(language_model, embeddings[:, :end], positions[:, :end], prefixes)
            segments = _FusedAttention(before=prefixes)
            hidden = read_packed(language_model, embeddings[:, end:], positions[:, end:], segments)
        logits = model.lm_head(hidden[0, : sizes.num_answer_tokens])
        labels = torch.zeros(len(logits), dtype=torch.long)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        del hidden, logits, embeddings, inputs
        loss.backward()  # type: ignore[no-untyped-call]
    return counter.peak_bytes


def _drop_gradient(weight: torch.Tensor) -> None:
    weight.grad = None


class _FusedAttention:
    """A `PrefixAttention` with the tensors of a fused kernel: no scores, but the sum of each query's exponentials.

    Args:
        keeps: keep keys and values of all layers, as the pass over prefixes does.
        before: the pass over prefixes, whose keys and values are put before those of the segments.
    """

    def __init__(self, *, keeps: bool = False, before: "_FusedAttention | None" = None) -> None:
        self._keeps, self._before = keeps, before
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        *,
        layer: int,
        scaling: float,
    ) -> torch.Tensor:
        if self._keeps:
            self._kept[layer] = key, value
        if self._before is not None:
            keys, values = self._before._kept[layer]
            key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        attended: torch.Tensor = _FusedKernel.apply(query, key, value)
        return attended.transpose(1, 2).contiguous()


def _attend_as_fused(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *arguments: Any, **named: Any
) -> tuple[torch.Tensor, None]:
    """Replace the attention of vision encoders: on the meta device PyTorch's computes all scores, as no GPU does."""
    attended: torch.Tensor = _FusedKernel.apply(query, key, value)
    return attended.transpose(1, 2).contiguous(), None


class _FusedKernel(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        context.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = context.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class TensorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations create while it is active, until they are freed.

    Attributes:
        peak_bytes: largest number at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._num_bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the storages that are new in its result."""
        before = {id(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self._add(each.untyped_storage(), before)
        return result

    def _add(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage._cdata
        if key in self._seen or id(storage) in before:
            return
        self._seen.add(key)
        num_bytes = storage.nbytes()
        self._num_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self._num_bytes)
        weakref.finalize(storage, self._remove, key, num_bytes)

    def _remove(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self._num_bytes -= num_bytes


@contextmanager
def count_tensors() -> Iterator[TensorCounter]:
    """Count the tensors that are created within the block."""
    counter = TensorCounter()
    with counter:
        yield counter
