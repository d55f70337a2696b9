"""Writing captions token by token over the prefixes that they share; rows join and leave between tokens."""

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from ureca.model.modeling import UrecaForConditionalGeneration
from ureca.model.shared_prefix import Prefix, enable_shared_prefixes
from ureca.model.suffix_state import SuffixState

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Row:
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
        self._state: SuffixState | None = None

    def __len__(self) -> int:
        """Rows that are not finished."""
        return len(self._rows)

    @torch.inference_mode()
    def join(self, rows: Sequence[tuple[Key, Row]]) -> None:
        """Read the prompts of further rows; those that share a prefix stand best next to each other."""
        if not rows:
            return
        enable_shared_prefixes(self._model.model.language_model.config)  # whatever attention was chosen meanwhile
        state = SuffixState.of_prompts(self._model, [row.prefix for _, row in rows], [row.suffix for _, row in rows])
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
    row: Row
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
