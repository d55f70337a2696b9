"""Curations on a cluster of three nodes, one of which is killed.

Run as ``python -m tests.pipelines.node_faults FOLDER SEED ...``.
"""

import os
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster

from tests.pipelines.curation_faults import NUM_PARTITIONS, Corpus, flags, meanwhile, run_here, wait_until
from ureca.data.output import Output


def main(folder: Path, seeds: list[int]) -> None:
    """Kill one node a seed while a curation runs, and put another in its place."""
    # Sockets of Ray have a name that must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        os.environ["RAY_TMPDIR"] = short
        Path(short, "ray").mkdir()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20})
        nodes = [add_node(cluster) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
        try:
            corpus = Corpus(folder, run_here)
            for seed in seeds:
                rng, out = random.Random(seed), folder / f"out{seed}"
                victim = nodes.pop(rng.randrange(2))
                with meanwhile(partial(kill_at_random, cluster, victim, Output(str(out)), rng)):
                    run_here(flags(corpus.images, out, seed=seed))
                corpus.check(out)
                nodes.append(add_node(cluster))
        finally:
            ray.shutdown()
            cluster.shutdown()


def kill_at_random(cluster: Cluster, node: Node, output: Output, rng: random.Random) -> None:
    """Kill all processes of a node at a random moment of a curation."""
    at_least = rng.randrange(NUM_PARTITIONS // 2)
    wait_until(lambda: len(output.done_partitions()) >= at_least)
    time.sleep(rng.uniform(0, 0.5))
    cluster.remove_node(node, allow_graceful=False)
    print("node killed", flush=True)


def add_node(cluster: Cluster) -> Node:
    """A node with room for an actor of each stage."""
    return cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
