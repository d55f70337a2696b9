"""Processes of a curation are killed at random moments: each image once, no caption but a whole one, right counts.

One seed of each kind of death; twenty more by ``make long-curate``.
"""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.curation_faults import (
    NUM_PARTITIONS,
    ROOT,
    Corpus,
    endpoint,
    flags,
    kill_stage_at_random,
    meanwhile,
    run_here,
    until_it_hits,
    wait_until,
)
from tests.pipelines.killing import kill_driver
from ureca.data.output import Output

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 21))]
LONG = [pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 21)]


@pytest.fixture(scope="module")
def corpus(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Images, and their curation without a fault."""
    return Corpus(tmp_path_factory.mktemp("corpus"), run_here)


@pytest.fixture(scope="module")
def asked_corpus(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    """The same with an endpoint that is asked."""
    folder = tmp_path_factory.mktemp("asked")
    with endpoint() as (_, port):
        yield Corpus(folder, run_here, port)


# test_kill.py has one of these for each run of the tests.
@pytest.mark.parametrize("seed", LONG)
def test_curate_with_a_killed_annotator_actor_is_complete(corpus: Corpus, seed: int, tmp_path: Path) -> None:
    check_killed_operator("CurateActor", corpus, seed, tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_curate_with_a_killed_mask_actor_is_complete(corpus: Corpus, seed: int, tmp_path: Path) -> None:
    check_killed_operator("MaskActor", corpus, seed, tmp_path)


def check_killed_operator(stage: str, corpus: Corpus, seed: int, folder: Path) -> None:
    """Kill the actors of a stage once while they work."""
    rng = random.Random(seed)

    def run(out: Path) -> bool:
        killed: list[str] = []
        with meanwhile(lambda: killed.extend(kill_stage_at_random(Output(str(out)), stage, rng))):
            run_here(flags(corpus.images, out, seed=seed))
        corpus.check(out)
        return bool(killed)

    until_it_hits(folder, run)


@pytest.mark.parametrize("seed", SEEDS)
def test_curate_with_a_restarted_endpoint_is_complete(asked_corpus: Corpus, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)

    def run(out: Path) -> bool:
        ended = threading.Event()
        with endpoint() as (first, port):

            def die_and_come_back() -> None:
                at_least = rng.randrange(NUM_PARTITIONS // 2)
                wait_until(lambda: len(Output(str(out)).done_partitions()) >= at_least)
                if ended.wait(rng.uniform(0, 0.5)):
                    return
                first.kill()
                first.wait()
                if not ended.wait(5):
                    with endpoint(port):
                        ended.wait()

            with meanwhile(die_and_come_back):
                try:
                    run_here(flags(asked_corpus.images, out, port, seed))
                finally:
                    ended.set()
            was_killed = first.poll() is not None
        asked_corpus.check(out)
        return was_killed

    until_it_hits(tmp_path, run)


# test_kill.py has one of these for each run of the tests.
@pytest.mark.timeout(200)
@pytest.mark.parametrize("seed", LONG)
def test_curate_resumed_after_a_killed_driver_is_complete(corpus: Corpus, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)

    def run(out: Path) -> bool:
        output = Output(str(out))
        command = [sys.executable, "-m", "ureca.jobs.curate", *flags(corpus.images, out, seed=seed)]
        with (tmp_path / "log").open("wb") as log:
            driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            at_least = rng.randrange(NUM_PARTITIONS // 2)
            wait_until(lambda: output.exists() and len(output.done_partitions()) >= at_least)
            time.sleep(rng.uniform(0, 0.5))
            was_killed = driver.poll() is None and output.run()["state"] == "running"
            kill_driver(driver)
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
        corpus.check(out, num_sessions=2)
        return was_killed

    until_it_hits(tmp_path, run)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "seeds",
    [
        "0",
        *(
            pytest.param(seeds, marks=pytest.mark.long)
            for seeds in ("1 2 3 4 5", "6 7 8 9 10", "11 12 13 14 15", "16 17 18 19 20")
        ),
    ],
)
def test_curate_with_a_killed_node_is_complete(corpus: Corpus, seeds: str, tmp_path: Path) -> None:
    """In a process of its own: it has a cluster of several nodes."""
    script = [sys.executable, "-m", "tests.pipelines.node_faults", str(tmp_path), *seeds.split()]
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("node killed") == len(seeds.split())
