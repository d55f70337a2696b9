"""``ureca bench listener``: captions that a guessing listener accepts, in the test of several questions and of one."""

import argparse
import asyncio
import random
from collections.abc import Callable, Collection, Sequence

import numpy as np

from ureca.curation.listening import hear, plan_hearing
from ureca.curation.protocols import Choice
from ureca.curation.results import CuratedRegion
from ureca.curation.settings import ListeningSettings
from ureca.masks.views import Views

_NUM_CANDIDATES = (2, 3, 5, 7, 9, 10, 40)
_MODES = {"default": ListeningSettings(), "cheap": ListeningSettings(num_shuffles=1, max_chance=1.0)}


class _Guesser:
    """A listener that sees shuffled numbers and guesses; ``answers`` says among what."""

    name = "guesser"

    def __init__(self, answers: Callable[[int], Sequence[int | str]], seed: int) -> None:
        self._answers = answers
        self._generator = random.Random(seed)

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
        answer = self._generator.choice(self._answers(len(candidates)))
        if answer in {"none", "several"}:
            return "none" if answer == "none" else "several"
        ids = sorted(candidates)
        self._generator.shuffle(ids)
        return ids[int(answer)]


def main(argv: Sequence[str]) -> int:
    """Print, for each number of candidates, the captions that guesses are accepted for and the questions of a round."""
    parser = argparse.ArgumentParser(prog="ureca bench listener", description=__doc__)
    parser.add_argument("--captions", type=int, default=20_000, help="captions of each row (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the listener (default: %(default)s)")
    options = parser.parse_args(argv)
    guesses: dict[str, Callable[[int], Sequence[int | str]]] = {
        "of the numbers": range,
        "of all answers": lambda number: [*range(number), "none", "several"],
    }
    views = Views(np.zeros((8, 8, 3), np.uint8), {})
    print(f"{options.rounds} rounds, {options.captions} captions of each row")
    print(
        f"{'candidates':>10} {'mode':>8} {'questions':>9} {'stated':>7} " + " ".join(f"{name:>15}" for name in guesses)
    )
    for num_candidates in _NUM_CANDIDATES:
        for mode, defaults in _MODES.items():
            settings = defaults.model_copy(update={"max_rounds": options.rounds})
            hearing = plan_hearing(0, range(1, num_candidates), settings)

            async def fraction(guesser: _Guesser) -> float:
                accepted = 0
                for number in range(options.captions):
                    region = CuratedRegion(caption=str(number))
                    for _ in range(options.rounds):
                        if await hear(guesser, views, hearing, 0, region) == 0:  # noqa: B023 - awaited in the loop
                            accepted += 1
                            break
                return accepted / int(options.captions)

            fractions = [asyncio.run(fraction(_Guesser(answers, 0))) for answers in guesses.values()]
            print(
                f"{num_candidates:>10} {mode:>8} {len(hearing.questions):>9} {hearing.chance:>7.2%} "
                + " ".join(f"{each:>15.2%}" for each in fractions)
            )
    return 0
