"""Bandwidth of the all-reduce between ranks on the nodes of a cluster, as training uses it."""

import os
import socket
import time
from datetime import timedelta
from typing import Any

import ray

from ureca.ops.doctor import Finding, Level
from ureca.wording import quantity

_NUM_BYTES = 64 * 2**20
_NUM_REPEATS = 5
_TIMEOUT_S = 120.0
_MIN_GPU_BYTES_PER_S = 1e9


class _Rank:
    """A rank in a process of its own."""

    def address(self) -> tuple[str, int]:
        """Return the node's address and a free port."""
        with socket.socket() as listening:
            listening.bind(("", 0))
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return host, int(listening.getsockname()[1])

    def measure(self, rank: int, num_ranks: int, host: str, port: int, *, on_gpu: bool) -> tuple[str, float]:
        """Return this node's id, and the seconds of the fastest all-reduce."""
        import torch
        import torch.distributed as dist

        os.environ.setdefault("OMP_NUM_THREADS", "1")
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"tcp://{host}:{port}",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=_TIMEOUT_S),
        )
        try:
            values = torch.ones(_NUM_BYTES // 4, device="cuda" if on_gpu else "cpu")
            seconds = []
            for _ in range(_NUM_REPEATS):
                dist.barrier()
                started = time.perf_counter()
                dist.all_reduce(values)
                if on_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - started)
            expected = float(num_ranks) ** _NUM_REPEATS
            if float(values[0]) != expected or float(values[-1]) != expected:
                raise RuntimeError(f"the sum is {float(values[0]):g} and should be {expected:g}")
        finally:
            dist.destroy_process_group()
        return ray.get_runtime_context().get_node_id(), min(seconds)


def check_all_reduce(num_ranks: int) -> Finding:
    """Measure the bus bandwidth of an all-reduce of 64 MiB between ranks on the nodes of the running cluster.

    Args:
        num_ranks: ranks, at least 2; one on each GPU if the cluster has as many, else on CPUs with gloo.
    """
    on_gpu = ray.cluster_resources().get("GPU", 0) >= num_ranks  # type: ignore[no-untyped-call]
    start: Any = ray.remote(_Rank)
    options = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": 0.25}
    ranks = [start.options(scheduling_strategy="SPREAD", **options).remote() for _ in range(num_ranks)]
    backend = "nccl" if on_gpu else "gloo"
    try:
        host, port = ray.get(ranks[0].address.remote(), timeout=_TIMEOUT_S)
        measuring = [
            rank.measure.remote(number, num_ranks, host, port, on_gpu=on_gpu) for number, rank in enumerate(ranks)
        ]
        measured = ray.get(measuring, timeout=_TIMEOUT_S)
    except (ray.exceptions.RayError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        return Finding(
            name="all-reduce",
            level=Level.PROBLEM,
            value=f"{num_ranks} ranks by {backend}: {reason}",
            remedy="set NCCL_DEBUG=INFO and see docs/cluster.md: interface, RDMA devices, memlock; or ask for fewer",
        )
    finally:
        for rank in ranks:
            ray.kill(rank)
    seconds = max(each for _, each in measured)
    bytes_per_s = 2 * (num_ranks - 1) / num_ranks * _NUM_BYTES / seconds
    is_slow = on_gpu and bytes_per_s < _MIN_GPU_BYTES_PER_S
    nodes = len({node for node, _ in measured})
    return Finding(
        name="all-reduce",
        level=Level.NOTE if is_slow else Level.OK,
        value=f"{bytes_per_s / 1e9:.2f} GB/s between {num_ranks} ranks on {quantity(nodes, 'node')} by {backend}",
        remedy="training will wait for the network: NCCL_DEBUG=INFO shows the one that NCCL uses (docs/cluster.md)"
        if is_slow
        else "",
    )
