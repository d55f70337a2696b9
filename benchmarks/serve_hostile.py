"""`ureca bench serve-hostile`: the service under hostile load, beside eight honest clients.

A service with a tiny random model and two replicas of each deployment is measured in three phases:

1. each invalid body and each bomb alone: CPU seconds and memory of proxy and ingress, and the slowest health check;
2. quiet: honest clients only, each of which waits a second between a response and its next request;
3. hostile: the same clients beside bombs, invalid bodies, poison parameters, 64 slow connections and endless headers,
   while replicas are killed.

Every honest request must be answered with 200, or with 503 and Retry-After; the 95th percentile of the latencies may
double; and every process must have its memory back afterwards. Latencies depend on what else the machine does.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.hostile_requests import HostileRequest, attack, image_bombs, invalid_bodies, post
from benchmarks.service_load import request_body, running_service

_NUM_CLIENTS = 8
_PAUSE_S = 1.0
_TIMEOUT_S = 300.0
_SETTLE_S = 120.0
_ROLES = {
    "captioner": "ServeReplica:ureca:captioner",
    "segmenter": "ServeReplica:ureca:segmenter",
    "ingress": "ServeReplica:ureca:ingress",
    "proxy": "ProxyActor",
    "controller": "ServeController",
}
_KILLED = ("captioner", "segmenter", "ingress")
_SETTINGS = {
    "captioner.max-new-tokens": "16",
    **{f"resources.{part}.{bound}-replicas": "2" for part in _KILLED for bound in ("min", "max")},
}
_MAX_P95_RATIO, _MAX_MEMORY_RATIO = 2.0, 1.1
_MAX_CPU_S, _MAX_EXTRA_MIB, _MAX_HEALTH_S = 1.0, 200.0, 0.1


@dataclass(frozen=True)
class RequestCost:
    """Cost of a hostile request that the service processes alone.

    Attributes:
        name: name of the request.
        status: HTTP status; 0 if the connection was closed.
        is_refused: True if the request had to be refused.
        cpu_s: CPU seconds of proxy, ingress and their children.
        extra_mib: growth of their memory at its peak.
        slowest_health_s: slowest response of ``/healthz`` meanwhile.
    """

    name: str
    status: int
    is_refused: bool
    cpu_s: float
    extra_mib: float
    slowest_health_s: float

    @property
    def is_cheap(self) -> bool:
        """True if the request is within the limits of CPU time and memory, or has a response that may cost more."""
        is_bounded = self.cpu_s < _MAX_CPU_S and self.extra_mib < _MAX_EXTRA_MIB
        return (
            not self.is_refused or (self.status in range(400, 500) and is_bounded) or (not self.status and is_bounded)
        )


@dataclass(frozen=True)
class HonestResponse:
    """Response to a request of an honest client: status, whether it has Retry-After, latency and time of arrival."""

    status: int
    has_retry_after: bool
    latency_s: float
    answered_s: float

    @property
    def is_acceptable(self) -> bool:
        """True for 200, and for 503 with Retry-After."""
        return self.status == 200 or (self.status == 503 and self.has_retry_after)


@dataclass(frozen=True)
class Target:
    """A target of the benchmark: its name, the measured figure, the goal, and whether it is met."""

    name: str
    measured: str
    goal: str
    is_met: bool


def main(argv: list[str]) -> int:
    """Run the benchmark and print its tables.

    Returns:
        0, or 1 if a target was missed.
    """
    parser = argparse.ArgumentParser(prog="ureca bench serve-hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="duration of the hostile phase (default 600)")
    parser.add_argument("--quiet-seconds", type=float, default=60, help="duration of the quiet phase (default 60)")
    parser.add_argument("--kill-every", type=float, default=60, help="seconds between kills of replicas (default 60)")
    parser.add_argument("--output", type=Path, default=None, help="file for the figures as JSON (default: none)")
    parser.add_argument("--port", type=int, default=18931, help="port of the service (default 18931)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        report = _run(Path(folder), arguments)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0 if all(target["is_met"] for target in report["targets"]) else 1


def _run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from ureca.model.initialization import save_tiny

    save_tiny(folder / "model")
    settings = [text for name, value in _SETTINGS.items() for text in (f"--{name}", value)]
    port = arguments.port
    with running_service(["--model", str(folder / "model"), *settings], port, folder / "log") as service:
        process = psutil.Process(service.pid)
        with _honest_clients(port):  # so that caches and arenas have their size
            time.sleep(min(20.0, arguments.quiet_seconds))
        costs = [_measure_cost(process, port, request) for request in (*invalid_bodies(), *image_bombs())]
        _print_costs(costs)
        with _honest_clients(port) as quiet:
            time.sleep(arguments.quiet_seconds)
        before = _memory_mib(process)
        hostile, attacks, kills = _measure_hostile(process, port, arguments)
        after = _settled_memory_mib(process, before)
    return _report(costs, quiet, hostile, attacks, kills, before, after)


# Phase 1


def _measure_cost(service: psutil.Process, port: int, request: HostileRequest) -> RequestCost:
    served = [process for role in ("proxy", "ingress") for process in _processes(service, role)]
    num_before = _used_mib(served)
    cpu_before = _cpu_s(served)
    peak_mib, slowest_s = num_before, 0.0
    ended = threading.Event()

    def watch_memory() -> None:
        nonlocal peak_mib
        while not ended.wait(0.02):
            peak_mib = max(peak_mib, _used_mib(served))

    def watch_health() -> None:
        nonlocal slowest_s
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=_TIMEOUT_S, trust_env=False) as client:
            while not ended.wait(0.02):
                began = time.monotonic()
                client.get("/healthz")
                slowest_s = max(slowest_s, time.monotonic() - began)

    watching = [threading.Thread(target=watch) for watch in (watch_memory, watch_health)]
    for thread in watching:
        thread.start()
    try:
        status = post(port, request)
    finally:
        time.sleep(0.1)
        ended.set()
        for thread in watching:
            thread.join()
    cpu_s = _cpu_s(served) - cpu_before
    return RequestCost(request.name, status, request.is_refused, cpu_s, peak_mib - num_before, slowest_s)


def _print_costs(costs: Sequence[RequestCost]) -> None:
    print("| request, alone | status | CPU s | extra MiB | slowest health check ms |")
    print("|---|---|---|---|---|")
    for cost in costs:
        status = cost.status or "closed"
        health_ms = 1000 * cost.slowest_health_s
        print(f"| {cost.name} | {status} | {cost.cpu_s:.2f} | {cost.extra_mib:.0f} | {health_ms:.0f} |")


# Phases 2 and 3


@contextmanager
def _honest_clients(port: int) -> Iterator[list[HonestResponse]]:
    """Run honest clients within the context; yields the list of their responses, complete at its end."""
    responses: list[HonestResponse] = []
    ended = threading.Event()

    def send_requests(number: int) -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=_TIMEOUT_S, trust_env=False) as client:
            for path, body in itertools.cycle(_honest_bodies(number)):
                if ended.is_set():
                    return
                began = time.monotonic()
                try:
                    answer = client.post(path, json=body)
                    status, retry_after = answer.status_code, answer.headers.get("retry-after")
                except httpx2.HTTPError:
                    status, retry_after = 0, None
                now = time.monotonic()
                responses.append(HonestResponse(status, retry_after is not None, now - began, now))
                ended.wait(float(retry_after or _PAUSE_S))

    clients = [threading.Thread(target=send_requests, args=(number,)) for number in range(_NUM_CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield responses
    finally:
        ended.set()
        for client in clients:
            client.join()


def _honest_bodies(number: int) -> list[tuple[str, dict[str, Any]]]:
    """Requests for captions and regions of small images of noise, each with one or two regions."""
    bodies: list[tuple[str, dict[str, Any]]] = []
    for index in range(8):
        generator = np.random.default_rng(100 * number + index)
        pixels = generator.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        inside = np.zeros((2, 96, 128), np.bool_)
        inside[0, 10:40, 10:50] = inside[1, 50:90, 60:120] = True
        body = request_body(pixels, inside[: 1 + index % 2])
        if index % 4 == 3:
            bodies.append(("/v1/regions", {**body, "regions": [{"bbox_xywh": [10, 10, 40, 30]}]}))
        else:
            bodies.append(("/v1/captions", {**body, "max_new_tokens": 8}))
    return bodies


def _measure_hostile(
    service: psutil.Process, port: int, arguments: argparse.Namespace
) -> tuple[list[HonestResponse], "Counter[str]", list[str]]:
    # The attackers have a process of their own, so that they do not delay the honest clients' threads.
    context = multiprocessing.get_context("spawn")
    ended, results = context.Event(), context.Queue()
    attacker = context.Process(target=_attack, args=(port, ended, results), daemon=True)
    kills: list[str] = []
    with _honest_clients(port) as hostile:
        attacker.start()
        ends = time.monotonic() + arguments.seconds
        random_role = random.Random(0)
        while (left_s := ends - time.monotonic()) > 0:
            time.sleep(min(arguments.kill_every, left_s))
            if ends - time.monotonic() > arguments.kill_every / 2:
                role = random_role.choice(_KILLED)
                if victims := _processes(service, role):
                    victims[0].kill()
                    kills.append(role)
    ended.set()
    counts: Counter[str] = results.get(timeout=2 * _TIMEOUT_S)
    attacker.join()
    return hostile, counts, kills


def _attack(port: int, ended: Any, results: Any) -> None:
    # Attackers have machines of their own. Here they share the service's processors, and get what it leaves.
    os.setsid()
    os.nice(19)
    with contextlib.suppress(OSError):  # where the kernel shares processors between sessions first
        Path("/proc/self/autogroup").write_text("19", encoding="ascii")
    results.put(attack(port, ended))


# Processes


def _processes(service: psutil.Process, role: str) -> list[psutil.Process]:
    """Return the processes of a role, oldest first."""
    found = []
    for process in service.children(recursive=True):
        try:
            if _ROLES[role] in " ".join(process.cmdline()):
                found.append((process.create_time(), process))
        except psutil.Error:
            continue
    return [process for _, process in sorted(found, key=lambda item: item[0])]


def _with_children(processes: Sequence[psutil.Process]) -> Iterator[psutil.Process]:
    for process in processes:
        try:
            yield process
            yield from process.children(recursive=True)
        except psutil.Error:
            continue


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the CPU seconds of processes and of their children, also of ended ones."""
    total_s = 0.0
    for process in _with_children(processes):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total_s += times.user + times.system + times.children_user + times.children_system
    return total_s


