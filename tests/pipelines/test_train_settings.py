"""Settings of ``ureca train``: sources, defaults of the paper, and invalid combinations."""

import pytest

from ureca.data.settings import JsonlSource, RegionsSource
from ureca.errors import SettingsError
from ureca.pipelines.train_settings import TrainSettings


def load(*flags: str) -> TrainSettings:
    return TrainSettings.load(["a", "b", "run", "--model", "tiny", *flags])


def test_paths_last_is_the_run_and_others_are_sources() -> None:
    settings = load("--regions.caption", "short", "--validation.sources", "v")
    assert settings.run == "run"
    assert settings.training_sources == (
        RegionsSource(path="a", caption="short"),
        RegionsSource(path="b", caption="short"),
    )
    assert settings.validation_sources == (RegionsSource(path="v", caption="short"),)
    jsonl = TrainSettings.load(
        ["a.jsonl", "run", "--model", "m", "--jsonl.images", "i", "--jsonl.mask-ids", "position"]
    )
    assert jsonl.training_sources == (JsonlSource(path="a.jsonl", images="i", mask_ids="position"),)


def test_load_without_flags_has_the_defaults_of_the_paper() -> None:
    settings = load()
    assert (settings.phase.kind, settings.phase.learning_rate, settings.phase.epochs) == ("align", 2e-4, 2)
    assert (settings.precision, settings.gradient_checkpointing, settings.deepspeed.zero_stage) == ("bf16", True, 1)
    assert settings.batch.images_per_device * settings.batch.regions_per_image == 16
    assert load("--phase.kind", "tune").phase.learning_rate == 4e-5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--deepspeed.zero-stage", "0", "--deepspeed.offload-optimizer", "cpu"], "offload_optimizer needs zero_stage"),
        (["--deepspeed.zero-stage", "0"], "precision bf16 needs deepspeed.zero_stage 1"),
        (["--deepspeed.offload-param", "cpu"], "offload_param needs zero_stage 3"),
        (["--export", "adapter"], "export adapter is for phase.kind tune"),
        (["--validation.sources", "v.jsonl"], "jsonl.images must name"),
        (["--feature-cache.directory", "c", "--deepspeed.zero-stage", "3"], "feature_cache.directory needs"),
        (["--phase.rank", "8"], "phase.rank"),
        (["--deepspeed.zero-stage", "4"], "deepspeed.zero_stage"),
    ],
)
def test_load_invalid_combination_names_it(flags: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(*flags)


def test_load_without_a_source_raises() -> None:
    with pytest.raises(SettingsError, match="paths"):
        TrainSettings.load(["run", "--model", "tiny"])
