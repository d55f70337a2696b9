"""Settings: four sources in order, and errors that name the key."""

from pathlib import Path

import pytest

from ureca.config import differences
from ureca.errors import SettingsError
from ureca.pipelines.curate_settings import CurateSettings


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "tree: {containment: 0.5, min_area_fraction: 0.1, max_area_fraction: 0.6}\nmax_error_fraction: 0.4\n"
    )
    monkeypatch.setenv("URECA_TREE__MIN_AREA_FRACTION", "0.2")
    monkeypatch.setenv("URECA_TREE__MAX_AREA_FRACTION", "0.5")
    arguments = ["in", "out", "--config", str(config), "--tree.max-area-fraction", "0.4"]
    settings = CurateSettings.load(arguments)
    assert settings.tree.max_area_fraction == 0.4  # flag
    assert settings.tree.min_area_fraction == 0.2  # environment
    assert settings.tree.containment == 0.5  # file
    assert settings.tree.main_object_min_levels == 1  # default
    assert settings.max_error_fraction == 0.4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["in", "out", "--tree.containment", "1.5"], "tree.containment"),
        (["in", "out", "--tree.containmant", "0.5"], "containmant"),
        (["in", "out", "--masks.kind", "magic"], "masks"),
        (["in", "out", "--masks.kind", "sam"], "checkpoint"),
        (["in"], "OUTPUT"),
        (["in", "out", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["in", "out", "--listing.annotations", "beside"], "listing.annotations"),
    ],
)
def test_a_wrong_setting_is_named(arguments: list[str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        CurateSettings.load(arguments)


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("tree: {containmant: 0.5}\n")
    with pytest.raises(SettingsError, match=r"tree\.containmant"):
        CurateSettings.load(["in", "out", "--config", str(config)])


def test_a_file_that_is_no_yaml_is_an_error(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("tree: [")
    with pytest.raises(SettingsError):
        CurateSettings.load(["in", "out", "--config", str(config)])


def test_the_file_of_one_call_does_not_reach_the_next(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("max_error_fraction: 0.4\n")
    CurateSettings.load(["in", "out", "--config", str(config)])
    assert CurateSettings.load(["in", "out"]).max_error_fraction == 0.1


def test_a_dump_makes_the_same_settings_again() -> None:
    settings = CurateSettings.load(["in", "out", "--annotator.kind", "prompted", "--annotator.temperature", "0.5"])
    assert CurateSettings(**settings.model_dump(mode="json")) == settings


def test_differences_name_dotted_keys_and_both_values() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == [
        "a.c: 2 then, 5 now",
        "d: 3 then, None now",
        "e: None then, 4 now",
    ]


def test_differences_pass_over_what_they_are_told() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": {"e": 3}}
    now = {"a": {"b": 5, "c": 6}, "d": {"e": 7}}
    assert differences(before, now, ignore={"a.b", "d"}) == ["a.c: 2 then, 6 now"]
