"""Ranks of a training run without Ray: processes that train a tiny model on micro-batches made in memory."""

import json
import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.training.datasets import write_dataset
from tests.training.test_packing import make_examples
from ureca.errors import UrecaError
from ureca.model.captioner import RegionCaptioner
from ureca.model.checkpoints import load_checkpoint, save_adapter, save_checkpoint
from ureca.model.initialization import build_tiny, save_tiny
from ureca.model.lora import FACTOR_NAME
from ureca.pipelines.train import train as run_train
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.data import PackingTask
from ureca.pipelines.training.engine import InputLoader, TrainingEngine, run_step, weight_sharding
from ureca.pipelines.training.run_folder import RunFolder, read_lines
from ureca.pipelines.training.worker import Worker
from ureca.training.loss import PackedLoss
from ureca.training.memory_estimate import TensorCounter
from ureca.training.packing import PackedMicroBatch, Packer, from_bytes, to_bytes
from ureca.training.phases import build_optimizer, prepare, train_mode

NUM_STEPS, PER_STEP = 5, 4
DEVICE = torch.device("cpu")


class AllocationCounter(TensorCounter):
    """Counts the tensors that have memory of their own, which those of files that are mapped have not."""

    def _add(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        # Only what PyTorch has allocated can be resized; of the rest, what is no mapped file has memory, too.
        if storage.device.type != "meta" and (storage.resizable() or not _is_mapped_file(storage.data_ptr())):
            super()._add(storage, before)


def _is_mapped_file(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(each, 16) for each in line.split()[0].split("-"))
            if start <= address < end:
                return True
    return False


@lru_cache(maxsize=1)
def micro_batches() -> list[PackedMicroBatch]:
    """Four micro-batches of different lengths, the last of which does not count."""
    _, processor = build_tiny()
    made = []
    for number in range(PER_STEP):
        packed = Packer(processor).pack(make_examples(number)[: 1 + number % 2])
        weight, data = float(number < PER_STEP - 1), to_bytes(packed, processor.image_processor)
        num_tokens, num_answers = len(packed.input_ids), int(weight) * packed.num_answer_tokens
        made.append(PackedMicroBatch(data, weight, num_answers, num_tokens, int(weight), (f"image {number}",), 0, ()))
    return made


class Rank:
    """A rank that trains the tiny model.

    Args:
        flags: flags of ``ureca train``.
        checkpoint: load the model from there, as ``ureca train`` does.
    """

    def __init__(self, flags: Sequence[str], checkpoint: Path | None = None) -> None:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        accumulation = PER_STEP // world_size
        common = ("--batch.gradient-accumulation", str(accumulation), "--phase.warmup-fraction", "0.4")
        settings = TrainSettings.load(["source", "run", "--model", "tiny", *common, *flags])
        if checkpoint is None:
            self.model, self.processor = build_tiny()
        else:
            sharding = weight_sharding(settings, DEVICE, accumulation) if settings.deepspeed.zero_stage == 3 else None
            with AllocationCounter() as counter:
                self.model, self.processor = load_checkpoint(checkpoint, dtype=torch.float32, sharding=sharding)
            self.peak_bytes = counter.peak_bytes
        if settings.precision == "bf16":
            self.model.to(torch.bfloat16)
        prepare(self.model, settings.phase, gradient_checkpointing=settings.gradient_checkpointing, seed=1)
        self.engine = TrainingEngine(PackedLoss(self.model), settings, NUM_STEPS, DEVICE)
        self.inputs = InputLoader(self.processor.image_processor, DEVICE, cache=None)
        self.mine = [self.inputs.read(packed) for packed in micro_batches()[rank::world_size]]

    def train(self, first: int = 0, end: int = NUM_STEPS) -> list[list[float]]:
        """Loss and gradient norm of each step."""
        metrics = [
            run_step(step, self.mine, 0.0, engine=self.engine, inputs=self.inputs, device=DEVICE)
            for step in range(first, end)
        ]
        return [[of_step.loss, of_step.gradient_norm] for of_step in metrics]


def train(flags: Sequence[str], folder: Path) -> Any:
    """Train without interruption."""
    return Rank(flags).train()


def train_and_resume(flags: Sequence[str], folder: Path) -> Any:
    """Losses of a training, and of those that resume it after three steps, and the error for another model.

    The first one resumes in a fresh engine from portable state; the second one in that engine, which has gone on, from
    the ranks' shards.
    """
    first = Rank(flags)
    before = first.train(0, 3)
    folder.mkdir(exist_ok=True)
    shapes = first.engine.save(folder)
    first.engine.save_portable(folder)
    whole = before + first.train(3)
    second = Rank(flags)
    second.engine.load_portable(folder, shapes)
    portable = before + second.train(3)
    second.engine.load(folder, shapes)
    resumed = before + second.train(3)
    try:
        second.engine.load(folder, shapes | {"model.lm_head.weight": [3, 3]})
    except UrecaError as error:
        return {"whole": whole, "portable": portable, "resumed": resumed, "error": str(error)}


def fused(flags: Sequence[str], folder: Path) -> Any:
    """Train by the optimizer that is used on GPUs."""

    built: list[torch.optim.AdamW] = []

    def build(*arguments: Any, **_: Any) -> torch.optim.AdamW:
        built.append(build_optimizer(*arguments, fused=True))
        return built[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ureca.pipelines.training.engine.build_optimizer", build)
        rank = Rank(flags)
    (optimizer,) = built
    assert optimizer.defaults["fused"]
    return rank.train()


def sharded(flags: Sequence[str], folder: Path) -> Any:
    """Train and resume a model whose weights no rank ever holds whole, with adapters and without, and export it."""
    base, is_first = folder / "base", dist.get_rank() == 0
    if is_first:
        save_checkpoint(*build_tiny(), base)
    dist.barrier()
    found: dict[str, Any] = {"whole_bytes": sum(4 * weight.numel() for weight in build_tiny()[0].parameters())}
    with AllocationCounter() as counter:
        build_tiny()
    found["built_peak_bytes"] = counter.peak_bytes
    flags = [*flags, "--deepspeed.zero-stage", "3"]
    full = Rank([*flags, "--phase.kind", "full"], base)
    found["peak_bytes"] = full.peak_bytes
    before = full.train(0, 3)
    shapes = full.engine.save(folder / "checkpoint")
    dist.barrier()
    found["full"] = before + full.train(3)
    resumed = Rank([*flags, "--phase.kind", "full"], base)
    resumed.engine.load(folder / "checkpoint", shapes)
    found["resumed"] = before + resumed.train(3)

    lora = ("--phase.kind", "tune", "--phase.dropout", "0", "--phase.rank", "4", "--phase.alpha", "8")
    tuned = Rank([*flags, *lora], base)
    found["lora"] = tuned.train()
    with AllocationCounter() as counter:
        factors = tuned.engine.gathered(tuned.model, FACTOR_NAME.match)
    found["adapter_bytes"] = sum(4 * weight.ds_numel for weight in tuned.engine.trained.values())
    found["adapter_export_bytes"] = counter.peak_bytes
    tensors = tuned.engine.gathered(tuned.model)
    if is_first:
        save_adapter(tuned.model, folder / "adapter", base=str(base), state_dict=factors)
        save_checkpoint(tuned.model, tuned.processor, folder / "merged", state_dict=tensors)
    dist.barrier()
    # A training starts from the adapters as from the merged checkpoint: they are merged into sharded weights.
    plain, _ = load_checkpoint(folder / "merged", dtype=torch.float32)
    merged = Rank([*flags, "--phase.kind", "full"], folder / "adapter")
    found["merged_peak_bytes"] = merged.peak_bytes
    expected, weights = plain.state_dict(), merged.engine.gathered(merged.model)
    found["differing"] = [name for name in weights if not torch.allclose(weights[name], expected[name], atol=1e-6)]
    found["num_tensors"] = [len(expected), len(weights)]
    return found


def portable(flags: Sequence[str], folder: Path) -> Any:
    """Train from the portable state of a folder, if there is one, to two steps further, and write it there."""
    rank, first = Rank(flags), 0
    numbers = folder / "step.json"
    if numbers.is_file():
        first, shapes = json.loads(numbers.read_text(encoding="utf-8"))
        rank.engine.load_portable(folder, shapes)
    losses = rank.train(first, min(NUM_STEPS, first + 2))
    dist.barrier()
    if dist.get_rank() == 0:
        folder.mkdir(exist_ok=True)
    dist.barrier()
    rank.engine.save_portable(folder)
    if dist.get_rank() == 0:
        shapes = {name: list(getattr(weight, "ds_shape", weight.shape)) for name, weight in rank.engine.trained.items()}
        numbers.write_text(json.dumps([first + len(losses), shapes]), encoding="utf-8")
    return losses


def export(flags: Sequence[str], folder: Path) -> Any:
    """Sums of the weights, gathered, before training and after it, and names that are there."""
    rank = Rank(flags)
    before = rank.engine.gathered(rank.model)
    rank.train(0, 2)
    after = rank.engine.gathered(rank.model)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    same = sorted(after) == sorted(build_tiny()[0].state_dict())
    return [same, sorted({name.split(".")[1] for name in moved}), all(tensor.numel() for tensor in after.values())]


def worker(flags: Sequence[str], folder: Path) -> Any:
    """Train by the worker of ``ureca train``, without Ray, to the end; return what is done on which threads."""
    write_dataset(folder, 4)
    save_tiny(folder / "tiny")
    threads: dict[str, set[str]] = {"pack": set(), "export": set(), "step": set()}

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            threads[name].add(threading.current_thread().name)
            return function(*arguments, **named)

        return call

    def pack(task: PackingTask, first: int, end: int) -> Generator[PackedMicroBatch, None, None]:
        packer = task.open_packer()
        for number in range(first, end):
            yield noted("pack", packer.pack)(*divmod(number, packer.num_micro_batches_per_step), task.rank)

    def fit(settings: TrainSettings, run: RunFolder, session: str) -> None:
        Worker(settings, run, DEVICE, session).train()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ureca.pipelines.training.worker.packed_micro_batches", pack)
        patch.setattr("ureca.pipelines.training.worker.run_step", noted("step", run_step))
        patch.setattr("ureca.pipelines.training.export.save_adapter", noted("export", save_adapter))
        paths = str(folder / "dataset"), str(folder / "run"), "--model", str(folder / "tiny")
        run_train(TrainSettings.load([*paths, "--max-steps", "5", "--checkpoint.every-steps", "2", *flags]), fit=fit)
    return {
        "threads": {name: sorted(of_work) for name, of_work in threads.items()},
        "steps": [line["step"] for line in read_lines(folder / "run" / "metrics.jsonl")],
        "files": sorted(path.name for path in (folder / "run" / "model").iterdir()),
        "left": [path.name for path in (folder / "run").iterdir() if path.name.startswith(".")],
        "is_loaded": isinstance(load_checkpoint(folder / "run" / "model"), tuple),
    }


def look(flags: Sequence[str], folder: Path) -> Any:
    """Losses of a training that is looked at before its first and its third step, and what is seen first."""
    rank = Rank(flags)
    captioner = RegionCaptioner(rank.model, build_tiny()[1])

    def seen() -> Any:
        rank.model.eval()
        loss = rank.engine.evaluate(rank.inputs.load(rank.mine[0]))
        example = make_examples()[0]
        captions = captioner.caption(example.pixels, [example.regions[0].mask], max_new_tokens=6)
        train_mode(rank.model)
        return [loss, captions]

    first = seen()
    before = rank.train(0, 2)
    seen()
    return [before + rank.train(2), first]


def look_plainly(flags: Sequence[str], folder: Path) -> Any:
    """Evaluate without DeepSpeed."""
    model, processor = build_tiny()
    batch = from_bytes(micro_batches()[0].data, processor.image_processor)
    with torch.no_grad():
        loss = PackedLoss(model)(batch).item()
    example = make_examples()[0]
    return [
        loss,
        RegionCaptioner(model, processor).caption(example.pixels, [example.regions[0].mask], max_new_tokens=6),
    ]


def not_finite(flags: Sequence[str], folder: Path) -> Any:
    """Return the error for weights that are not finite."""
    rank = Rank(flags)
    with torch.no_grad():
        rank.model.lm_head.weight.fill_(float("nan"))
    try:
        rank.train()
    except UrecaError as error:
        return str(error)


def main() -> None:
    """Do ``[[name, scenario, flags], ...]``, of argument 3, as the rank of argument 1 of those of argument 2."""
    rank, world_size, scenarios, folder = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[5])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    found = {name: globals()[scenario](flags, folder / name) for name, scenario, flags in scenarios}
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    # What is left to be torn down are threads of libraries, one of which now and then aborts a process that has ended.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
