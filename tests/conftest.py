"""What tests of several folders need."""

import os
import shutil
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before PyTorch is loaded, here and in the processes of tests: several threads on the small tensors of tests cost more
# than they save, and on a machine with other work they wait for each other without end.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more of the machine than of the code.
settings.register_profile("ureca", deadline=None)
settings.load_profile("ureca")

# A shell that starts the tests in the background has them ignore interrupts, and so all commands that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The one Ray cluster of all tests that need one; pipelines find it and leave it running."""
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


@pytest.fixture(scope="session")
def chromium() -> tuple[str, str]:
    """Paths of a Chromium and of its driver."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs a Chromium and its chromedriver on the PATH (Debian: apt-get install chromium-driver)")
    return browser, driver
