"""Writing captions token by token over the prefixes that they share; rows join and leave between tokens.

[from] What rows of a batch have read behind their prefixes: it grows by a token, and rows join and leave."""

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Generic, TypeVar

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from ureca.model.attention import Prefix, RowsWithPrefixes, enable_prefix_attention
from ureca.model.modeling import UrecaForConditionalGeneration


@dataclass(frozen=True, eq=False)
class SuffixCache:
    """What B rows have read so far, all of them ending together.

    Attributes:
        cache: keys and values of the suffixes, [B, key-value heads, S, size] a layer, padded on the left.
        visible: bool [B, S], what is not padding.
        positions: of the last token, [B, 1].
        hidden: its hidden state, [B, D].
    """

    cache: DynamicCache
    visible: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor

    @classmethod
    def of_prompts(
        cls, model: UrecaForConditionalGeneration, prefixes: Sequence[Prefix], suffixes: Sequence[torch.Tensor]
    ) -> "SuffixCache":
        """Read the rest of prompts, [L_i, D] of each row, behind their prefixes."""
        prompts, visible = _pad_left(suffixes)
        starts = torch.tensor([[prefix.length] for prefix in prefixes], device=model.device)
        positions = starts + (visible.long().cumsum(1) - 1).clamp(min=0)
        length = prompts.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=model.device).tril()
        cache = DynamicCache(config=model.config.text_config)
        mask = visible[:, None, None, :] & causal
        hidden = _read(model, prompts, mask, positions, cache=cache, prefixes=prefixes)
        return cls(cache, visible, positions[:, -1:], hidden)

    def read_tokens(
        self, model: UrecaForConditionalGeneration, prefixes: Sequence[Prefix], tokens: Sequence[int]
    ) -> "SuffixCache":
        """Read one more token in each row; the cache is taken over."""
        embeddings = model.get_input_embeddings()(torch.tensor(tokens, device=model.device)[:, None])
        visible = torch.cat([self.visible, self.visible.new_ones(len(tokens), 1)], dim=1)
        positions = self.positions + 1
        hidden = _read(model, embeddings, visible[:, None, None, :], positions, cache=self.cache, prefixes=prefixes)
        return SuffixCache(self.cache, visible, positions, hidden)

    def selected(self, places: Sequence[int]) -> "SuffixCache":
        """Of some rows, in another order; the cache is taken over."""
        if list(places) == list(range(len(self.hidden))):
            return self
        index = torch.tensor(places, device=self.hidden.device)
        visible = self.visible[index]
        unused = int(visible.any(0).long().argmax())  # padding that only rows needed that have left
        self.cache.batch_select_indices(index)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]
        return SuffixCache(self.cache, visible[:, unused:], self.positions[index], self.hidden[index])

    def joined_with(self, other: "SuffixCache") -> "SuffixCache":
        """The rows of both, this one's first; its cache is taken over."""
        length = max(self.visible.shape[1], other.visible.shape[1])
        for mine, its in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_longer(mine.keys, length), _longer(its.keys, length)])
            mine.values = torch.cat([_longer(mine.values, length), _longer(its.values, length)])
        visible = [pad(state.visible, (length - state.visible.shape[1], 0)) for state in (self, other)]
        return SuffixCache(
            self.cache,
            torch.cat(visible),
            torch.cat([self.positions, other.positions]),
            torch.cat([self.hidden, other.hidden]),
        )


def _read(
    model: UrecaForConditionalGeneration,
    embeddings: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    *,
    cache: DynamicCache,
    prefixes: Sequence[Prefix],
) -> torch.Tensor:
    """Read embeddings [B, L, D] behind what is in the cache; returns the last hidden states [B, D]."""
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


def _longer(states: torch.Tensor, length: int) -> torch.Tensor:
    """Keys or values [B, heads, S, size] with room on the left, up to a length."""
    return pad(states, (0, 0, length - states.shape[2], 0))


