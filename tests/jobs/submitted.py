"""A Ray head on this machine that takes submitted jobs."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    """A Ray head that jobs are submitted to.

    Attributes:
        address: address of the dashboard, for ``ray job``.
        environment: environment of commands that talk to this head only.
    """

    address: str
    environment: dict[str, str]

    def ray_job(self, *arguments: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run ``ray job ARGUMENTS`` and wait for its end; standard error goes where standard output does."""
        return subprocess.run(
            [ray_command(), "job", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def submit(
        self, *command: str, options: tuple[str, ...] = (), working_dir: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """``ray job submit`` of a command whose logs are followed to its end."""
        return self.ray_job("submit", "--working-dir", str(working_dir), *options, "--", *command)


def wait_until(condition: Callable[[], bool], explain: Callable[[], str], timeout_s: float = 600) -> None:
    """Wait for an event that other processes bring about; the bound is for failures, not for slow machines."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


def ray_command() -> str:
    """Return the path of this environment's ``ray``."""
    return str(Path(sys.executable).with_name("ray"))


@contextlib.contextmanager
def ray_head(num_cpus: int = 8) -> Iterator[Head]:
    """Start a head on loopback, with ports and a token of its own, and end it by its process id."""
    gcs, dashboard, client, agent = free_ports(4)
    folder = tempfile.mkdtemp(prefix="ureca-")  # sockets below it: their paths must be short
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "1"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_JOB_STOP_WAIT_TIME_S": "600",  # by default 3, after which a stopped job is killed
    }
    address = f"http://127.0.0.1:{dashboard}"
    environment |= {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": address}
    command = [
        *(ray_command(), "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address", "127.0.0.1"),
        *("--port", str(gcs), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)),
        *("--num-cpus", str(num_cpus), "--object-store-memory", str(200 * 2**20), "--temp-dir", folder),
    ]
    without_address = {name: value for name, value in environment.items() if "ADDRESS" not in name}
    with Path(folder, "start.log").open("wb") as log:
        process = subprocess.Popen(command, env=without_address, stdout=log, stderr=log)
    try:
        _wait_for(dashboard, process, Path(folder, "start.log"))
        yield Head(address, environment)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    def listens() -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    wait_until(listens, lambda: log.read_text(encoding="utf-8"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the head and its child processes: a regular shutdown takes half a minute."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
