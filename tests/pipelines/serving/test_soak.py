"""The service under load for minutes: replicas scale with it, and no process grows."""

import itertools
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from statistics import median

import psutil
import pytest

from benchmarks.service_load import keep_busy, request_body, running_service
from tests.pipelines.serving.replicas import CAPTIONER, INGRESS, PROXY, SEGMENTER, processes
from tests.pipelines.serving.requests import disc, square
from tests.serving.local import scene
from ureca.model.initialization import save_tiny

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PORT = 18521
ADDRESS = f"http://127.0.0.1:{PORT}"
SOAK_S = float(os.environ.get("URECA_SOAK_SECONDS", "300"))
SETTINGS = {
    "captioner.max-new-tokens": "64",
    "resources.captioner.max-replicas": "2",
    "resources.captioner.target-ongoing-requests": "4",
    "resources.captioner.upscale-delay-s": "3",
    "resources.captioner.downscale-delay-s": "5",
    "resources.captioner.look-back-period-s": "11",
}
ROLES = (CAPTIONER, INGRESS, SEGMENTER, PROXY)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[psutil.Process]:
    folder = tmp_path_factory.mktemp("soak")
    save_tiny(folder / "model")
    settings = [text for name, value in SETTINGS.items() for text in (f"--{name}", value)]
    with running_service(["--model", str(folder / "model"), *settings], PORT, folder / "log") as service:
        yield psutil.Process(service.pid)


def bodies() -> list[dict[str, object]]:
    """Requests of all kinds, each with its own image; some are rejected."""
    kinds = itertools.cycle(({}, {"lookalikes": True}, {"max_new_tokens": 9}, {"stream": True}, {"model": "other"}))
    made = [request_body(scene(seed=seed), [disc(), square()], **next(kinds)) for seed in range(60)]
    for body in made[::6]:
        del body["regions"]
    return made


def num_captioners(service: psutil.Process) -> int:
    return len(processes(service, CAPTIONER))


def test_captioners_scale_with_the_load(service: psutil.Process) -> None:
    assert num_captioners(service) == 1
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1):
            seen.append(num_captioners(service))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        ends = time.monotonic() + 150
        while max(seen, default=0) < 2 and time.monotonic() < ends:
            answers = keep_busy(ADDRESS, bodies(), 10**6, num_clients=16, seconds=5)
            assert {answer.status for answer in answers} <= {200, 404}
        while seen[-1] != 1 and time.monotonic() < ends:
            time.sleep(1)
    finally:
        ended.set()
        watching.join()
    order = [number for number, _ in itertools.groupby(seen)]
    print("captioners over time:", order)
    assert order == [1, 2, 1]


def test_memory_under_load_does_not_grow(service: psutil.Process) -> None:
    used_mib: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    ended = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        while not ended.wait(5):
            for role in ROLES:
                for process in processes(service, role):
                    now = time.monotonic() - began
                    used_mib[role, process.pid].append((now, process.memory_full_info().uss / 2**20))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        answers = keep_busy(ADDRESS, bodies(), 10**9, num_clients=8, seconds=SOAK_S)
    finally:
        ended.set()
        watching.join()
    statuses = {status: sum(answer.status == status for answer in answers) for status in {a.status for a in answers}}
    print(f"{len(answers)} requests in {SOAK_S:g} s: {statuses}")
    assert set(statuses) == {200, 404}
    grown = {}
    for (role, pid), samples in used_mib.items():
        # Caches and arenas have their final size after the first third.
        early = [mib for at, mib in samples if SOAK_S / 3 <= at < SOAK_S * 2 / 3]
        late = [mib for at, mib in samples if at >= SOAK_S * 2 / 3]
        if len(early) >= 3 and len(late) >= 3:
            print(f"{role}: {median(early):.0f} MiB in the second third, {median(late):.0f} MiB in the last")
            grown[role, pid] = median(late) - median(early)
    assert {role for role, _ in grown} == set(ROLES)
    assert max(grown.values()) < 8, grown