def _pad_left(suffixes: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Suffixes [L_i, D] -> one batch [B, max L, D] that ends together, and bool [B, max L]: what is not padding."""
    length = max(len(suffix) for suffix in suffixes)
    batch = suffixes[0].new_zeros(len(suffixes), length, suffixes[0].shape[1])
    visible = torch.zeros(len(suffixes), length, dtype=torch.bool, device=batch.device)
    for row, suffix in enumerate(suffixes):
        batch[row, length - len(suffix) :] = suffix
        visible[row, length - len(suffix) :] = True
    return batch, visible


Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class DecodedSequence:
    """A region in a batch, and how its caption is written.

    Args:
        prefix: what its prompt begins with.
        suffix: embeddings of the rest of its prompt, [L, D].
        max_new_tokens: it is finished ("length") when it has so many tokens.
        temperature: 0 takes the likeliest token; else tokens are drawn.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: what its tokens are drawn with, if they are drawn.
    """

    prefix: Prefix
    suffix: torch.Tensor
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Completion(Generic[Key]):
    """A finished row.

    Args:
        key: of the row.
        token_ids: what it wrote, the end token not among them.
        finish_reason: "stop" or "length".
    """

    key: Key
    token_ids: list[int]
    finish_reason: str


class Writer(Generic[Key]):
    """Rows that are written together, a token each at a time.

    A row's tokens do not depend on the other rows, nor on when it joined (in float32; in bfloat16 a near tie may fall
    differently).

    Args:
        model: on the device and of the type to run with.
        end_token_ids: a row is finished ("stop") when it writes one of them.
    """

    def __init__(self, model: UrecaForConditionalGeneration, end_token_ids: Collection[int]) -> None:
        self._model = model
        self._end_token_ids = end_token_ids
        self._rows: list[_Going[Key]] = []
        self._state: SuffixCache | None = None

    def __len__(self) -> int:
        """Rows that are not finished."""
        return len(self._rows)

    @torch.inference_mode()
    def admit(self, rows: Sequence[tuple[Key, DecodedSequence]]) -> None:
        """Read the prompts of further rows; those that share a prefix stand best next to each other."""
        if not rows:
            return
        enable_prefix_attention(self._model.model.language_model.config)  # whatever attention was chosen meanwhile
        state = SuffixCache.of_prompts(self._model, [row.prefix for _, row in rows], [row.suffix for _, row in rows])
        if self._state is not None:
            state = self._state.joined_with(state)
        self._rows += [_Going(key, row) for key, row in rows]
        # Rows of one prefix are rows of the same matrix product if they stand next to each other, and prefixes of one
        # length make one batch of products.
        places: dict[int, int] = {}
        for row in self._rows:
            places.setdefault(id(row.row.prefix), len(places))
        order = sorted(range(len(self._rows)), key=lambda place: self._order_of(place, places))
        self._rows = [self._rows[place] for place in order]
        self._state = state.selected(order)

    def _order_of(self, place: int, places: dict[int, int]) -> tuple[int, int]:
        prefix = self._rows[place].row.prefix
        return prefix.length, places[id(prefix)]

    @torch.inference_mode()
    def step(self, is_wanted: Callable[[Key], bool] | None = None) -> Iterator[Completion[Key]]:
        """Write one more token of each row.

        Args:
            is_wanted: asked of each row that goes on; one that is not wanted leaves.

        Yields:
            the rows that are finished, before the model reads on for the others.
        """
        if self._state is None:
            return
        logits = self._model.lm_head(self._state.hidden).float()
        likeliest = logits.argmax(-1).tolist()
        tokens = [row.choose(logits[place], likeliest[place]) for place, row in enumerate(self._rows)]
        going_on = []
        for place, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            if token in self._end_token_ids:
                yield Completion(row.key, row.written, "stop")
                continue
            row.written.append(token)
            if len(row.written) == row.row.max_new_tokens:
                yield Completion(row.key, row.written, "length")
            elif is_wanted is None or is_wanted(row.key):
                going_on.append(place)
        self._rows = [self._rows[place] for place in going_on]
        if not going_on:
            self._state = None
            return
        state = self._state.selected(going_on)
        prefixes = [row.row.prefix for row in self._rows]
        self._state = state.read_tokens(self._model, prefixes, [tokens[place] for place in going_on])


@dataclass(eq=False)
class _Going(Generic[Key]):
    """A row that is being written."""

    key: Key
    row: DecodedSequence
    written: list[int] = field(default_factory=list)

    def choose(self, logits: torch.Tensor, likeliest: int) -> int:
        """The next token by logits [vocabulary]: the likeliest, or one drawn by the row's own generator."""
        if self.row.temperature == 0:
            return likeliest
        no_prompt = torch.empty(1, 0, dtype=torch.long, device=logits.device)
        warped = TemperatureLogitsWarper(self.row.temperature)(no_prompt, logits[None])
        probabilities = TopPLogitsWarper(self.row.top_p)(no_prompt, warped).softmax(-1)
        return int(torch.multinomial(probabilities[0], 1, generator=self._generator(logits.device)))

    def _generator(self, device: torch.device) -> torch.Generator:
        return self._generators.setdefault(device, torch.Generator(device).manual_seed(self.row.seed))

    @cached_property
    def _generators(self) -> dict[torch.device, torch.Generator]:
        return {}
