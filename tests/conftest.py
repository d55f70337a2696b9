"""What tests of several folders need."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("ureca", deadline=None)
settings.load_profile("ureca")


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
