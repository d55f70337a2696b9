"""Figures of groups, their intervals, and missing measures of a table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ureca.errors import DataError, InputError
from ureca.evaluation.measures import Measure, Unmeasured, mean_of
from ureca.evaluation.metrics.references import bleu
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.settings import TableSettings
from ureca.evaluation.tables.build import Evaluated, EvaluationTable, Figure, build_table
from ureca.evaluation.tables.formats import read_table, write_table


def prediction(
    image_id: str,
    region_id: int,
    *,
    depth: int | None = 0,
    area_fraction: float = 0.3,
    caption: str = "a car",
    failure: str | None = None,
) -> Prediction:
    return Prediction(image_id, region_id, caption, ("a car",), depth, area_fraction, failure)


def table(*models: Evaluated, **changes: object) -> EvaluationTable:
    return build_table(models, TableSettings.model_validate({"num_resamples": 200} | changes), title="a test")


def figure(of: EvaluationTable, dimension: str, name: str, column: str) -> Figure:
    group = of.models[0].group(dimension, name)
    assert group is not None
    return group.figures[column]


def test_build_table_groups_regions_by_depth_and_size() -> None:
    depths = [0, 1, 2, 3, 9, None]
    areas = [0.0005, 0.001, 0.0049, 0.005, 0.1, 1.0]
    regions = [
        prediction("image", place, depth=depth, area_fraction=area)
        for place, (depth, area) in enumerate(zip(depths, areas, strict=True))
    ]
    found = table(Evaluated("model", regions, [mean_of("Correct", [1, 0, 1, 0, 1, None])]))
    assert found.dimensions == {
        "all": ("all regions",),
        "depth": ("0", "1", "2", "3+", "unknown"),
        "size": ("< 0.1 %", "0.1-0.5 %", "0.5-2 %", "≥ 10 %"),
    }
    counts = {(group.dimension, group.name): group.num_regions for group in found.models[0].groups}
    assert list(counts.values()) == [6, 1, 1, 1, 2, 1, 1, 2, 1, 2]
    assert figure(found, "all", "all regions", "Correct").value == pytest.approx(3 / 5)
    assert figure(found, "depth", "3+", "Correct").value == pytest.approx(1 / 2)
    assert figure(found, "size", "0.1-0.5 %", "Correct").value == pytest.approx(1 / 2)
    unknown = found.models[0].group("depth", "unknown")
    assert unknown is not None
    assert unknown.figures == {}  # its one region does not count


def test_build_table_without_depths_has_no_depth_groups() -> None:
    found = table(Evaluated("model", [prediction("image", 0, depth=None)], [mean_of("Correct", [1])]))
    assert found.dimensions["depth"] == ()


def test_table_settings_bounds_define_size_groups() -> None:
    regions = [prediction("image", 0, area_fraction=0.4), prediction("image", 1, area_fraction=0.5, depth=2)]
    found = table(Evaluated("m", regions, [mean_of("Correct", [0, 1])]), size_bounds_fraction=[0.5], deepest=1)
    assert found.dimensions["size"] == ("< 50 %", "≥ 50 %")
    assert found.dimensions["depth"] == ("0", "1+")
    for bounds in ([0.5, 0.5], [0.0], [1.0], [0.2, 0.1]):
        with pytest.raises(ValidationError, match="each larger than the one before"):
            TableSettings(size_bounds_fraction=tuple(bounds))


def test_interval_of_single_image_is_none() -> None:
    alone = table(Evaluated("m", [prediction("one", 0), prediction("one", 1)], [mean_of("Correct", [0, 1])]))
    assert figure(alone, "all", "all regions", "Correct") == Figure(value=0.5, low=None, high=None)
    two = table(Evaluated("m", [prediction("one", 0), prediction("two", 0)], [mean_of("Correct", [0, 1])]))
    assert figure(two, "all", "all regions", "Correct") == Figure(value=0.5, low=0, high=1)


def intervals(images: Sequence[int], values: Sequence[float], **changes: object) -> Figure:
    regions = [prediction(f"image {image}", place) for place, image in enumerate(images)]
    return figure(table(Evaluated("m", regions, [mean_of("ROUGE", values)]), **changes), "all", "all regions", "ROUGE")


def test_interval_with_repeated_regions_of_same_images_is_unchanged() -> None:
    """50 regions of an image that are right or wrong together tell no more than one of them."""
    values = [float(image % 3 == 0) for image in range(30)]
    one, many = intervals(range(30), values), intervals([*range(30)] * 50, values * 50)
    assert many.model_dump() == pytest.approx(one.model_dump())
    assert one.low is not None
    assert one.high is not None
    # The normal approximation of 10 of 30.
    assert one.high - one.low == pytest.approx(2 * 1.96 * np.sqrt(1 / 3 * 2 / 3 / 30), rel=0.2)


def test_interval_depends_on_seed_and_confidence() -> None:
    values = np.random.default_rng(0).random(40).tolist()
    first = intervals(range(40), values)
    assert intervals(range(40), values) == first
    other = intervals(range(40), values, seed=1)
    assert (other.low, other.high) != (first.low, first.high)
    narrow = intervals(range(40), values, confidence=0.6)
    assert narrow.low is not None
    assert narrow.high is not None
    assert first.low is not None
    assert first.high is not None
    assert first.low < narrow.low < first.value < narrow.high < first.high


words = st.lists(st.sampled_from("abc"), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(words, words, st.integers(0, 3)), min_size=1, max_size=12))
def test_bleu_of_group_is_corpus_bleu_of_its_regions(items: list[tuple[str, str, int]]) -> None:
    regions = [prediction("image", place, depth=depth) for place, (_, _, depth) in enumerate(items)]
    measures = bleu([caption for caption, _, _ in items], [[reference] for _, reference, _ in items])
    found = table(Evaluated("model", regions, measures), num_resamples=100)
    for depth in {depth for _, _, depth in items}:
        own = [item for item in items if item[2] == depth]
        expected = bleu([caption for caption, _, _ in own], [[reference] for _, reference, _ in own])
        group = found.models[0].group("depth", "3+" if depth == 3 else str(depth))
        assert group is not None
        assert [group.figures[measure.name].value for measure in expected] == pytest.approx(
            [measure.value() for measure in expected]
        )


def test_build_table_lists_missing_measures_with_reasons() -> None:
    regions = [prediction("image", 0), prediction("image", 1, caption=" ", failure="too_small"), prediction("i", 0)]
    measures = [mean_of("Correct", [1, 0, 1]), mean_of("Listener", [None] * 3), Unmeasured("BERTScore", "no weights")]
    other = Evaluated("other", regions[:2], [mean_of("Retrieval R@1", [1, 1], ("By chance 50 %.",))])
    found = table(Evaluated("model", regions, measures, ("Trained for a minute.",)), other)
    assert found.columns == (
        *("BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4", "ROUGE", "METEOR", "BERTScore"),
        *("Retrieval R@1", "Listener", "Correct"),
    )
    model, rest = found.models
    assert model.missing["BERTScore"] == "no weights"
    assert model.missing["METEOR"] == model.missing["Retrieval R@1"] == "it was not asked for"
    assert model.missing["Listener"] == "no region counts for it"
    assert set(model.missing) == {*found.columns} - {"Correct"}
    assert model.failures == {"too_small": 1}
    assert [group.num_blank for group in model.groups[:1]] == [1]
    assert model.remarks == ("Trained for a minute.",)
    assert rest.remarks == ("By chance 50 %.",)
    assert "2 are shared by all" in found.remarks[0]


def test_build_table_of_inconsistent_models_raises_error() -> None:
    regions = [prediction("image", 0)]
    good = Evaluated("model", regions, [])
    with pytest.raises(InputError, match="different names"):
        table(good, good)
    with pytest.raises(InputError, match="different names"):
        table()
    with pytest.raises(InputError, match="no predictions"):
        table(Evaluated("model", [], []))
    with pytest.raises(DataError, match="duplicate_region"):
        table(Evaluated("model", regions * 2, []))
    with pytest.raises(ValueError, match="no columns"):
        table(Evaluated("model", regions, [mean_of("Beauty", [1])]))
    with pytest.raises(ValueError, match="twice"):
        table(Evaluated("model", regions, [mean_of("ROUGE", [1]), Unmeasured("ROUGE", "it rained")]))
    with pytest.raises(ValueError, match="of 2 regions, not 1"):
        table(Evaluated("model", regions, [mean_of("ROUGE", [1, 1])]))


@pytest.mark.parametrize(
    "changes", [{"area_fraction": 1.1}, {"area_fraction": float("nan")}, {"depth": -2}, {"failure": "but a caption"}]
)
def test_prediction_with_impossible_values_raises_value_error(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"region 0 of image 'image'"):
        prediction("image", 0, **changes)  # type: ignore[arg-type]


def test_measure_can_be_pickled() -> None:
    import pickle

    (measure, *_) = bleu(["a b"], [["a c"]])
    again: Measure = pickle.loads(pickle.dumps(measure))  # noqa: S301 - our own
    assert again.value() == measure.value()


def test_read_table_of_written_json_returns_same_table(tmp_path: Path) -> None:
    found = table(Evaluated("\ud800 <model>", [prediction("a", 0), prediction("b", 0)], [mean_of("ROUGE", [1, 0])]))
    paths = write_table(found, tmp_path)
    assert [path.name for path in paths] == ["table.md", "table.json", "table.html"]
    again = read_table(tmp_path / "table.json")
    assert again == found
    assert again.models[0].model == r"\ud800 <model>"
    (tmp_path / "old.json").write_text(found.model_copy(update={"version": 2}).model_dump_json())
    with pytest.raises(InputError, match=r"old\.json is no evaluation table"):
        read_table(tmp_path / "old.json")
