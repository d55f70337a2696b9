"""Continuous batching of captions over shared prefixes: sequences are admitted and finish between tokens."""

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from ureca.model.attention import Prefix, RowsWithPrefixes, enable_prefix_attention
from ureca.model.modeling import UrecaForConditionalGeneration

Key = TypeVar("Key", bound=Hashable)

MIN_TEMPERATURE = 1e-4
"""Lowest sampling temperature; lower ones above 0 count as this, since logits divided by them overflow."""

_ROOM_TOKENS = 32
"""Tokens for which a cache has room when it grows; at least half of its length."""


@dataclass(frozen=True, eq=False)
class SequenceInput:
    """A sequence to decode.

    Args:
        prefix: keys and values of the prompt's beginning.
        suffix: embeddings of the rest of the prompt, [L, D].
        max_new_tokens: limit at which the sequence is finished ("length").
        temperature: 0 for greedy decoding, else the sampling temperature.
        top_p: nucleus sampling: smallest probability mass that tokens are drawn from.
        seed: seed of the sequence's own random numbers.
    """

    prefix: Prefix
    suffix: torch.Tensor
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class DecodedSequence(Generic[Key]):
    """A sequence with its tokens.

    Args:
        key: key of the sequence.
        token_ids: new tokens, without the end token.
        finish_reason: "stop", "length" or "error"; empty while the sequence is unfinished.
        num_prompt_tokens: number of tokens of the prompt, those of the image included.
        error: error that ended this sequence alone; None otherwise.
    """

    key: Key
    token_ids: list[int]
    finish_reason: str
    num_prompt_tokens: int
    error: Exception | None = None


class SequenceDecoder(Generic[Key]):
    """Decodes sequences together, one token of each at a time.

    The tokens of a sequence do not depend on the other sequences, nor on the time of its admission (in float32; in
    bfloat16 a near tie may be decided differently).

    Args:
        model: on its device and in its data type.
        end_token_ids: tokens that finish a sequence ("stop").

    Attributes:
        num_forward_passes: number of passes through the language model so far, of prefills and of decoding steps.
    """

    def __init__(self, model: UrecaForConditionalGeneration, end_token_ids: Collection[int]) -> None:
        self._model = model
        self._end_token_ids = end_token_ids
        self._sequences: list[_ActiveSequence[Key]] = []
        self._cache: SuffixCache | None = None
        self.num_forward_passes = 0

    def __len__(self) -> int:
        """Number of unfinished sequences."""
        return len(self._sequences)

    def unfinished(self) -> Iterator[DecodedSequence[Key]]:
        """Yield each unfinished sequence with its tokens so far."""
        for active in self._sequences:
            yield active.decoded("")

    @torch.inference_mode()
    def admit(self, sequences: Sequence[tuple[Key, SequenceInput]]) -> None:
        """Prefill the prompts of more sequences; those that share a prefix should be adjacent."""
        if not sequences:
            return
        # Another attention may have been chosen since the last call.
        enable_prefix_attention(self._model.model.language_model.config)
        inputs = [sequence for _, sequence in sequences]
        cache = SuffixCache.prefill(
            self._model, [sequence.prefix for sequence in inputs], [sequence.suffix for sequence in inputs]
        )
        self.num_forward_passes += 1
        if self._cache is not None:
            cache = self._cache.concatenated(cache)
        self._sequences += [_ActiveSequence(key, sequence) for key, sequence in sequences]
        # Adjacent sequences of one prefix are rows of the same matrix product, and prefixes of one length form one
        # batch of products.
        first_use: dict[int, int] = {}
        for active in self._sequences:
            first_use.setdefault(id(active.input.prefix), len(first_use))
        order = sorted(
            range(len(self._sequences)),
            key=lambda index: (
                self._sequences[index].input.prefix.length,
                first_use[id(self._sequences[index].input.prefix)],
            ),
        )
        self._sequences = [self._sequences[index] for index in order]
        self._cache = cache.selected(order)

    @torch.inference_mode()
    def step(self, is_wanted: Callable[[Key], bool] | None = None) -> Iterator[DecodedSequence[Key]]:
        """Decode one more token of each sequence.

        Args:
            is_wanted: called with the key of each unfinished sequence; the sequence is dropped on false.

        Yields:
            The finished sequences, before the forward pass of the others; also those that failed, each with its error.
        """
        if self._cache is None:
            return
        logits = self._model.lm_head(self._cache.hidden).float()
        chosen = logits.argmax(-1)
        failed: dict[int, Exception] = {}
        for index, active in enumerate(self._sequences):
            if active.input.temperature == 0:
                continue
            try:
                chosen[index] = active.sample(logits[index])
            except Exception as error:
                failed[index] = error
        tokens = chosen.tolist()  # the only wait for the device in a step
        remaining = []
        for index, (active, token) in enumerate(zip(self._sequences, tokens, strict=True)):
            if index in failed:
                yield active.decoded("error", failed[index])
                continue
            if token in self._end_token_ids:
                yield active.decoded("stop")
                continue
            active.token_ids.append(token)
            if len(active.token_ids) == active.input.max_new_tokens:
                yield active.decoded("length")
            elif is_wanted is None or is_wanted(active.key):
                remaining.append(index)
        self._sequences = [self._sequences[index] for index in remaining]
        if not remaining:
            self._cache = None
            return
        prefixes = [active.input.prefix for active in self._sequences]
        cache = self._cache.selected(remaining)
        self._cache = cache.extended(self._model, prefixes, chosen[remaining])
        self.num_forward_passes += 1


