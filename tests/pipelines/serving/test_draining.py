"""Requests in flight when a replica is scaled down, the service shuts down, or the ingress or proxy is killed."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from benchmarks.service_load import running_service
from tests.drawn import write_corpus
from tests.pipelines.serving.replicas import CAPTIONER, INGRESS, PROXY, processes
from tests.pipelines.serving.requests import DISC, request
from tests.pipelines.serving.test_serve import endless_captioner

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PORT = 18533
ADDRESS = f"http://127.0.0.1:{PORT}"
NUM_TOKENS = 4000  # a caption takes seconds
BODY = request(DISC, max_new_tokens=NUM_TOKENS)
SETTINGS = {
    "captioner.max-new-tokens": str(NUM_TOKENS),
    "resources.captioner.max-replicas": "2",
    "resources.captioner.target-ongoing-requests": "2",
    "resources.captioner.upscale-delay-s": "1",
    "resources.captioner.downscale-delay-s": "3",
    "resources.captioner.look-back-period-s": "11",
    "resources.ingress.health-check-period-s": "1",
}
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("draining")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Any]:
    endless_captioner().model.save_pretrained(folder / "model")
    endless_captioner().processor.save_pretrained(folder / "model")
    write_corpus(folder / "in", 500)
    settings = {**SETTINGS, "batches.folders": f'["{folder / "in"}"]', "batches.output": str(folder / "out")}
    flags = [text for name, value in settings.items() for text in (f"--{name}", value)]
    with running_service(["--model", str(folder / "model"), *flags], PORT, folder / "log") as service:
        yield service
        print((folder / "log").read_text()[-2000:])


def ask(**options: Any) -> tuple[int, int]:
    """Send a request; returns the status and the number of generated tokens."""
    answer = httpx2.post(f"{ADDRESS}/v1/captions", json=BODY, timeout=TIMEOUT_S, trust_env=False, **options)
    captions = answer.json()["captions"] if answer.status_code == 200 else []
    return answer.status_code, sum(item["num_tokens"] for item in captions)


def wait_until(event: str, has_happened: Any) -> float:
    """Wait for an event; returns the seconds that it took."""
    began = time.monotonic()
    while not has_happened():
        assert time.monotonic() - began < TIMEOUT_S, event
        time.sleep(0.2)
    return time.monotonic() - began


def test_scaled_down_replica_finishes_its_requests(service: Any) -> None:
    captioners = lambda: processes(psutil.Process(service.pid), CAPTIONER)  # noqa: E731
    num_clients = 8
    ended = threading.Event()

    def ask_on(number: int) -> list[tuple[int, int]]:
        answers = []
        while not ended.is_set() and number < num_clients:
            answers.append(ask())
        return answers

    with ThreadPoolExecutor(num_clients) as clients:
        asking = [clients.submit(ask_on, number) for number in range(num_clients)]
        try:
            took_s = wait_until("a second captioner", lambda: len(captioners()) == 2)
            print(f"two captioners after {took_s:.0f} s")
            num_clients = 2  # one captioner is enough for two clients
            took_s = wait_until("one captioner", lambda: len(captioners()) == 1)
            print(f"one captioner after {took_s:.0f} s")
        finally:
            ended.set()
        answers = [answer for task in asking for answer in task.result()]
    print(f"{len(answers)} answers")
    assert set(answers) == {(200, NUM_TOKENS)}


@pytest.mark.parametrize("role", [INGRESS, PROXY])
def test_killed_ingress_or_proxy_is_replaced(service: Any, role: str) -> None:
    (victim,) = processes(psutil.Process(service.pid), role)
    victim.kill()
    victim.wait()

    def is_answered() -> bool:
        try:
            return ask()[0] == 200
        except httpx2.TransportError:
            return False

    took_s = wait_until("an answer", is_answered)
    print(f"answered {took_s:.1f} s after the kill")
    assert [status for status, _ in (ask(), ask())] == [200, 200]


def test_shutdown_terminates_jobs_and_finishes_streams(service: Any, folder: Path) -> None:
    url = f"{ADDRESS}/v1/batches"
    httpx2.post(url, json={"input": str(folder / "in")}, trust_env=False).raise_for_status()
    (job,) = processes(psutil.Process(service.pid), "ureca.jobs.caption")
    have_started = threading.Barrier(4)

    def read() -> list[str]:
        body = {**BODY, "stream": True}
        with httpx2.stream("POST", f"{ADDRESS}/v1/captions", json=body, timeout=TIMEOUT_S, trust_env=False) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            have_started.wait(TIMEOUT_S)
            return [line for line in (first, *lines) if line.startswith("event: ")]

    with ThreadPoolExecutor(3) as clients:
        reading = [clients.submit(read) for _ in range(3)]
        have_started.wait(TIMEOUT_S)
        service.send_signal(signal.SIGTERM)
        began = time.monotonic()
        streams = [task.result() for task in reading]
        print(f"the last caption came {time.monotonic() - began:.1f} s after the signal")
    assert streams == [["event: regions", "event: caption", "event: done"]] * 3
    assert service.wait(60) == 0
    psutil.wait_procs([job], 60)
    assert not job.is_running()
    with pytest.raises(httpx2.ConnectError):
        ask()
