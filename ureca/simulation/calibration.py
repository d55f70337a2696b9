"""What a run's record does not tell, fitted: the simulation of that run must take what the run took."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ureca.errors import InputError
from ureca.simulation.measured import Measured
from ureca.simulation.pipeline import Arrangement, Service, simulate

_LONGEST_STEP_S = 100.0
_HALVINGS = 12


@dataclass(frozen=True)
class Calibrated:
    """Times for further simulations.

    Attributes:
        service: seconds that work takes.
        startup_s: from the beginning of a session to its first unit, and from its last to its end.
    """

    service: Service
    startup_s: float


def calibrate(measured: Measured, arrangement: Arrangement, unit_sizes: Sequence[int]) -> Calibrated:
    """Find the processor time of a curating actor's steps, and the time around the work, of a run.

    A unit's time in an actor is known, of which answers take a known part: what is left is the actor's own work and
    the waiting for it.

    Args:
        measured: of the run.
        arrangement: on which it ran.
        unit_sizes: of its units.

    Raises:
        InputError: its units took longer than any processor time explains.
    """
    base = Service(
        propose_s=measured.propose_s,
        tree_s=measured.tree_s,
        step_s=0.0,
        answer_s=measured.answer_s or (0.0,),
        calls_per_question=measured.calls_per_question,
    )

    def curate_s(step_s: float) -> float:
        return simulate(measured, replace(base, step_s=step_s), arrangement, unit_sizes).curate_s

    low, high = 0.0, 0.001
    while curate_s(high) < measured.curate_s:
        low, high = high, 2 * high
        if high > _LONGEST_STEP_S:
            raise InputError(
                f"the units of this run were {measured.curate_s:.0f} s in their actors, which its answers and the work "
                "on them do not explain: did something hold it up?"
            )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if curate_s(middle) < measured.curate_s else (low, middle)
    service = replace(base, step_s=(low + high) / 2)
    simulated_s = simulate(measured, service, arrangement, unit_sizes).end.now_s
    return Calibrated(service, max(0.0, measured.wall_s - simulated_s))