@dataclass(eq=False)
class _ActiveSequence(Generic[Key]):
    key: Key
    input: SequenceInput
    token_ids: list[int] = field(default_factory=list)
    _generator: torch.Generator | None = None

    def decoded(self, finish_reason: str, error: Exception | None = None) -> DecodedSequence[Key]:
        """Return the sequence with its tokens so far."""
        num_prompt_tokens = self.input.prefix.length + len(self.input.suffix)
        return DecodedSequence(self.key, self.token_ids, finish_reason, num_prompt_tokens, error)

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw the next token by logits [vocabulary] with the sequence's generator, without waiting for the device."""
        if self._generator is None:
            self._generator = torch.Generator(logits.device).manual_seed(self.input.seed)
        no_prompt = torch.empty(1, 0, dtype=torch.long, device=logits.device)
        warped = TemperatureLogitsWarper(max(self.input.temperature, MIN_TEMPERATURE))(no_prompt, logits[None])
        probabilities = TopPLogitsWarper(self.input.top_p)(no_prompt, warped).softmax(-1)
        return torch.multinomial(probabilities[0], 1, generator=self._generator)[0]


class _GrowingLayer(DynamicLayer):
    """Keys and values of a layer with room for further tokens, so that a token is written in place, not copied along.

    Whoever assigns ``keys`` and ``values`` gives up the room; the next token makes new one.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states [B, heads, L, size], and return those of all tokens."""
        if not self.is_initialized or self.keys.numel() == 0:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        length, added = self.keys.shape[2], key_states.shape[2]
        room = self._room
        if room is None or self.keys.data_ptr() != room[0].data_ptr() or length + added > room[0].shape[2]:
            room = self._room = self._with_room(self.keys, added), self._with_room(self.values, added)
        for states, buffer in zip((key_states, value_states), room, strict=True):
            buffer[:, :, length : length + added] = states
        self.keys, self.values = (buffer[:, :, : length + added] for buffer in room)
        return self.keys, self.values

    @staticmethod
    def _with_room(states: torch.Tensor, added: int) -> torch.Tensor:
        length = states.shape[2]
        shape = (*states.shape[:2], length + max(_ROOM_TOKENS, added, length // 2), states.shape[3])
        buffer = states.new_empty(shape)
        buffer[:, :, :length] = states
        return buffer


@dataclass(frozen=True, eq=False)
class SuffixCache:
    """KV cache of the suffixes of B sequences, aligned at their ends.

    Methods that return a cache take over the tensors of the one that they are called on.

    Attributes:
        cache: keys and values of the suffixes, [B, key-value heads, S, size] a layer, padded on the left.
        visible: bool [B, S], false for padding.
        positions: position of the last token, [B, 1].
        hidden: last hidden state, [B, D].
    """

    cache: DynamicCache
    visible: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor

    @classmethod
    def prefill(
        cls, model: UrecaForConditionalGeneration, prefixes: Sequence[Prefix], suffixes: Sequence[torch.Tensor]
    ) -> "SuffixCache":
        """Compute the suffixes of prompts, [L_i, D] each, behind their prefixes."""
        length = max(len(suffix) for suffix in suffixes)
        embeddings = pad_sequence(list(suffixes), batch_first=True, padding_side="left")
        # One copy to the device: each would make the processor wait for it.
        lengths = torch.tensor(
            [[len(suffix), prefix.length] for suffix, prefix in zip(suffixes, prefixes, strict=True)],
            device=model.device,
        )
        offsets = torch.arange(length, device=model.device) - (length - lengths[:, :1])
        visible, positions = offsets >= 0, lengths[:, 1:] + offsets.clamp(min=0)
        causal = torch.ones(length, length, dtype=torch.bool, device=model.device).tril()
        cache = DynamicCache(config=model.config.text_config)
        cache.layers = [_GrowingLayer() for _ in cache.layers]
        hidden = _forward(model, embeddings, visible[:, None, None, :] & causal, positions, cache, prefixes)
        return cls(cache, visible, positions[:, -1:], hidden)

    def extended(
        self, model: UrecaForConditionalGeneration, prefixes: Sequence[Prefix], tokens: torch.Tensor
    ) -> "SuffixCache":
        """Append one token, of int64 [B], to each sequence."""
        embeddings = model.get_input_embeddings()(tokens[:, None])
        visible = torch.cat([self.visible, self.visible.new_ones(len(tokens), 1)], dim=1)
        positions = self.positions + 1
        hidden = _forward(model, embeddings, visible[:, None, None, :], positions, self.cache, prefixes)
        return SuffixCache(self.cache, visible, positions, hidden)

    def selected(self, rows: Sequence[int]) -> "SuffixCache":
        """Select some sequences, in any order."""
        if list(rows) == list(range(len(self.hidden))):
            return self
        index = torch.tensor(rows, device=self.hidden.device)
        visible = self.visible[index]
        unused = int(visible.any(0).long().argmax())  # padding that only removed sequences needed
        self.cache.batch_select_indices(index)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]
        return SuffixCache(self.cache, visible[:, unused:], self.positions[index], self.hidden[index])

    def concatenated(self, other: "SuffixCache") -> "SuffixCache":
        """Append the sequences of another cache."""
        length = max(self.visible.shape[1], other.visible.shape[1])

        def joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            """Write the states [B, ..., S, size] of both, each once, one below the other and aligned at their ends."""
            both = first.new_zeros(len(first) + len(second), *first.shape[1:-2], length, first.shape[-1])
            both[: len(first), ..., length - first.shape[-2] :, :] = first
            both[len(first) :, ..., length - second.shape[-2] :, :] = second
            return both

        for own, others in zip(self.cache.layers, other.cache.layers, strict=True):
            own.keys, own.values = joined(own.keys, others.keys), joined(own.values, others.values)
        return SuffixCache(
            self.cache,
            joined(self.visible[..., None], other.visible[..., None])[..., 0],
            torch.cat([self.positions, other.positions]),
            torch.cat([self.hidden, other.hidden]),
        )


def _forward(  # noqa: PLR0917
    model: UrecaForConditionalGeneration,
    embeddings: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: DynamicCache,
    prefixes: Sequence[Prefix],
) -> torch.Tensor:
    """Compute embeddings [B, L, D] behind the cache's content; return the last hidden states [B, D]."""
    groups = [list(group) for _, group in groupby(prefixes, key=id)]
    outputs = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions,
        cache=cache,
        use_cache=True,
        prefix_attention=RowsWithPrefixes(tuple(group[0] for group in groups), tuple(len(group) for group in groups)),
    )
    hidden: torch.Tensor = outputs.last_hidden_state[:, -1]
    return hidden
