"""The same losses however a step is spread: over ranks, micro-batches, shards of ZeRO, and sessions."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch

from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.engine import TrainingEngine

ROOT = Path(__file__).parent.parent.parent

FULL = ["--phase.kind", "full", "--no-gradient-checkpointing"]
FP32, BF16 = [*FULL, "--precision", "fp32"], [*FULL, "--precision", "bf16"]
LORA = [
    "--phase.kind",
    "tune",
    "--precision",
    "fp32",
    "--phase.dropout",
    "0",
    "--phase.rank",
    "4",
    "--phase.alpha",
    "8",
]


def zero(stage: int, *flags: str) -> list[str]:
    return ["--deepspeed.zero-stage", str(stage), *flags]


OFFLOAD = ("--deepspeed.offload-optimizer", "cpu")

SCENARIOS = {
    1: [
        ("0", "train", FP32 + zero(0)),
        ("1", "train", FP32 + zero(1)),
        ("lora 0", "train", LORA + zero(0)),
        ("look", "look_plainly", []),
        ("worker", "worker", [*LORA, *zero(3), "--checkpoint.export", "--export", "adapter"]),
    ],
    2: [
        *((f"{stage}", "train_and_resume", FP32 + zero(stage)) for stage in range(4)),
        ("fused", "fused", FP32 + zero(2)),
        ("2 offload", "train", FP32 + zero(2, *OFFLOAD)),
        ("3 offload", "train", FP32 + zero(3, "--deepspeed.offload-param", "cpu", *OFFLOAD)),
        *((f"bf16 {stage}", "train_and_resume", BF16 + zero(stage)) for stage in (1, 3)),
        ("lora 3", "train", LORA + zero(3)),
        ("sharded", "sharded", ["--precision", "fp32", "--no-gradient-checkpointing"]),
        ("export align 3", "export", ["--phase.kind", "align", "--precision", "fp32", *zero(3)]),
        ("look 3", "look", FP32 + zero(3)),
        ("nan", "not_finite", FP32 + zero(0)),
    ],
}


def run_ranks(world_size: int, folder: Path, scenarios: Sequence[Any] | None = None) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(world_size):
        arguments = [str(rank), str(world_size), json.dumps(scenarios or SCENARIOS[world_size]), str(folder), str(port)]
        with (folder / f"log-{rank}").open("wb") as log:
            command = [sys.executable, "-m", "tests.pipelines.training_ranks", *arguments]
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    try:
        statuses = [process.wait(timeout=540) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    logs = {rank: (folder / f"log-{rank}").read_text()[-3000:] for rank, status in enumerate(statuses) if status}
    assert not logs, (statuses, logs)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Findings of the ranks by their number; they take long to start, so that they do all at once."""
    return {world_size: run_ranks(world_size, tmp_path_factory.mktemp("ranks")) for world_size in SCENARIOS}


def largest_difference(found: Any, expected: Any) -> float:
    """Relative, over losses and gradient norms."""
    return max(
        abs(value - other) / abs(other)
        for line, expected_line in zip(found, expected, strict=True)
        for value, other in zip(line, expected_line, strict=True)
    )


@pytest.mark.timeout(900)
def test_run_step_gives_the_same_losses_for_all_zero_stages_and_ranks(found: dict[int, dict[str, Any]]) -> None:
    expected = found[1]["0"]
    losses = [loss for loss, _ in expected]
    assert losses[-1] < losses[0]
    losses_of = {name: found[2][name] for name in ("fused", "2 offload", "3 offload")}
    losses_of |= {name: found[2][name]["whole"] for name in "0123"} | {"1, alone": found[1]["1"]}
    differences = {name: largest_difference(losses, expected) for name, losses in losses_of.items()}
    print("largest relative difference of losses and norms in fp32:", differences)
    assert max(differences.values()) < 1e-5


class Moved(torch.nn.Linear):
    """A module that notes the device that it is moved to, and stays."""

    def to(self, device: torch.device) -> Self:  # type: ignore[override]
        self.device = device
        return self


@pytest.mark.parametrize(
    ("device", "flags", "is_fused"),
    [("cuda", [], True), ("cuda", OFFLOAD, False), ("cpu", [], False)],
)
def test_engine_fuses_adamw_where_weights_and_moments_are_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, flags: Sequence[str], is_fused: bool
) -> None:
    initialized: dict[str, Any] = {}

    def initialize(**arguments: Any) -> tuple[Any, ...]:
        initialized.update(arguments)
        return SimpleNamespace(optimizer=arguments["optimizer"]), None

    deepspeed = SimpleNamespace(initialize=initialize, zero=SimpleNamespace(GatheredParameters=None))
    monkeypatch.setattr("ureca.pipelines.training.engine.import_deepspeed", lambda device: deepspeed)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    module = Moved(2, 2)
    settings = TrainSettings.load(["source", "run", "--model", "tiny", "--precision", "bf16", *zero(2, *flags)])
    TrainingEngine(module, settings, 5, torch.device(device))
    optimizer, config = initialized["optimizer"], initialized["config"]
    assert type(optimizer) is torch.optim.AdamW
    assert bool(optimizer.defaults["fused"]) is is_fused
    assert module.device.type == device
    # DeepSpeed keeps this optimizer, on the device of its state.
    assert config["zero_allow_untested_optimizer"] and not config["zero_force_ds_cpu_optimizer"]
    offload = {"device": "cpu"} if flags else None
    assert config["zero_optimization"].get("offload_optimizer") == offload


