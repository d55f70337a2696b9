"""Writing the captions of a batch of regions, token by token, over the prefixes that they share."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.shared_prefix import Prefix, SharedPrefixes, enable_shared_prefixes


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
    """A finished row.

    Args:
        row: which of the rows.
        token_ids: what it wrote, the end token not among them.
        finish_reason: "stop" or "length".
    """

    row: int
    token_ids: list[int]
    finish_reason: str


def complete(
    model: UrecaForConditionalGeneration,
    rows: Sequence[Row],
    *,
    end_token_ids: Collection[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    is_wanted: Callable[[int], bool] | None = None,
) -> Iterator[Completion]:
    """Write the continuation of every row; a row leaves the batch as soon as it is finished.

    A row's tokens do not depend on the other rows (in float32; in bfloat16 a near tie may fall differently).

    Args:
        model: on the device and of the type to run with.
        rows: rows that share a prefix must stand next to each other.
        end_token_ids: a row is finished ("stop") when it writes one of them.
        max_new_tokens: a row is finished ("length") when it has so many tokens.
        temperature: 0 takes the likeliest token; else tokens are drawn, each row by its own seed.
        top_p: draw from the likeliest tokens that together have this probability.
        is_wanted: asked of each row before each of its tokens but the first; a row that is not leaves the batch.

    Yields:
        Each row once, in the order in which they finish, but for those that were no longer wanted.
    """
    batch = _Batch(model, rows)
    choose = _Chooser([row.seed for row in rows], temperature, top_p, model.device)
    written: list[list[int]] = [[] for _ in rows]
    hidden = batch.read_prompts()
    while True:
        tokens = choose(model.lm_head(hidden).float(), batch.rows)
        going_on = []
        for place, (row, token) in enumerate(zip(batch.rows, tokens.tolist(), strict=True)):
            if token in end_token_ids:
                yield Completion(row, written[row], "stop")
                continue
            written[row].append(token)
            if len(written[row]) == max_new_tokens:
                yield Completion(row, written[row], "length")
            elif is_wanted is None or is_wanted(row):
                going_on.append(place)
        if not going_on:
            return
        batch.keep(going_on)
        hidden = batch.read_tokens(tokens[going_on])


class _Batch:
    """The rows that are still being written: what they have read so far, and how they read on."""

    def __init__(self, model: UrecaForConditionalGeneration, rows: Sequence[Row]) -> None:
        self.model = model
        self.rows = list(range(len(rows)))
        self._prefixes = [row.prefix for row in rows]
        self._prompts, self._visible = _pad_left([row.suffix for row in rows])
        self._cache = DynamicCache(config=model.config.text_config)
        starts = torch.tensor([[prefix.length] for prefix in self._prefixes], device=model.device)
        self._positions = starts + (self._visible.long().cumsum(1) - 1).clamp(min=0)
        enable_shared_prefixes(model.model.language_model.config)  # whatever attention was chosen meanwhile

    def read_prompts(self) -> torch.Tensor:
        """Read the suffixes; returns the hidden state of each row's last token, [B, D]."""
        length = self._prompts.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.model.device).tril()
        return self._read(self._prompts, self._visible[:, None, None, :] & causal)

    def read_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token [B] in each row; returns their hidden states [B, D]."""
        self._visible = torch.cat([self._visible, self._visible.new_ones(len(tokens), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        return self._read(self.model.get_input_embeddings()(tokens[:, None]), self._visible[:, None, None, :])

    def keep(self, places: list[int]) -> None:
        """Drop all rows but those at these places."""
        if len(places) == len(self.rows):
            return
        self._cache.batch_select_indices(torch.tensor(places, device=self.model.device))
        self.rows = [self.rows[place] for place in places]
        self._prefixes = [self._prefixes[place] for place in places]
        self._visible, self._positions = self._visible[places], self._positions[places]

    def _read(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        groups = [list(group) for _, group in groupby(self._prefixes, key=id)]
        outputs = self.model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            shared_prefixes=SharedPrefixes(tuple(group[0] for group in groups), tuple(len(group) for group in groups)),
        )
        hidden: torch.Tensor = outputs.last_hidden_state[:, -1]
        return hidden


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
