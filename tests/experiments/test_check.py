"""The comparison of the shipped model's figures with its card."""

import copy
from typing import Any

import pytest

from experiments.science import check
from experiments.science.check import Judged, differences, rate, table


def rates(correct: float, regions: int = 100) -> dict[str, float]:
    return {"correct": correct, "low": 0, "high": 100, "regions": regions}


@pytest.fixture
def card() -> dict[str, Any]:
    return {
        "sha256": "aa",
        "scenes": 200,
        "rates": {"all": rates(90), "depth 0": rates(95, 20)},
        "first_20_scenes": rates(88, 30),
        "shifts": {"noise": rates(80)},
    }


def test_differences_of_equal_figures_are_none(card: dict[str, Any]) -> None:
    assert differences(card, copy.deepcopy(card), "aa") == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("rates", "depth 0", "correct"), 93.9, "depth 0: 93.9 % correct, the card says 95 %"),
        (("rates", "all", "regions"), 99, "all: 99 regions, the card says 100"),
        (("shifts", "noise", "correct"), 81.1, "noise: 81.1 % correct, the card says 80 %"),
    ],
)
def test_differences_name_what_disagrees(card: dict[str, Any], path: tuple[str, ...], value: float, said: str) -> None:
    found = copy.deepcopy(card)
    row = found
    for name in path[:-1]:
        row = row[name]
    row[path[-1]] = value
    assert said in differences(card, found, "aa")


def test_differences_name_another_hash(card: dict[str, Any]) -> None:
    (line,) = differences(card, copy.deepcopy(card), "bb")
    assert "bb" in line
    assert "the card says aa" in line


def test_differences_of_fewer_scenes_use_the_card_of_the_first_scenes(card: dict[str, Any]) -> None:
    found = {"scenes": 20, "rates": {"all": rates(60, 30), "depth 0": rates(1, 3)}}
    assert differences(card, found, "aa") == ["first 20 scenes: 60 % correct, the card says 88 %"]


def test_main_returns_one_where_figures_disagree(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    measured = {"scenes": 200, "rates": {"all": rates(1, 2)}}
    monkeypatch.setattr(check, "check", lambda *args, **kwargs: measured)
    assert check.main([]) == 1
    assert "not as the card says: all: 2 regions" in capfd.readouterr().err
    assert check.main(["another", "--no-shifts"]) == 0


def test_rates_by_group_count_each_region_in_its_groups() -> None:
    judged = [
        Judged(0, 0, 0.2, 1, False, "a", True),
        Judged(0, 1, 0.0005, 6, False, "b", False),
        Judged(1, 1, 0.0005, 6, True, "b", True),
    ]
    rows = table(judged, 2)
    assert rows["all"]["correct"] == pytest.approx(66.7)
    assert rows["depth 1"] == rate(judged[1:], 2)
    assert rows["below 0.1 %"]["regions"] == rows["5 or more of the kind"]["regions"] == 2
    assert rows["10 % and more"]["correct"] == 100
