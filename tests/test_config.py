"""Reading settings from four sources, errors that name the setting, and absolute paths."""

from pathlib import Path

import pytest

from ureca.config import differences, with_absolute_paths
from ureca.errors import SettingsError
from ureca.pipelines.caption_settings import CaptioningSettings
from ureca.pipelines.curate_settings import CurateSettings
from ureca.pipelines.serve_settings import ServeSettings


def test_load_flags_override_environment_override_file_override_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        (["in", "out", "--tree.containmant", "0.5"], "did you mean --tree.containment"),
        (["in", "out", "--containment", "0.5"], "did you mean --tree.containment"),
        (["in", "out", "more"], "too many arguments: more"),
        (["in", "out", "--config"], "--config"),
        (["in", "out", "--masks.kind", "magic"], "masks.kind: 'magic' is none of"),
        (["in", "out", "--masks.kind", "sam"], "--masks.checkpoint is required"),
        (["in"], "OUTPUT"),
        (["in", "out", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["in", "out", "--listing.annotations", "beside"], "listing.annotations"),
    ],
)
def test_load_invalid_setting_names_it(arguments: list[str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        CurateSettings.load(arguments)


def test_load_unknown_key_in_the_file_names_it(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("tree: {containmant: 0.5}\n")
    with pytest.raises(SettingsError, match=r"tree\.containmant; did you mean tree\.containment\?"):
        CurateSettings.load(["in", "out", "--config", str(config)])


def test_load_unknown_section_in_the_file_suggests_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("tre: {containment: 0.5}\n")
    with pytest.raises(SettingsError, match=r"there is no setting tre; did you mean tree\?"):
        CurateSettings.load(["in", "out", "--config", str(config)])


def test_load_list_with_one_wrong_item_names_the_item_alone() -> None:
    flags = ["--mllm.kind", "openai", "--mllm.model", "m", "--mllm.base-urls", "htp://a"]
    with pytest.raises(SettingsError) as raised:
        CurateSettings.load(["in", "out", *flags])
    assert str(raised.value) == "mllm.base_urls.0: URL scheme should be 'http' or 'https'"


def test_load_file_that_is_not_yaml_raises(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("tree: [")
    with pytest.raises(SettingsError):
        CurateSettings.load(["in", "out", "--config", str(config)])


def test_load_twice_forgets_the_first_file(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("max_error_fraction: 0.4\n")
    CurateSettings.load(["in", "out", "--config", str(config)])
    assert CurateSettings.load(["in", "out"]).max_error_fraction == 0.1


def test_model_dump_restores_the_same_settings() -> None:
    settings = CurateSettings.load(["in", "out", "--annotator.kind", "prompted", "--annotator.temperature", "0.5"])
    assert CurateSettings(**settings.model_dump(mode="json")) == settings


def test_differences_names_dotted_keys_and_both_values() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == [
        "a.c: 2 then, 5 now",
        "d: 3 then, None now",
        "e: None then, 4 now",
    ]


def test_differences_of_sections_of_different_kinds_names_the_kinds_alone() -> None:
    before = {"masks": {"kind": "segments", "max_masks": 300}, "tree": {"containment": 0.8}}
    now = {"masks": {"kind": "sam", "checkpoint": "sam.pth"}, "tree": {"containment": 0.8}}
    assert differences(before, now) == ["masks.kind: 'segments' then, 'sam' now"]


def test_differences_with_ignored_keys_leaves_them_out() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": {"e": 3}}
    now = {"a": {"b": 5, "c": 6}, "d": {"e": 7}}
    assert differences(before, now, ignore={"a.b", "d"}) == ["a.c: 2 then, 6 now"]


def test_with_absolute_paths_changes_paths_and_keeps_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    settings = CurateSettings(
        input="images",
        output="s3://bucket/out",
        masks={"kind": "sam", "checkpoint": "sam.pth"},
        annotator={"kind": "prompted"},
        embedder={"kind": "dinov2", "checkpoint": "tiny"},
        mllm={"kind": "transformers", "checkpoint": "of/the-hub"},
        resources={"curate": {"num_actors": 1}},
    )
    absolute = with_absolute_paths(settings)
    assert (absolute.input, absolute.output) == (str(tmp_path / "images"), "s3://bucket/out")
    assert absolute.masks.checkpoint == tmp_path / "sam.pth"
    assert absolute.embedder.checkpoint == str(tmp_path / "tiny")
    assert absolute.mllm == settings.mllm
    assert absolute.resources == settings.resources
    assert with_absolute_paths(absolute) == absolute


def test_with_absolute_paths_keeps_the_name_of_a_model_behind_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    mllm = {"kind": "openai", "model": "tiny", "base_urls": ["http://a/v1"]}
    settings = CurateSettings(input="images", output="out", annotator={"kind": "prompted"}, mllm=mllm)
    absolute = with_absolute_paths(settings)
    assert absolute.output == str(tmp_path / "out")
    assert absolute.mllm == settings.mllm
    serving = with_absolute_paths(ServeSettings(model="tiny", batches={"folders": ["a", "/b"], "output": "c"}))
    assert serving.model == str(tmp_path / "tiny")
    assert serving.batches.folders == (tmp_path / "a", Path("/b"))
    assert serving.batches.output == tmp_path / "c"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 2000,
        "{a: " * 500,
        "- " * 500 + "a",
        "\n".join(" " * depth + "a:" for depth in range(200)),
        "a" * 2_000_000,
    ],
    ids=["lists", "maps", "lists in a line", "indented", "long"],
)
def test_load_config_file_nested_too_deep_or_too_long_raises(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"nested more than|more than \d+ bytes"):
        CurateSettings.load(["IN", "OUT", "--config", str(file)])


def test_with_absolute_paths_of_caption_keeps_the_model_only_behind_endpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    settings = CaptioningSettings(input="in", output="out", model="tiny")
    assert with_absolute_paths(settings).model == str(tmp_path / "tiny")
    behind = CaptioningSettings(input="in", output="out", model="tiny", engine="openai", base_urls=("http://a:1/v1",))
    assert with_absolute_paths(behind).model == "tiny"
