"""How the next token of each row of a batch is chosen."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria


class DrawTokens(LogitsProcessor):  # type: ignore[misc]  # transformers' classes are Any here
    """Makes the likeliest token a drawn one, for rows with a temperature (the Gumbel-max trick).

    Each row draws with a seed of its own, so its tokens do not depend on what else is in the batch.

    Args:
        temperatures: by row; 0 leaves the row greedy.
        seeds: by row.
        device: of the scores.
    """

    def __init__(self, temperatures: Sequence[float], seeds: Sequence[int], device: torch.device) -> None:
        self._temperatures = list(temperatures)
        self._generators = [
            torch.Generator(device).manual_seed(seed) if temperature else None
            for temperature, seed in zip(temperatures, seeds, strict=True)
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] to choose the greatest of."""
        scores = scores.float()
        for row, (temperature, generator) in enumerate(zip(self._temperatures, self._generators, strict=True)):
            if generator is not None:
                exponential = torch.empty_like(scores[row]).exponential_(generator=generator)
                scores[row] = scores[row] / temperature - exponential.log()
        return scores


class RowBounds(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own number of new tokens.

    Args:
        bounds: int64 [B].
        prompt_length: of all rows, padding included.
    """

    def __init__(self, bounds: torch.Tensor, prompt_length: int) -> None:
        self._bounds = bounds
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows are at their end, bool [B]."""
        return self._bounds <= input_ids.shape[1] - self._prompt_length
