"""Which model is asked, and whether it can run where it is put."""

import pytest

from ureca.curation.listener import PromptedListener
from ureca.errors import SettingsError
from ureca.llm.settings import TransformersConfig, VllmConfig
from ureca.pipelines.curate import build_curator
from ureca.pipelines.curate_settings import CurateSettings

PROMPTED = ["in", "out", "--annotator.kind", "prompted"]


def test_a_listener_is_built_with_its_rounds() -> None:
    settings = CurateSettings.load(["in", "out", "--listener.kind", "prompted", "--listener.max-rounds", "5"])
    curator = build_curator(settings)
    assert isinstance(curator.listener, PromptedListener)
    assert curator.listening.max_rounds == 5
    assert build_curator(CurateSettings.load(["in", "out"])).listener is None


def test_options_of_engines_arrive_as_what_they_are() -> None:
    tail = ["--resources.curate.num-actors", "1", "--mllm.checkpoint", "c"]
    mllm = CurateSettings.load(
        [*PROMPTED, *tail, "--mllm.kind", "transformers", "--mllm.image-options", "max_patches=6"]
    ).mllm
    assert isinstance(mllm, TransformersConfig) and mllm.image_options == {"max_patches": 6}
    options = ["enforce_eager=true", "max_num_seqs=64", "quantization=fp8", "cpu_offload_gb=0.5"]
    flags = [flag for option in options for flag in ("--mllm.engine-options", option)]
    mllm = CurateSettings.load([*PROMPTED, *tail, "--mllm.kind", "vllm", *flags]).mllm
    assert isinstance(mllm, VllmConfig)
    assert mllm.engine_options == {
        "enforce_eager": True,
        "max_num_seqs": 64,
        "quantization": "fp8",
        "cpu_offload_gb": 0.5,
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--mllm.kind", "transformers"], r"resources\.curate\.num_gpus or resources\.curate\.num_actors"),
        (["--mllm.kind", "vllm"], r"resources\.curate\.num_gpus or resources\.curate\.num_actors"),
        (
            ["--mllm.kind", "vllm", "--mllm.tensor-parallel-size", "4", "--resources.curate.num-gpus", "2"],
            "tensor_parallel_size 4 needs as many GPUs an actor",
        ),
    ],
)
def test_a_model_that_no_actor_could_hold_is_refused(arguments: list[str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        CurateSettings.load([*PROMPTED, "--mllm.checkpoint", "c", *arguments])


@pytest.mark.parametrize("kind", ["annotator", "listener", "verification"])
def test_a_model_may_be_asked_by_any_of_the_three(kind: str) -> None:
    openai = ["--mllm.kind", "openai", "--mllm.model", "m", "--mllm.base-urls", "http://localhost:9/v1"]
    assert CurateSettings.load(["in", "out", f"--{kind}.kind", "prompted", *openai]).mllm.kind == "openai"
    with pytest.raises(SettingsError, match="set one of them"):
        CurateSettings.load(["in", "out", *openai])
