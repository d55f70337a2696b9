"""From measures of predictions to the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ureca.evaluation.measures import Measure, Unmeasured
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.tables.results import EvaluationTable


class TableSettings(BaseModel):
    """How figures are broken down, and how sure they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_bounds_fraction: tuple[float, ...] = Field(
        default=(0.001, 0.005, 0.02, 0.1), description="bounds between the sizes of regions, as fractions of the image"
    )
    deepest: int = Field(default=3, ge=1, description="depth from which on regions are counted together")
    num_resamples: int = Field(default=1000, ge=100, le=100_000, description="bootstrap samples of the images")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of the intervals")
    seed: int = Field(default=0, ge=0, description="of the bootstrap")

    @field_validator("size_bounds_fraction")
    @classmethod
    def _ascending(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < bound < 1 for bound in bounds) or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"bounds are fractions between 0 and 1, each larger than the one before, not {bounds}")
        return bounds


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One model's captions and what was measured of them; each measure's statistics in the order of predictions."""

    model: str
    predictions: Sequence[Prediction]
    measures: Sequence[Measure | Unmeasured]
    remarks: Sequence[str] = ()


def build_table(models: Sequence[Evaluated], settings: TableSettings, *, title: str) -> EvaluationTable:
    """Figures of all models over all regions, by depth and by size, with bootstrap confidence intervals.

    Raises:
        InputError: two models have the same name, or none of them has a prediction.
        DataError: ``duplicate_region``.
    """
    raise NotImplementedError
