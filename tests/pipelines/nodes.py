"""Verbs on a simulated cluster of three nodes, of which one is lost while a fourth one joins.

Run as ``python -m tests.pipelines.nodes VERB FOLDER``: Ray clusters of several nodes do not get on with that of the
other tests. What work a node has begun is written to FOLDER/notes; work waits there for nodes that are to take part, so
that no test depends on how fast the machine is.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch
from ray._private.node import Node
from ray.cluster_utils import Cluster

from tests.drawn import write_corpus
from tests.training.datasets import write_dataset
from ureca.pipelines.caption import CaptionActor
from ureca.pipelines.curate import CurateActor
from ureca.pipelines.training.worker import train_worker

NUM_IMAGES, NUM_PARTITIONS, NUM_STEPS = 48, 24, 24
CPUS_PER_NODE = 3
_LONGEST_WAIT_S = 240.0


class Notes:
    """Work that each node has begun, for every process to see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def here(cls) -> "Notes":
        """Those of the environment, in workers as in the driver."""
        return cls(Path(os.environ["URECA_TEST_NOTES"]))

    def add(self, work: str) -> None:
        """This node has begun something."""
        node = ray.get_runtime_context().get_node_id()
        (self._folder / f"{work}-{node}-{uuid.uuid4().hex}").touch()

    def nodes(self, work: str) -> set[str]:
        """Ids of the nodes that have begun such work."""
        return {path.name.split("-")[1] for path in self._folder.glob(f"{work}-*")}

    def node_is_lost(self) -> None:
        """From now on, work waits for four nodes."""
        (self._folder / "lost").touch()

    @property
    def is_lost(self) -> bool:
        """A node is lost."""
        return (self._folder / "lost").exists()

    def may_go_on(self, work: str) -> bool:
        """All nodes that there are to be have begun such work."""
        return len(self.nodes(work)) >= (4 if self.is_lost else 3)


class NotingCurateActor(CurateActor):
    """Notes that it works, and waits for other nodes to do so."""

    async def __call__(self, batch: pa.Table) -> pa.Table:
        await _take_part("curate")
        return await super().__call__(batch)


class NotingCaptionActor(CaptionActor):
    """Notes that it works, and waits for other nodes to do so."""

    async def __call__(self, batch: pa.Table) -> pa.Table:
        await _take_part("caption")
        return await super().__call__(batch)


def noting_train_worker(config: dict[str, Any]) -> None:
    """Notes that it works."""
    Notes.here().add("train")
    train_worker(config)


def elastic_train_worker(config: dict[str, Any]) -> None:
    """Waits, with three workers, for the loss of a node, and with two for the return of the third worker."""
    from ureca.pipelines.training import worker

    run_step = worker.run_step

    def run_step_or_wait(step: int, *arguments: Any, **named: Any) -> Any:
        deadline = time.monotonic() + _LONGEST_WAIT_S
        is_whole = torch.distributed.get_world_size() == 3
        limit = NUM_STEPS // 3 if is_whole else NUM_STEPS // 2 + 2
        while step >= limit and not (is_whole and Notes.here().is_lost) and time.monotonic() < deadline:
            time.sleep(0.05)
        return run_step(step, *arguments, **named)

    worker.run_step = run_step_or_wait
    train_worker(config)


async def _take_part(work: str) -> None:
    Notes.here().add(work)
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while not Notes.here().may_go_on(work) and time.monotonic() < deadline:  # noqa: ASYNC110 - of other processes
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def cluster_of_three() -> Iterator[tuple[Cluster, list[Node]]]:
    """A head, and two nodes that may be lost; this process is connected to the head."""
    # Sockets of Ray have a name that must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        os.environ["RAY_TMPDIR"] = short
        Path(short, "ray").mkdir()
        head = {"num_cpus": CPUS_PER_NODE, "object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [add_node(cluster) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
        try:
            yield cluster, nodes
        finally:
            ray.shutdown()
            cluster.shutdown()


def _wait_until(happened: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def add_node(cluster: Cluster) -> Node:
    """One more."""
    return cluster.add_node(num_cpus=CPUS_PER_NODE, object_store_memory=100 * 2**20)


def lose_one_and_add_one(
    cluster: Cluster, node: Node, is_under_way: Callable[[], bool], may_add: Callable[[], bool]
) -> None:
    """Kill all processes of a node once all take part, and add another."""
    _wait_until(is_under_way, "the work was not spread over three nodes")
    cluster.remove_node(node, allow_graceful=False)
    Notes.here().node_is_lost()
    _wait_until(may_add, "the work did not go on with two nodes")
    cluster._shutdown_at_exit = False  # its hook is for the main thread; the end of the cluster ends the node, too
    add_node(cluster)


def curate(folder: Path) -> None:
    """48 images in 24 partitions, by three actors, of which no node has room for two."""
    from ureca.pipelines.curate import CURATE, curate
    from ureca.pipelines.curate_settings import CurateSettings

    write_corpus(folder / "in", NUM_IMAGES)
    settings = CurateSettings.load(
        [
            *_batch_flags(folder, "curate"),
            *("--annotator.kind", "prompted", "--mllm.seconds-per-answer", "0.02"),
            *("--resources.tree.num-cpus", "0.25"),
        ]
    )
    curate(settings, command=replace(CURATE, row_actor=NotingCurateActor))


def caption(folder: Path) -> None:
    """The same with a tiny checkpoint."""
    from ureca.model.initialization import save_tiny
    from ureca.pipelines.caption import CAPTION, caption
    from ureca.pipelines.caption_settings import CaptioningSettings

    write_corpus(folder / "in", NUM_IMAGES)
    save_tiny(folder / "tiny")
    model = ("--model", str(folder / "tiny"), "--captioner.max-new-tokens", "4")
    settings = CaptioningSettings.load([*_batch_flags(folder, "caption"), *model])
    caption(settings, command=replace(CAPTION, row_actor=NotingCaptionActor))


def _batch_flags(folder: Path, stage: str) -> list[str]:
    return [
        *(str(folder / "in"), str(folder / "out"), "--images-per-partition", str(NUM_IMAGES // NUM_PARTITIONS)),
        *("--listing.annotations", "beside", "--masks.kind", "annotations", "--max-worker-crashes", "5"),
        # A whole CPU of a node must stay free for what Ray Data does itself.
        *("--resources.masks.num-actors", "3", "--resources.masks.num-cpus", "0"),
        *(f"--resources.{stage}.num-actors", "3", f"--resources.{stage}.num-cpus", "2"),
        *(f"--resources.{stage}.partitions-in-flight", "1", f"--resources.{stage}.images-in-flight", "2"),
    ]


def train(folder: Path, run: str = "out", *flags: str, worker: Callable[..., None] = noting_train_worker) -> None:
    """A tiny checkpoint, by three workers, of which no node has room for two."""
    from ureca.model.initialization import save_tiny
    from ureca.pipelines.train import train
    from ureca.pipelines.train_settings import TrainSettings

    if not (folder / "tiny").exists():
        save_tiny(folder / "tiny")
        write_dataset(folder, 24)
    settings = TrainSettings.load(
        [
            *(str(folder / "dataset"), str(folder / run), "--model", str(folder / "tiny"), "--phase.kind", "full"),
            *("--precision", "fp32", "--no-gradient-checkpointing", "--max-steps", str(NUM_STEPS)),
            *("--checkpoint.every-steps", "2", "--deepspeed.zero-stage", "2", "--resources.workers", "3"),
            *("--resources.cpus-per-worker", "2", "--resources.packers-per-worker", "1"),
            *("--resources.cpus-per-packer", "0.5", "--resources.max-restarts", "-1"),
            *flags,
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ureca.pipelines.train.train_worker", worker)
        train(settings)


def train_elastically(folder: Path) -> None:
    """By two workers while the third one is missing."""
    flags = ("--resources.min-workers", "2", "--resources.resize-interval-s", "2")
    train(folder, "out", *flags, worker=elastic_train_worker)


def main(command: str, folder: Path) -> None:
    """Run a verb while a node is lost and another is added; training is also run without that."""
    from ureca.pipelines.training.run_folder import read_lines

    notes = folder / "notes"
    notes.mkdir()
    os.environ["URECA_TEST_NOTES"] = str(notes)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"

    def steps_of(num_workers: int) -> int:
        return sum(line["workers"] == num_workers for line in read_lines(folder / "out" / "metrics.jsonl"))

    def is_under_way() -> bool:
        if command == "elastic":
            return steps_of(3) >= NUM_STEPS // 4
        if command == "train":
            return len(read_lines(folder / "out" / "metrics.jsonl")) > NUM_STEPS // 4
        return Notes.here().may_go_on(command) and any((folder / "out").glob("*/part-*"))

    with cluster_of_three() as (cluster, nodes):
        if command in {"train", "elastic"}:
            train(folder, "whole")
        error: list[BaseException] = []

        def fault() -> None:
            try:
                may_add = (lambda: steps_of(2) > 0) if command == "elastic" else (lambda: True)
                lose_one_and_add_one(cluster, nodes[0], is_under_way, may_add)
            except BaseException as raised:
                error.append(raised)

        thread = threading.Thread(target=fault)
        thread.start()
        {"curate": curate, "caption": caption, "train": train, "elastic": train_elastically}[command](folder)
        thread.join()
        if error:
            raise error[0]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
