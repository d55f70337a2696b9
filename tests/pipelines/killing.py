"""Ends drivers and workers as a machine that fails would: by SIGKILL."""

import contextlib
import signal
import subprocess

import psutil

# Ray's agents look for their raylet only now and then. They do no work of ours.
_AGENTS = ("RuntimeEnvAgent", "DashboardAgent")


def kill_driver(driver: subprocess.Popen[bytes]) -> None:
    """Kill a driver, if it still runs, and wait for the end of its workers, which may write a partition until then."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(driver.pid).children(recursive=True)
        agents = [child for child in children if any(agent in _command(child) for agent in _AGENTS)]
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        psutil.wait_procs([child for child in children if child not in agents], timeout=60)
        for agent in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.kill()
    driver.wait()


def kill_workers(driver_pid: int, stage: str) -> list[str]:
    """Kill the workers of a stage below a driver; returns what they were called."""
    killed = []
    for worker in psutil.Process(driver_pid).children(recursive=True):
        if stage in (name := _command(worker)):
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
                killed.append(name)
    return killed


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""
