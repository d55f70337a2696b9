"""Ranks of a training run without Ray: processes that train a tiny model on micro-batches made in memory."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.training.test_packing import make_examples
from ureca.errors import UrecaError
from ureca.model.captioner import RegionCaptioner
from ureca.model.initialization import build_tiny
from ureca.pipelines.train_settings import TrainSettings
from ureca.pipelines.training.engine import InputLoader, TrainingEngine, run_step
from ureca.training.loss import PackedLoss
from ureca.training.packing import PackedMicroBatch, Packer, from_bytes, to_bytes
from ureca.training.phases import prepare, train_mode

NUM_STEPS, PER_STEP = 5, 4
DEVICE = torch.device("cpu")


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
        flags: of ``ureca train``.
    """

    def __init__(self, flags: Sequence[str]) -> None:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        accumulation = PER_STEP // world_size
        common = ("--batch.gradient-accumulation", str(accumulation), "--phase.warmup-fraction", "0.4")
        settings = TrainSettings.load(["source", "run", "--model", "tiny", *common, *flags])
        self.model, processor = build_tiny()
        if settings.precision == "bf16":
            self.model.to(torch.bfloat16)
        prepare(self.model, settings.phase, gradient_checkpointing=settings.gradient_checkpointing, seed=1)
        self.engine = TrainingEngine(PackedLoss(self.model), settings, NUM_STEPS, DEVICE)
        self.inputs = InputLoader(processor.image_processor, DEVICE, cache=None)
        self.mine = micro_batches()[rank::world_size]

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


def resume(flags: Sequence[str], folder: Path) -> Any:
    """Resume a training after three steps, and return the error for another model's checkpoint."""
    first = Rank(flags)
    before = first.train(0, 3)
    shapes = first.engine.save(folder)
    dist.barrier()
    second = Rank(flags)
    second.engine.load(folder, shapes)
    after = second.train(3)
    try:
        second.engine.load(folder, shapes | {"model.lm_head.weight": [3, 3]})
    except UrecaError as error:
        return [before + after, str(error)]


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


def portable_again(flags: Sequence[str], folder: Path) -> Any:
    """Train from portable state, write it and read it into a fresh engine, and go on; return all losses."""
    first = Rank(flags)
    before = first.train(0, 3)
    folder.mkdir(exist_ok=True)
    shapes = first.engine.save(folder)
    first.engine.save_portable(folder)
    second = Rank(flags)
    second.engine.load_portable(folder, shapes)
    return before + second.train(3)


def export(flags: Sequence[str], folder: Path) -> Any:
    """Sums of the weights, gathered, before training and after it, and names that are there."""
    rank = Rank(flags)
    before = rank.engine.gathered(rank.model)
    rank.train(0, 2)
    after = rank.engine.gathered(rank.model)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    same = sorted(after) == sorted(build_tiny()[0].state_dict())
    return [same, sorted({name.split(".")[1] for name in moved}), all(tensor.numel() for tensor in after.values())]


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
