"""Writing the captions of a batch of regions, token by token, over the prefixes that they share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.shared_prefix import Prefix, SharedPrefixes


@dataclass(frozen=True)
class Row:
    """A region in a batch.

    Args:
        prefix: what its prompt begins with.
        suffix: embeddings of the rest of its prompt, [L, D].
        seed: what its tokens are drawn with, if they are drawn.
    """

    prefix: Prefix
    suffix: torch.Tensor
    seed: int


@dataclass(frozen=True)
class Completion:
    """The tokens of a finished row, its end token not among them."""

    row: int
    token_ids: list[int]
    finish_reason: str


def complete(
    model: UrecaForConditionalGeneration,
    rows: Sequence[Row],
    *,
    end_token_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Iterator[Completion]:
    """Write the continuation of every row; a row leaves the batch as soon as it is finished.

    A row's tokens do not depend on the other rows (in float32; in bfloat16 a near tie may fall differently).

    Args:
        model: its language model must have `enable_shared_prefixes`.
        rows: rows that share a prefix must stand next to each other.
        end_token_ids: a row is finished ("stop") when it writes one of them.
        max_new_tokens: a row is finished ("length") when it has so many tokens.
        temperature: 0 takes the likeliest token; else tokens are drawn, each row by its own seed.
        top_p: draw from the likeliest tokens that together have this probability.

    Yields:
        Each row once, in the order in which they finish.
    """
    device = model.device
    choose = _Chooser([row.seed for row in rows], temperature, top_p, device)
    end_tokens = torch.tensor(list(end_token_ids), device=device)
    embeddings, visible = _pad_left([row.suffix for row in rows])
    first_positions = torch.tensor([[row.prefix.length] for row in rows], device=device)
    positions = first_positions + (visible.long().cumsum(1) - 1).clamp(min=0)
    mask = visible[:, None, None, :] & torch.ones_like(visible[0]).expand(visible.shape[1], -1).tril()
    cache = DynamicCache(config=model.config.text_config)
    token_ids: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))

    while True:
        hidden = model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            shared_prefixes=_shared_prefixes([rows[row].prefix for row in alive]),
        ).last_hidden_state
        tokens = choose(model.lm_head(hidden[:, -1]).float(), alive)
        ended = torch.isin(tokens, end_tokens).tolist()
        keep = []
        for index, (row, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
            if not ended[index]:
                token_ids[row].append(token)
            if ended[index]:
                yield Completion(row, token_ids[row], "stop")
            elif len(token_ids[row]) == max_new_tokens:
                yield Completion(row, token_ids[row], "length")
            else:
                keep.append(index)
        if not keep:
            return
        if len(keep) < len(alive):
            kept = torch.tensor(keep, device=device)
            cache.batch_select_indices(kept)
            alive = [alive[index] for index in keep]
            tokens, visible, positions = tokens[kept], visible[kept], positions[kept]
        visible = torch.cat([visible, visible.new_ones(len(alive), 1)], dim=1)
        embeddings = model.get_input_embeddings()(tokens[:, None])
        positions = positions[:, -1:] + 1
        mask = visible[:, None, None, :]


class _Chooser:
    """Picks each row's next token: the likeliest, or one drawn by the row's own generator."""

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float, device: torch.device) -> None:
        self.greedy = temperature == 0
        if not self.greedy:
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
            self.temperature = TemperatureLogitsWarper(temperature)
            self.top_p = TopPLogitsWarper(top_p)

    def __call__(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Logits [B, vocabulary] of these rows -> tokens [B]."""
        if self.greedy:
            return logits.argmax(-1)
        no_prompt = torch.empty(len(rows), 0, dtype=torch.long, device=logits.device)
        probabilities = self.top_p(no_prompt, self.temperature(no_prompt, logits)).softmax(-1)
        drawn = [
            torch.multinomial(row, 1, generator=self.generators[index])
            for row, index in zip(probabilities, rows, strict=True)
        ]
        return torch.cat(drawn)


def _pad_left(suffixes: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Suffixes [L_i, D] -> one batch [B, max L, D] that ends together, and bool [B, max L]: what is not padding."""
    length = max(len(suffix) for suffix in suffixes)
    batch = suffixes[0].new_zeros(len(suffixes), length, suffixes[0].shape[1])
    visible = torch.zeros(len(suffixes), length, dtype=torch.bool, device=batch.device)
    for row, suffix in enumerate(suffixes):
        batch[row, length - len(suffix) :] = suffix
        visible[row, length - len(suffix) :] = True
    return batch, visible


def _shared_prefixes(prefixes: Sequence[Prefix]) -> SharedPrefixes:
    groups = [list(group) for _, group in groupby(prefixes, key=id)]
    return SharedPrefixes(tuple(group[0] for group in groups), tuple(len(group) for group in groups))