def test_run_step_in_bfloat16_has_similar_losses(found: dict[int, dict[str, Any]]) -> None:
    expected = [loss for loss, _ in found[1]["0"]]
    for stage in (1, 3):
        of_stage = found[2][f"bf16 {stage}"]
        assert [loss for loss, _ in of_stage["whole"]] == pytest.approx(expected, rel=0.03), stage
        # Portable state has the float32 copies of the weights: nothing is rounded once more.
        assert largest_difference(of_stage["portable"], of_stage["whole"]) < 1e-5, stage


def test_run_step_with_sharded_adapters_has_the_same_losses(found: dict[int, dict[str, Any]]) -> None:
    assert largest_difference(found[2]["lora 3"], found[1]["lora 0"]) < 1e-4
    losses = [loss for loss, _ in found[2]["lora 3"]]
    assert losses[-1] < losses[0]


def test_engine_load_portable_resumes_with_the_same_losses(found: dict[int, dict[str, Any]]) -> None:
    differences = {stage: largest_difference(found[2][stage]["portable"], found[1]["0"]) for stage in "0123"}
    print("largest relative difference after resuming from portable state:", differences)
    assert max(differences.values()) < 1e-5


@pytest.mark.long
@pytest.mark.timeout(900)
def test_training_goes_on_with_another_number_of_ranks_and_the_same_losses(
    found: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    """Two ranks, then one, then two again, at another ZeRO stage each time."""
    kinds = {"full": (FP32, found[1]["0"]), "lora": (LORA, found[1]["lora 0"])}
    losses: dict[str, list[Any]] = {name: [] for name in kinds}
    for world_size, stage in ((2, 1), (1, 0), (2, 3)):
        scenarios = [(name, "portable", [*flags, *zero(stage)]) for name, (flags, _) in kinds.items()]
        for name, of_session in run_ranks(world_size, tmp_path, scenarios).items():
            losses[name] += of_session
    differences = {name: largest_difference(losses[name], expected) for name, (_, expected) in kinds.items()}
    print("largest relative difference of losses and norms, 2 -> 1 -> 2 ranks:", differences)
    assert max(differences.values()) < 1e-4


def test_engine_load_resumes_with_the_same_losses(found: dict[int, dict[str, Any]]) -> None:
    for stage in "0123":
        of_stage = found[2][stage]
        assert largest_difference(of_stage["resumed"], of_stage["whole"]) < 2e-6, stage
        assert (
            "is of another model: 1 weights differ, model.lm_head.weight for one is [3, 3] there" in of_stage["error"]
        )


def test_evaluate_with_sharded_weights_changes_no_loss(found: dict[int, dict[str, Any]]) -> None:
    figures, (loss, captions) = found[2]["look 3"]
    plain_loss, plain_captions = found[1]["look"]
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert captions == plain_captions
    assert largest_difference(figures, found[2]["3"]["whole"]) < 2e-6


def test_run_step_with_infinite_loss_raises_its_images(found: dict[int, dict[str, Any]]) -> None:
    images = ", ".join(f"image {number}" for number in (0, 2, 1, 3))  # those of rank 0 first
    assert found[2]["nan"].startswith(
        f"step 0: the loss is not finite. Images of the micro-batches concerned: {images}"
    )


def test_gathered_with_sharded_weights_returns_all_tensors(found: dict[int, dict[str, Any]]) -> None:
    assert found[2]["export align 3"] == [True, ["mask_encoder"], True]


def test_load_checkpoint_with_sharding_allocates_a_share_and_gives_the_same_losses(
    found: dict[int, dict[str, Any]],
) -> None:
    sharded = found[2]["sharded"]
    whole = sharded["whole_bytes"]
    shares = {name: sharded[name] / whole for name in ("peak_bytes", "merged_peak_bytes", "built_peak_bytes")}
    print("largest share of the weights that a rank allocates while loading:", shares)
    assert shares["built_peak_bytes"] >= 1, "a whole model is counted whole"
    # Half of the weights, and a layer that is whole: the embeddings are an eighth of this model.
    assert 0.5 <= shares["peak_bytes"] < 0.75
    assert shares["merged_peak_bytes"] < 0.75
    assert largest_difference(sharded["full"], found[2]["3"]["whole"]) < 1e-6
    assert largest_difference(sharded["resumed"], sharded["full"]) < 2e-6
    assert largest_difference(sharded["lora"], found[2]["lora 3"]) < 1e-6


def test_gathered_with_adapters_alone_leaves_other_weights_sharded(found: dict[int, dict[str, Any]]) -> None:
    sharded = found[2]["sharded"]
    # The factors and the largest of them gathered, beside rank 0's copies.
    assert sharded["adapter_bytes"] <= sharded["adapter_export_bytes"] < 1.5 * sharded["adapter_bytes"]
    assert sharded["adapter_export_bytes"] < sharded["whole_bytes"] / 4
    assert sharded["differing"] == []
    assert sharded["num_tensors"][0] == sharded["num_tensors"][1]


def test_worker_reads_ahead_and_exports_on_other_threads_than_that_of_the_steps(
    found: dict[int, dict[str, Any]],
) -> None:
    worker = found[1]["worker"]
    assert worker["steps"] == list(range(5))
    assert worker["threads"]["pack"] == ["prefetch"]
    assert worker["threads"]["export"] == ["export_0"]
    assert len(worker["threads"]["step"]) == 1
    assert worker["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert worker["left"] == []
    assert worker["is_loaded"]
