"""Settings of ``ureca curate``: the chat model, and the actors that hold it."""

import pytest

from ureca.curation.listener import PromptedListener
from ureca.errors import SettingsError
from ureca.llm.settings import TransformersConfig, VllmConfig
from ureca.masks.generators.settings import SegmentsConfig
from ureca.pipelines.curate import build_curator
from ureca.pipelines.curate_settings import CurateSettings

PROMPTED = ["in", "out", "--annotator.kind", "prompted"]


def test_listener_prompted_is_built_with_its_rounds() -> None:
    settings = CurateSettings.load(["in", "out", "--listener.kind", "prompted", "--listener.max-rounds", "5"])
    curator = build_curator(settings)
    assert isinstance(curator.listener, PromptedListener)
    assert curator.listening.max_rounds == 5
    assert build_curator(CurateSettings.load(["in", "out"])).listener is None


def test_load_engine_options_converts_their_types() -> None:
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
            "tensor_parallel_size 4 needs as many GPUs per actor",
        ),
    ],
)
def test_load_model_that_no_actor_can_hold_raises(arguments: list[str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        CurateSettings.load([*PROMPTED, "--mllm.checkpoint", "c", *arguments])


@pytest.mark.parametrize("kind", ["annotator", "listener", "verification"])
def test_load_mllm_is_used_by_annotator_listener_or_verification(kind: str) -> None:
    openai = ["--mllm.kind", "openai", "--mllm.model", "m", "--mllm.base-urls", "http://localhost:9/v1"]
    assert CurateSettings.load(["in", "out", f"--{kind}.kind", "prompted", *openai]).mllm.kind == "openai"
    with pytest.raises(SettingsError, match="set one of them"):
        CurateSettings.load(["in", "out", *openai])


@pytest.mark.parametrize(
    ("arguments", "smallest"),
    [
        ([], 0.007),
        (["--tree.min-area-fraction", "0.02"], 0.02),
        (["--tree.min-area-fraction", "0.9"], 0.5),  # the largest mask
        (["--masks.kind", "segments", "--masks.max-masks", "5"], 0.007),
        (["--masks.kind", "segments", "--masks.min-area-fraction", "0.003"], 0.003),
    ],
)
def test_segments_makes_no_mask_that_the_tree_leaves_out_unless_told(arguments: list[str], smallest: float) -> None:
    masks = CurateSettings.load(["in", "out", *arguments]).mask_generator
    assert isinstance(masks, SegmentsConfig)
    assert masks.min_area_fraction == smallest
