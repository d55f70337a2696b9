"""Fixtures and settings of tests in several folders."""

import os
import signal
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The environment of vLLM, where no page is tested, has no selenium.
pytest_plugins = ["tests.browser"] if find_spec("selenium") else []

# Before PyTorch is loaded, here and in the processes of tests: several threads on the small tensors of tests cost more
# than they save, and on a machine with other work they wait for each other without end.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more of the machine than of the code.
settings.register_profile("ureca", deadline=None)
settings.load_profile("ureca")

# A shell that starts the tests in the background has them ignore interrupts, and so all commands that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def _is_on_ray(path: str) -> bool:
    return "ray_cluster" in Path(path).read_text(encoding="utf-8")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of the one Ray cluster, which take longest."""
    items.sort(key=lambda item: not _is_on_ray(str(item.path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Keep the tests of the one Ray cluster in one process, and those of each other file, which share fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if _is_on_ray(str(config.rootpath / file)) else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The one Ray cluster of all tests that need one; pipelines find it and leave it running.

    The scheduler above finds the files of these tests by this name in their text.
    """
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=4,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="WARNING",
    )
    yield
    ray.shutdown()
