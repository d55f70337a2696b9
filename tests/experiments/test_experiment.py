"""The experiment, small enough for a test: from the command to the tables, and on from where it was stopped."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.science.captions import read_captions
from experiments.science.settings import VARIANTS, ScienceSettings
from ureca.errors import OutputError, SettingsError
from ureca.evaluation.tables.formats import read_table
from ureca.evaluation.uniqueness import resolution
from ureca.jobs.science import main
from ureca.model.checkpoints import load_checkpoint
from ureca.scenes.scene import read_scene

BUDGET_S = 1.0
FLAGS = [
    *("--models", '["dynamic", "crop"]', "--processes", "1", "--max-new-tokens", "12"),
    *("--scenes.train", "6", "--scenes.test", "2", "--training.budget-s", str(BUDGET_S)),
    *("--training.images", "2", "--training.regions-per-image", "6", "--training.views-per-image", "2"),
    *("--sizes.vision-width", "32", "--sizes.vision-layers", "1", "--sizes.width", "32", "--sizes.layers", "1"),
    *("--sizes.mlp-width", "64", "--sizes.patch-size", "14", "--sizes.num-mask-tokens", "2"),
    *("--table.num-resamples", "100", "--metrics", "[]"),
]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("science") / "out"
    assert main([str(folder), *FLAGS]) == 0
    yield folder


def test_science_scores_every_region_of_test_set(output: Path) -> None:
    scenes = {path.stem: read_scene(path) for path in (output / "scenes" / "test" / "images").glob("*.json")}
    regions = {(image_id, region.id) for image_id, scene in scenes.items() for region in scene.regions}
    assert len(scenes) == 2
    for name in ("dynamic", "crop"):
        judged = read_captions(output / "models" / name / "captions.json")
        assert {(one.image_id, one.region_id) for one in judged} == regions
        for one in judged:
            scene = scenes[one.image_id]
            assert one.resolution == resolution(one.caption, one.region_id, scene)
            assert resolution(one.reference, one.region_id, scene) == "correct"


def test_science_tables_compare_finished_models(output: Path) -> None:
    table = read_table(output / "prompts.json")
    assert [model.model for model in table.models] == [VARIANTS[name].title for name in ("crop", "dynamic")]
    assert {"Correct", "Ambiguous", "Wrong"} <= {*table.columns}
    judged = read_captions(output / "models" / "crop" / "captions.json")
    whole = table.models[0].groups[0]
    assert whole.figures["Correct"].value == sum(one.resolution == "correct" for one in judged) / len(judged)
    assert "By size" in (output / "prompts.md").read_text()
    assert "<table" in (output / "prompts.html").read_text()
    assert not (output / "mask_tokens.md").exists()  # one of its models alone compares nothing


def test_science_from_a_base_trains_its_weights_on(output: Path, tmp_path: Path) -> None:
    base = output / "models" / "dynamic" / "model"
    flags = [*FLAGS, "--base", str(base), "--scenes.captions", "shortest"]
    flags[flags.index('["dynamic", "crop"]')] = '["one-tile"]'
    assert main([str(tmp_path / "out"), *flags]) == 0
    before, _ = load_checkpoint(base)
    after, processor = load_checkpoint(tmp_path / "out" / "models" / "one-tile" / "model")
    assert not processor.dynamic_mask
    steps = json.loads((tmp_path / "out" / "models" / "one-tile" / "figures.json").read_text())["steps"]
    assert steps >= 1
    far = max(float((weight - before.state_dict()[name]).abs().max()) for name, weight in after.state_dict().items())
    assert 0 < far < 0.5  # a model from nothing would be as far away as its weights are large
    table = read_table(tmp_path / "out" / "prompts.json")
    assert "from the checkpoint model" in table.title


def test_science_from_a_base_leaves_out_models_that_are_the_same(tmp_path: Path) -> None:
    all_models = set(ScienceSettings.load([str(tmp_path)]).compared)
    assert all_models == {*VARIANTS} - {"tokens-4", "fused"}  # those of the default sizes
    from_base = set(ScienceSettings.load([str(tmp_path), "--base", "scenes"]).compared)
    assert from_base == {*VARIANTS} - {"tokens-1"}


def test_science_from_a_missing_base_raises_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"base nowhere is no URECA checkpoint: cannot read nowhere/config\.json"):
        main([str(tmp_path / "out"), "--base", "nowhere"])
    assert not (tmp_path / "out" / "scenes").exists()


def test_science_models_use_and_record_same_budget(output: Path) -> None:
    recorded = json.loads((output / "settings.json").read_text())
    assert recorded["settings"]["training"]["budget_s"] == BUDGET_S
    for figures in recorded["models"].values():
        assert figures["cpu_s"] >= BUDGET_S
        assert figures["steps"] > 0
        assert figures["regions"] > 0


def test_science_resumed_keeps_finished_models(output: Path) -> None:
    weights = output / "models" / "dynamic" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert main([str(output), *FLAGS]) == 0
    assert weights.stat().st_mtime_ns == before


def test_science_resumed_captions_unfinished_models(output: Path) -> None:
    model = output / "models" / "crop"
    weights = model / "model" / "model.safetensors"
    captions, before = read_captions(model / "captions.json"), weights.stat().st_mtime_ns
    (model / "captions.json").unlink()
    assert main([str(output), *FLAGS]) == 0
    assert read_captions(model / "captions.json") == captions
    assert weights.stat().st_mtime_ns == before


def test_science_with_changed_settings_raises_output_error(output: Path) -> None:
    with pytest.raises(OutputError, match=r"training\.images: 2 then, 3 now"):
        main([str(output), *FLAGS, "--training.images", "3"])


def test_science_in_other_folder_raises_output_error(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="no experiment"):
        main([str(tmp_path), *FLAGS])


def test_science_with_unknown_model_raises_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not telepathy"):
        main([str(tmp_path / "out"), "--models", '["telepathy"]'])