def _used_mib(processes: Sequence[psutil.Process]) -> float:
    """Return the unshared memory of processes and of their children."""
    total_mib = 0.0
    for process in _with_children(processes):
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue
        total_mib += (memory.rss - memory.shared) / 2**20
    return total_mib


def _memory_mib(service: psutil.Process) -> dict[str, float]:
    """Return the unshared memory of the largest process of each role."""
    return {role: max(map(_used_mib, ([item] for item in _processes(service, role))), default=0.0) for role in _ROLES}


def _settled_memory_mib(service: psutil.Process, before: Mapping[str, float]) -> dict[str, float]:
    """Wait until every process has its memory of before, for two minutes at most, and return what it then has."""
    ends = time.monotonic() + _SETTLE_S
    while True:
        after = _memory_mib(service)
        is_back = all(0 < after[role] <= _MAX_MEMORY_RATIO * mib for role, mib in before.items())
        if is_back or time.monotonic() > ends:
            return after
        time.sleep(1.0)


# Report


def _report(  # noqa: PLR0917
    costs: Sequence[RequestCost],
    quiet: Sequence[HonestResponse],
    hostile: Sequence[HonestResponse],
    attacks: Mapping[str, int],
    kills: Sequence[str],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> dict[str, Any]:
    """Print the tables of the phases and return all figures."""
    print("\n| phase | honest requests | 200 | 503 with Retry-After | others | median s | 95 % s | slowest s |")
    print("|---|---|---|---|---|---|---|---|")
    phases = {"quiet": _summary(quiet), "hostile": _summary(hostile)}
    for name, phase in phases.items():
        print("| " + " | ".join([name, *(f"{value:.3g}" for value in phase.values())]) + " |")
    print("\n| process | MiB before | MiB after |\n|---|---|---|")
    for role, mib in before.items():
        print(f"| {role} | {mib:.0f} | {after[role]:.0f} |")
    print(f"\nhostile requests: {dict(sorted(attacks.items()))}\nkilled: {dict(Counter(kills))}")
    refused = [cost for cost in costs if cost.is_refused]
    dearest, largest = max(refused, key=lambda cost: cost.cpu_s), max(refused, key=lambda cost: cost.extra_mib)
    slowest = max(refused, key=lambda cost: cost.slowest_health_s)
    ratio = phases["hostile"]["p95_s"] / phases["quiet"]["p95_s"]
    num_wrong = sum(not response.is_acceptable for response in hostile)
    growth = {role: after[role] / mib if mib and after[role] else float("inf") for role, mib in before.items()}
    worst = max(growth, key=growth.__getitem__)
    targets = [
        Target("invalid bodies: refused", f"{sum(cost.is_cheap for cost in costs)} of {len(costs)}", "all",
               all(cost.is_cheap for cost in costs)),
        Target("invalid bodies: CPU s", f"{dearest.cpu_s:.2f} ({dearest.name})", f"< {_MAX_CPU_S:g}",
               dearest.cpu_s < _MAX_CPU_S),
        Target("invalid bodies: extra MiB", f"{largest.extra_mib:.0f} ({largest.name})", f"< {_MAX_EXTRA_MIB:g}",
               largest.extra_mib < _MAX_EXTRA_MIB),
        Target("slowest health check meanwhile, ms", f"{1000 * slowest.slowest_health_s:.0f} ({slowest.name})",
               f"< {1000 * _MAX_HEALTH_S:g}", slowest.slowest_health_s < _MAX_HEALTH_S),
        Target("honest requests answered otherwise than 200, or 503 with Retry-After",
               f"{num_wrong} of {len(hostile)}", "0", bool(hostile) and not num_wrong),
        Target("95th percentile of their latencies, hostile over quiet", f"{ratio:.2f}", f"<= {_MAX_P95_RATIO:g}",
               ratio <= _MAX_P95_RATIO),
        Target("memory of a process, after over before", f"{growth[worst]:.2f} ({worst})", f"<= {_MAX_MEMORY_RATIO:g}",
               growth[worst] <= _MAX_MEMORY_RATIO),
    ]  # fmt: skip
    print("\n| target | measured | goal | verdict |\n|---|---|---|---|")
    for target in targets:
        verdict = "met" if target.is_met else "MISSED"
        print(f"| {target.name} | {target.measured} | {target.goal} | {verdict} |")
    return {
        "targets": [asdict(target) for target in targets],
        "phases": phases,
        "costs": [asdict(cost) for cost in costs],
        "attacks": dict(attacks),
        "kills": dict(Counter(kills)),
        "memory_mib_before": dict(before),
        "memory_mib_after": dict(after),
    }


def _summary(responses: Sequence[HonestResponse]) -> dict[str, float]:
    latencies = sorted(response.latency_s for response in responses if response.status == 200) or [float("nan")]
    num_ok = sum(response.status == 200 for response in responses)
    num_unavailable = sum(response.status == 503 and response.has_retry_after for response in responses)
    return {
        "num_requests": len(responses),
        "num_200": num_ok,
        "num_503": num_unavailable,
        "num_others": len(responses) - num_ok - num_unavailable,
        "median_s": latencies[len(latencies) // 2],
        "p95_s": latencies[int(0.95 * (len(latencies) - 1))],
        "slowest_s": latencies[-1],
    }
