"""What rows of a batch have read behind their prefixes: it grows by a token, and rows join and leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.shared_prefix import Prefix, SharedPrefixes


@dataclass(frozen=True, eq=False)
class SuffixState:
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
    ) -> "SuffixState":
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
    ) -> "SuffixState":
        """Read one more token in each row; the cache is taken over."""
        embeddings = model.get_input_embeddings()(torch.tensor(tokens, device=model.device)[:, None])
        visible = torch.cat([self.visible, self.visible.new_ones(len(tokens), 1)], dim=1)
        positions = self.positions + 1
        hidden = _read(model, embeddings, visible[:, None, None, :], positions, cache=self.cache, prefixes=prefixes)
        return SuffixState(self.cache, visible, positions, hidden)

    def selected(self, places: Sequence[int]) -> "SuffixState":
        """Of some rows, in another order; the cache is taken over."""
        if list(places) == list(range(len(self.hidden))):
            return self
        index = torch.tensor(places, device=self.hidden.device)
        visible = self.visible[index]
        unused = int(visible.any(0).long().argmax())  # padding that only rows needed that have left
        self.cache.batch_select_indices(index)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]
        return SuffixState(self.cache, visible[:, unused:], self.positions[index], self.hidden[index])

    def joined_with(self, other: "SuffixState") -> "SuffixState":
        """The rows of both, this one's first; its cache is taken over."""
        length = max(self.visible.shape[1], other.visible.shape[1])
        for mine, its in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_longer(mine.keys, length), _longer(its.keys, length)])
            mine.values = torch.cat([_longer(mine.values, length), _longer(its.values, length)])
        visible = [pad(state.visible, (length - state.visible.shape[1], 0)) for state in (self, other)]
        return SuffixState(
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
        shared_prefixes=SharedPrefixes(tuple(group[0] for group in groups), tuple(len(group) for group in groups)),
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
