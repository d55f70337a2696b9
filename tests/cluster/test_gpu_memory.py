"""Settings files against the memory of the GPUs that they ask for, with a model of 8 billion parameters."""

import re
from functools import cache
from typing import Any

import pytest

from tests.cluster.manifests import CLUSTER, check_command, commands_in_comments, load

torch = pytest.importorskip("torch")

GIB_OF_GB = 0.93
"""A GPU of 24 GB has about 22.3 GiB."""

INSTANCES_GB = {"g6e.12xlarge": 48, "p4d.24xlarge": 40, "p4de.24xlarge": 80, "p5.48xlarge": 80}
SAM_VIT_H_BYTES = 2 * 641_000_000
"""In bfloat16."""

EMBEDDER_BYTES = 2 * 86_600_000
"""DINOv2 base in bfloat16."""


@cache
def model_of_8_billion() -> tuple[Any, Any]:
    """Configuration and processor of the larger model of ``make gpu-proof``."""
    from benchmarks.gpu_proof import ON_GPU
    from ureca.model.image_processing import UrecaImageProcessor
    from ureca.model.initialization import build_tokenizer, configuration_of
    from ureca.model.processing import UrecaProcessor
    from ureca.model.settings import TinySizes

    sizes = TinySizes(**ON_GPU.shapes["8B"])  # type: ignore[arg-type]  # all of them are numbers
    processor = UrecaProcessor(
        UrecaImageProcessor(tile_size_px=sizes.image_size, max_tiles=sizes.max_tiles),
        build_tokenizer(),
        num_mask_tokens=sizes.num_mask_tokens,
        image_seq_length=sizes.image_seq_length,
    )
    return configuration_of(sizes, processor), processor


@cache
def weight_bytes() -> int:
    """Bytes of the larger model in bfloat16."""
    from ureca.model.modeling import UrecaForConditionalGeneration

    with torch.device("meta"):
        model = UrecaForConditionalGeneration(model_of_8_billion()[0])
    return 2 * sum(parameter.numel() for parameter in model.parameters())


def stated_gb(path: str) -> int:
    """Return the memory of a GPU that the head of a settings file asks for."""
    head = re.sub(r"\n# ?", " ", (CLUSTER / "configs" / path).read_text(encoding="utf-8"))
    (found,) = re.findall(r"(\d+) GB", head.partition("resources:")[0])
    return int(found)


@pytest.mark.parametrize("path", ["gpu-node/train.yaml", "gpu-cluster/train.yaml"])
@pytest.mark.parametrize("phase", ["align", "tune"])
def test_training_with_8_billion_parameters_fits_the_gpus_that_its_settings_ask_for(path: str, phase: str) -> None:
    from ureca.training.memory_estimate import MicroBatchSizes, Sharding, estimate_memory
    from ureca.training.phases import Align, Tune

    (command,) = commands_in_comments(CLUSTER / "configs" / path)
    settings: Any = check_command(command)
    config, processor = model_of_8_billion()
    tiles, text_tokens, answer_tokens = 7, 80, 60
    prefix = 40 + tiles * processor.image_seq_length
    images, regions = settings.batch.images_per_device, settings.batch.regions_per_image
    segment = 2 + tiles * processor.num_mask_tokens + text_tokens
    sizes = MicroBatchSizes(
        num_tokens=images * (prefix + regions * segment),
        num_prefix_tokens=images * prefix,
        num_image_tiles=images * tiles,
        num_mask_tiles=images * regions * tiles,
        num_answer_tokens=images * regions * answer_tokens,
    )
    sharding = Sharding(settings.resources.workers, settings.deepspeed.zero_stage)
    estimate = estimate_memory(config, Align() if phase == "align" else Tune(), sizes, sharding)
    assert estimate.fits(GIB_OF_GB * stated_gb(path)), str(estimate)
    if phase == "tune":
        assert not estimate.fits(GIB_OF_GB * 16)  # the estimate is one of this model


@pytest.mark.parametrize(
    "path",
    [
        f"{where}/{command}.yaml"
        for where in ("gpu-node", "gpu-cluster")
        for command in ("caption", "evaluate", "serve")
    ],
)
def test_captions_with_8_billion_parameters_leave_a_fifth_of_the_gpu_to_their_batches(path: str) -> None:
    num_bytes = weight_bytes()
    resources = load(CLUSTER / "configs" / path)["resources"]
    if "segmenter" in resources and resources["segmenter"]["num_gpus"] + resources["captioner"]["num_gpus"] <= 1:
        num_bytes += SAM_VIT_H_BYTES
    assert num_bytes < 0.8 * GIB_OF_GB * stated_gb(path) * 2**30


def test_curation_on_one_gpu_holds_masks_embedder_and_chat_model() -> None:
    path = "gpu-node/curate.yaml"
    settings = load(CLUSTER / "configs" / path)
    assert settings["mllm"]["checkpoint"].endswith("8B-hf")
    needed = weight_bytes() + SAM_VIT_H_BYTES + EMBEDDER_BYTES
    assert needed < 0.8 * GIB_OF_GB * stated_gb(path) * 2**30


@pytest.mark.parametrize("path", ["gpu-node/curate.yaml", "gpu-cluster/curate.yaml"])
def test_curation_embeds_on_a_gpu(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ureca.pipelines.batch.resources import on_device

    (command,) = commands_in_comments(CLUSTER / "configs" / path)
    settings: Any = check_command(command)
    assert settings.embedder.kind == "dinov2"
    assert settings.resources.masks.num_gpus > 0
    num_gpus = settings.resources.curate.num_gpus
    assert num_gpus > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert on_device(settings.embedder, num_gpus, "resources.curate").device == "cuda"
    assert settings.resources.masks.num_gpus + num_gpus <= 1  # both fit on one GPU


def test_machines_have_gpus_as_large_as_every_settings_file_for_clusters_asks_for() -> None:
    most = max(stated_gb(f"gpu-cluster/{command}.yaml") for command in ("caption", "curate", "evaluate", "train"))
    machine = load(CLUSTER / "ray-up.yaml")["available_node_types"]["gpu"]["node_config"]["InstanceType"]
    assert INSTANCES_GB[machine] >= most
    (workers,) = load(CLUSTER / "kuberay/rayjob-train.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    affinity = workers["template"]["spec"]["affinity"]["nodeAffinity"]
    (preferred,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    asked = {each["key"]: int(each["values"][0]) for each in preferred["preference"]["matchExpressions"]}
    assert asked["nvidia.com/gpu.memory"] / 1024 > GIB_OF_GB * stated_gb("gpu-cluster/train.yaml")
    from ureca.ops.doctor import MIN_DRIVERS

    assert asked["nvidia.com/cuda.driver-version.major"] == int(MIN_DRIVERS["13"].partition(".")[0]) - 1
