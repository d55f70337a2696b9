"""The plan of a whole run: epoch after epoch."""

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

from ureca.training.augmentation import AugmentationSettings
from ureca.training.counts import SampleCounts, TokenCosts
from ureca.training.plan import EpochPlan, MicroBatch, PlanSettings


class Position(NamedTuple):
    """Where a run is: a step within an epoch, both from 0."""

    epoch: int
    step: int


class RunPlan:
    """Which micro-batches each step of a run has.

    Args:
        counts, costs, settings, augmentation, seed, world_size: of all epochs.
        epochs: how many there are, where ``max_steps`` is None.
        max_steps: steps of the run, over as many epochs as it takes.

    Raises:
        ValueError: there is no region to train on.
    """

    def __init__(
        self,
        counts: SampleCounts,
        costs: TokenCosts,
        settings: PlanSettings,
        augmentation: AugmentationSettings,
        *,
        seed: int,
        world_size: int,
        epochs: int,
        max_steps: int | None = None,
    ) -> None:
        # Micro-batches are asked for in order: one epoch's plan is enough, and the next one's at its border.
        self.epoch_plan = lru_cache(maxsize=2)(
            lambda epoch: EpochPlan(
                counts, costs, settings, augmentation, epoch=epoch, seed=seed, world_size=world_size
            )
        )
        self._firsts = [0]
        """Run steps at which epochs begin, as far as they are known."""
        if max_steps is None:
            for _ in range(epochs):
                self._extend()
        self.num_steps = self._firsts[-1] if max_steps is None else max_steps

    def position(self, step: int) -> Position:
        """Epoch, and step within it, of a step of the run; ``num_steps`` gives where the run ends."""
        while self._firsts[-1] <= step:
            self._extend()
        epoch = bisect_right(self._firsts, step) - 1
        return Position(epoch, step - self._firsts[epoch])

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last one of its epoch, or of the run."""
        return step + 1 == self.num_steps or self.position(step + 1).step == 0

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """What a rank works on in a step of the run."""
        epoch, step_in_epoch = self.position(step)
        plan: EpochPlan = self.epoch_plan(epoch)
        return plan.micro_batches(step_in_epoch, rank)

    def _extend(self) -> None:
        self._firsts.append(self._firsts[-1] + self.epoch_plan(len(self._firsts) - 1).num_steps)
