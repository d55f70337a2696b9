"""Connecting to Ray: the cluster a job runs in, or one of its own on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.data import DataContext


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[int]:
    """Use the cluster that is there (a submitted job's, ``RAY_ADDRESS``), else start one and end it afterwards.

    Args:
        num_cpus: logical CPUs of a cluster that is started here; None: the machine's.

    Yields:
        the cluster's logical CPUs, at least 1.
    """
    started_here = not ray.is_initialized()
    if started_here:
        # Workers say what they have to say through exceptions and reports; Ray's own chatter would hide the progress.
        options = {"log_to_driver": False, "logging_level": logging.WARNING}
        if "RAY_ADDRESS" in os.environ:
            ray.init(**options)
        else:
            ray.init(address="local", include_dashboard=False, num_cpus=num_cpus, **options)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if started_here:
            ray.shutdown()
