"""The sampler: regions that each step of a run shows to each rank.

A run is a sequence of epochs (`RunPlan`), and an epoch shows every region exactly once (`EpochPlan`). The regions of an
image are shuffled and divided into *groups* that share the image's tokens; groups of similar length are bucketed into
*micro-batches*, and the micro-batches of all ranks make a step. Every plan is a function of its arguments alone, so a
resumed run shows the same samples as an uninterrupted one. The plan of a long run is computed once, in bounded memory,
and stored in files that all processes map (`RunPlan.store`).
"""

import json
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

from ureca.errors import OutputError
from ureca.hashing import digest
from ureca.io import replacing_folder
from ureca.training.epoch_plan import EpochPlan, MicroBatch
from ureca.training.settings import AugmentationSettings, MicroBatchSettings
from ureca.training.token_costs import SampleCosts, TokenCosts


class Position(NamedTuple):
    """Position of a run: an epoch and a step within it, both from 0."""

    epoch: int
    step: int


class RunPlan:
    """The micro-batches of every step of a run.

    Args:
        samples, costs, settings, augmentation, seed, world_size: see `EpochPlan`.
        epochs: number of epochs, if ``max_steps`` is None.
        max_steps: number of steps of the run, over as many epochs as they take.

    Raises:
        ValueError: there is no region to train on.
    """

    num_micro_batches_per_rank: int
    """Micro-batches of a rank in a step, padding batches included."""

    def __init__(
        self,
        samples: SampleCosts,
        costs: TokenCosts,
        settings: MicroBatchSettings,
        augmentation: AugmentationSettings,
        *,
        seed: int,
        world_size: int,
        epochs: int,
        max_steps: int | None = None,
    ) -> None:
        # Steps are requested in order: one epoch's plan is needed at a time, and two at a border.
        self.epoch_plan: Callable[[int], EpochPlan] = lru_cache(maxsize=2)(
            lambda epoch: EpochPlan(
                samples, costs, settings, augmentation, epoch=epoch, seed=seed, world_size=world_size
            )
        )
        self._first_steps = [0]
        """Steps of the run at which epochs begin, as far as they are computed."""
        if max_steps is None:
            for _ in range(epochs):
                self._plan_next_epoch()
        self._num_stored_epochs: int | None = None
        self.num_micro_batches_per_rank = settings.gradient_accumulation
        self.num_steps = self._first_steps[-1] if max_steps is None else max_steps

    @classmethod
    def store(
        cls,
        folder: Path,
        read_samples: Callable[[Path], SampleCosts],
        costs: TokenCosts,
        settings: MicroBatchSettings,
        augmentation: AugmentationSettings,
        *,
        content: str,
        seed: int,
        world_size: int,
        epochs: int,
        max_steps: int | None = None,
    ) -> Self:
        """Compute the plan once for all processes, in bounded memory, unless the folder has it; then open it.

        Args:
            folder: folder for the files of the plan, which other processes can read; another plan in it is replaced.
            read_samples: function that reads the token counts of the index; it is called where there is no plan yet,
                with an empty folder for temporary files.
            content: identity of the samples.
            costs, settings, augmentation, seed, world_size, epochs, max_steps: see the class. The files are
                the same for all numbers of ranks with the same number of micro-batches in a step.

        Raises:
            ValueError: there is no region to train on.
        """
        per_step = world_size * settings.gradient_accumulation
        composition = settings.model_dump_json(exclude={"gradient_accumulation"})
        parts = (content, costs.model_dump_json(), composition, augmentation.model_dump_json(), per_step)
        key = digest([repr((_PLAN_VERSION, *parts, seed, epochs, max_steps))]).hex()
        if (stored := _read_plan(folder)) is None or stored["key"] != key:
            with replacing_folder(folder, overwrite=True) as temporary:
                num_steps: list[int] = []
                with TemporaryDirectory(dir=temporary) as samples_folder:
                    samples = read_samples(Path(samples_folder))
                    while len(num_steps) < epochs if max_steps is None else sum(num_steps) < max_steps:
                        epoch = len(num_steps)
                        path = temporary / _epoch_folder(epoch)
                        path.mkdir()
                        plan = EpochPlan(
                            samples,
                            costs,
                            settings,
                            augmentation,
                            epoch=epoch,
                            seed=seed,
                            world_size=world_size,
                            folder=path,
                        )
                        num_steps.append(plan.num_steps)
                stored = {
                    "key": key,
                    "epochs": num_steps,
                    "steps": sum(num_steps) if max_steps is None else max_steps,
                    "micro_batches_per_step": per_step,
                }
                (temporary / _PLAN_FILE).write_text(json.dumps(stored), encoding="utf-8")
        return cls.open(folder, world_size)

    @classmethod
    def open(cls, folder: Path, world_size: int) -> Self:
        """Memory-map the plan that `store` has written; the number of ranks may be another than then.

        Raises:
            OutputError: the folder holds no plan, or a step has fewer micro-batches than there are ranks.
        """
        stored = _read_plan(folder)
        if stored is None:
            raise OutputError(f"{folder} holds no plan of a run: start the run again")
        per_step = stored["micro_batches_per_step"]
        if per_step < world_size:
            raise OutputError(
                f"{folder}: {per_step} micro-batches a step are too few for {world_size} ranks; resume with fewer "
                "workers"
            )
        plan = cls.__new__(cls)
        plan.epoch_plan = lru_cache(maxsize=2)(
            lambda epoch: EpochPlan.open(folder / _epoch_folder(epoch), world_size, per_step)
        )
        plan._first_steps = [0, *accumulate(stored["epochs"])]
        plan._num_stored_epochs = len(stored["epochs"])
        plan.num_micro_batches_per_rank = -(-per_step // world_size)
        plan.num_steps = stored["steps"]
        return plan

    def position(self, step: int) -> Position:
        """Return the position of a step of the run; ``num_steps`` gives the position of the run's end."""
        while self._first_steps[-1] <= step and self._num_stored_epochs is None:
            self._plan_next_epoch()
        epoch = bisect_right(self._first_steps, step) - 1
        return Position(epoch, step - self._first_steps[epoch])

    def ends_epoch(self, step: int) -> bool:
        """Return true for the last step of an epoch or of the run."""
        return step + 1 == self.num_steps or self.position(step + 1).step == 0

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """Return the micro-batches of a rank in a step of the run."""
        epoch, step_of_epoch = self.position(step)
        plan: EpochPlan = self.epoch_plan(epoch)
        return plan.micro_batches(step_of_epoch, rank)

    def _plan_next_epoch(self) -> None:
        self._first_steps.append(self._first_steps[-1] + self.epoch_plan(len(self._first_steps) - 1).num_steps)


_PLAN_VERSION = 1
_PLAN_FILE = "plan.json"


def _epoch_folder(epoch: int) -> str:
    return f"epoch-{epoch:06d}"


def _read_plan(folder: Path) -> dict[str, Any] | None:
    try:
        stored: dict[str, Any] = json.loads((folder / _PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored
