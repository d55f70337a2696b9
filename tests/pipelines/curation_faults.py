"""A curation whose processes are killed, and what must be true of it afterwards."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from tests.drawn import write_corpus
from tests.pipelines.killing import kill_workers
from ureca.data.manifest import ManifestEntry
from ureca.data.masked import MaskedPartition, MaskStage
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.pipelines.curate import CURATE, build_mask_stage, curate
from ureca.pipelines.curate_settings import CurateSettings

ROOT = Path(__file__).parent.parent.parent
NUM_IMAGES, NUM_PARTITIONS = 24, 12
ENDPOINT = """
import asyncio, sys
from benchmarks.chat_endpoint import SimulatedEngine, serve

engine = SimulatedEngine(num_slots=16, seconds_per_answer=0.1)
asyncio.run(serve(engine, lambda port: print(port, flush=True), int(sys.argv[1])))
"""


def flags(corpus: Path, out: Path, port: int | None = None, seed: int = 0) -> list[str]:
    """The curation of a corpus, with captions that take their time; with odd seeds partitions come in chunks."""
    model = ["--mllm.seconds-per-answer", "0.1"]
    if port is not None:
        urls = f"http://127.0.0.1:{port}/v1"
        model = ["--mllm.kind", "openai", "--mllm.model", "stand-in", "--mllm.base-urls", urls]
    return [
        *(str(corpus), str(out), "--annotator.kind", "prompted", *model),
        *("--listing.annotations", "beside", "--masks.kind", "annotations"),
        *("--images-per-partition", str(NUM_IMAGES // NUM_PARTITIONS), "--max-worker-crashes", "5"),
        *("--resources.masks.num-actors", "1", "--resources.curate.num-actors", "2"),
        *("--resources.curate.partitions-in-flight", "2", "--resources.curate.images-in-flight", "3"),
        *(("--resources.masks.images-per-chunk", "1") if seed % 2 else ()),
    ]


def build_slow_mask_stage(settings: CurateSettings) -> MaskStage:
    """Masks that take their time."""
    stage = build_mask_stage(settings)

    def generate(number: int, entries: Sequence[ManifestEntry]) -> MaskedPartition:
        time.sleep(0.1 * len(entries))
        return stage(number, entries)

    return generate


def run_here(argv: list[str]) -> PartitionReport:
    """Run the verb in this process, with masks that take their time."""
    return curate(CurateSettings.load(argv), command=replace(CURATE, build_mask_stage=build_slow_mask_stage))


class Corpus:
    """Images, and what a curation without a fault makes of them.

    Args:
        folder: to write to.
        run: curates, given the flags.
        port: port of an endpoint; None: the stand-in in the actors is asked.
    """

    def __init__(self, folder: Path, run: Callable[[list[str]], Any], port: int | None = None) -> None:
        self.images = folder / "in"
        self._ids = write_corpus(self.images, NUM_IMAGES)
        (self.images / "img_0005.png").write_bytes(b"no image")  # a row that fails, whatever is killed
        run(flags(self.images, folder / "whole", port))
        output = Output(str(folder / "whole"))
        self._rows = {row["image_id"]: said(row) for row in output.rows()}
        self._totals = output.run()["totals"]
        assert self._totals["num_regions"] >= NUM_IMAGES

    def check(self, out: Path, num_sessions: int = 1) -> None:
        """Every image once, no caption but a whole one, and right counts in run.json."""
        output = Output(str(out))
        rows = list(output.rows())
        assert Counter(row["image_id"] for row in rows) == Counter(self._ids)
        assert {row["image_id"]: said(row) for row in rows} == self._rows
        run = output.run()
        assert len(run["sessions"]) == num_sessions
        assert run["sessions"][-1]["state"] == run["state"] == "finished"
        for name in ("num_images", "num_failed", "failures", "num_regions", "num_failed_regions"):
            assert run["totals"][name] == self._totals[name], name
        assert run["totals"]["num_calls"] >= self._totals["num_calls"]
        left = {path.name for path in out.iterdir()}
        assert left == {"README.md", "run.json", "manifest", "regions"}
        assert not [path for path in out.rglob("*") if path.name.startswith(".tmp-")]


def said(row: Mapping[str, Any]) -> str:
    """Everything of a row but by what it was made."""
    return json.dumps({name: value for name, value in row.items() if name != "provenance"}, sort_keys=True)


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something on a thread during the block; an error of it is the block's."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if errors:
        raise errors[0]


def until_it_hits(folder: Path, run: Callable[[Path], bool]) -> None:
    """Run with a new output until the random moment came before the end; it tells whether it did."""
    assert any(run(folder / str(number)) for number in range(8)), "no moment came before the end"


def kill_stage_at_random(output: Output, stage: str, rng: random.Random) -> list[str]:
    """Kill the workers of a stage below this process at a random moment; none: they had done their work."""
    wait_until(lambda: any(stage in command(child) for child in psutil.Process().children(recursive=True)))
    if stage == "CurateActor":
        at_least = rng.randrange(NUM_PARTITIONS // 2)
        wait_until(lambda: len(output.done_partitions()) >= at_least)
        time.sleep(rng.uniform(0, 0.3))
    else:
        time.sleep(rng.uniform(0, 1.6))
    return kill_workers(os.getpid(), stage)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that must come within two minutes."""
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def command(process: psutil.Process) -> str:
    """Return the command line of a process; empty: it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def endpoint(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A chat endpoint in a process of its own, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDPOINT, str(port)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
