"""The device of models follows from the GPUs of their actors, and never from those that happen to be there."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.test_graph import settings_of
from ureca.curation.settings import Dinov2Config
from ureca.errors import SettingsError
from ureca.llm.settings import FakeConfig, TransformersConfig
from ureca.masks.generators.settings import PromptedSamConfig, SamConfig, SegmentsConfig
from ureca.pipelines.batch.dry_run import with_gpus_of_this_machine
from ureca.pipelines.batch.executor import check_packages
from ureca.pipelines.batch.resources import device_of, on_device
from ureca.pipelines.caption_settings import CaptioningSettings
from ureca.pipelines.curate import build_mask_stage
from ureca.pipelines.settings import ListingSettings

torch = pytest.importorskip("torch")

SAM = SamConfig(checkpoint=Path("sam.pth"))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node with four GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    "config", [SAM, Dinov2Config(), TransformersConfig(checkpoint="m")], ids=lambda each: each.kind
)
def test_on_device_without_a_share_of_a_gpu_is_the_cpu(config: SamConfig) -> None:
    assert on_device(config, 0, "resources.masks").device == "cpu"
    assert on_device(config, 0.25, "resources.masks").device == "cuda"
    assert on_device(config.model_copy(update={"device": "cuda:1"}), 1, "resources.masks").device == "cuda:1"
    with pytest.raises(SettingsError, match=r"device 'cuda:1' needs a GPU, and resources\.masks\.num_gpus is 0"):
        on_device(config.model_copy(update={"device": "cuda:1"}), 0, "resources.masks")


def test_on_device_with_a_gpu_that_is_missing_is_an_error_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"resources\.curate\.num_gpus is 0\.5, but torch .* can use no GPU on"):
        on_device(Dinov2Config(), 0.5, "resources.curate")
    with pytest.raises(SettingsError, match=r"resources\.captioner\.num_gpus is 1"):
        device_of(1, "resources.captioner")
    assert device_of(0, "resources.captioner") == "cpu"


@pytest.mark.parametrize(
    ("network", "package", "extra"), [("sam", "segment_anything", "sam"), ("sam2", "transformers", "model")]
)
def test_check_packages_of_prompts_are_those_of_their_network(
    monkeypatch: pytest.MonkeyPatch, network: Any, package: str, extra: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ureca.pipelines.batch.executor.ray_is_running", lambda: False)  # other tests start it
    masks = PromptedSamConfig(network=network, checkpoint="c")
    settings = CaptioningSettings(
        input="in", output="out", model="m", masks=masks, listing=ListingSettings(annotations="beside")
    )
    with pytest.raises(SettingsError, match=rf"masks\.kind prompts needs the package {package}: .*\[{extra}\]"):
        check_packages(settings)


@pytest.mark.usefixtures("gpus")
def test_on_device_several_gpus_stay_with_the_engine_that_divides_a_model() -> None:
    assert on_device(TransformersConfig(checkpoint="m"), 4, "resources.curate").device == "auto"


@pytest.mark.usefixtures("gpus")
def test_on_device_components_without_a_device_are_unchanged() -> None:
    for config in (SegmentsConfig(), FakeConfig()):
        assert on_device(config, 1, "resources.masks") is config


def test_build_mask_stage_on_a_node_without_the_gpu_raises_and_a_dry_run_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sam = {"kind": "sam", "checkpoint": str(tmp_path / "missing.pth"), "model_type": "vit_b"}
    settings = settings_of(tmp_path, resources={"masks": {"num_gpus": 1}})
    settings = settings.model_copy(update={"masks": SamConfig(**sam)})
    with pytest.raises(SettingsError, match=r"resources\.masks\.num_gpus is 1"):
        build_mask_stage(settings)
    here = with_gpus_of_this_machine(settings)
    assert here.resources.masks.num_gpus == 0
    with pytest.raises(SettingsError, match=r"missing\.pth does not exist"):  # on the CPU, there would be masks
        build_mask_stage(here)
