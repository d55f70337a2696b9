"""The figures of an evaluation as a value that JSON holds."""

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Dimension: TypeAlias = Literal["all", "depth", "size"]

Text: TypeAlias = Annotated[str, AfterValidator(lambda text: text.encode(errors="backslashreplace").decode())]
"""Text that files can hold, whatever a file name or a model's answer had in it (lone surrogates)."""


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Value):
    """One figure with its bootstrap confidence interval; None where one image alone allows none."""

    value: float
    low: float | None
    high: float | None


class Group(_Value):
    """Figures of a model over some of its regions.

    ``dimension`` is "all", "depth" or "size"; ``name`` says which regions of it. ``figures`` has an entry for each
    measure that at least one of these regions counts for.
    """

    dimension: Dimension
    name: str
    num_regions: int = Field(ge=0)
    num_images: int = Field(ge=0)
    num_blank: int = Field(ge=0, description="regions without a caption")
    figures: dict[str, Figure]


class ModelRows(_Value):
    """Everything about one model.

    ``missing`` has, for each measure that was not taken, the reason; ``failures`` how many regions have no caption,
    by reason; ``remarks`` what a reader must know.
    """

    model: Text
    groups: tuple[Group, ...]
    missing: dict[str, Text]
    failures: dict[Text, int]
    remarks: tuple[Text, ...]

    def group(self, dimension: str, name: str) -> Group | None:
        """The group of that dimension and name, if the model has regions in it."""
        return next((group for group in self.groups if (group.dimension, group.name) == (dimension, name)), None)


class EvaluationTable(_Value):
    """One evaluation of several models on the same regions.

    ``columns`` are the names of the measures in their order; ``dimensions`` the names of the groups of each breakdown
    in theirs. ``confidence`` is the probability that intervals hold the figure, by ``num_resamples`` resamplings of
    images with ``seed``.
    """

    version: Literal[1] = 1
    title: Text
    columns: tuple[str, ...]
    dimensions: dict[Dimension, tuple[str, ...]]
    models: tuple[ModelRows, ...]
    confidence: float
    num_resamples: int
    seed: int
    remarks: tuple[Text, ...]
