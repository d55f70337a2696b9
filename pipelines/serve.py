"""``serve``: the service as an application of Ray Serve."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx2
from ray import serve
from ray.exceptions import RayError

from ureca.config import with_absolute_paths
from ureca.errors import SettingsError
from ureca.model.checkpoint_files import fingerprint
from ureca.pipelines.batch.session import ray_session, user_error
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.deployments import build_application
from ureca.pipelines.serving.middleware import digest_of

NAME = "ureca"
"""Of the application."""

_LOG = logging.getLogger(__name__)
_BACKSTOP_S = 30.0
_PARTS_OF_SERVE = 2
_PARTS_OF_JOBS = 2
"""Logical CPUs that a cluster of its own has at least: replicas, and actors of batch jobs, need parts of one each."""


@contextmanager
def serving(settings: ServeSettings, *, log: bool = False) -> Iterator[str]:
    """Serve for the block; requests that have begun are finished when it ends.

    Args:
        settings: of the service.
        log: whether what replicas log is printed here, too.

    Yields:
        the address, such as http://127.0.0.1:8765.

    Raises:
        CheckpointError: the model is not a checkpoint of URECA.
        SettingsError: tokens are missing or cannot be read, the port is taken, or a part cannot start.
    """
    fingerprint(settings.model)
    digests = frozenset(map(digest_of, settings.read_tokens()))
    if not log:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Three in a row decide that the proxy is dead and another is needed: by Serve's default, after half a minute.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")
    with ray_session(_PARTS_OF_SERVE + _PARTS_OF_JOBS * bool(settings.batches.folders)) as cluster:
        if not cluster.may_grow:  # else Serve may be what listens there
            _check_port(settings)
        serve.start(
            http_options={
                "host": settings.host,
                "port": settings.port,
                # The service's own limit comes first; this is for what hangs before or behind it.
                "request_timeout_s": settings.limits.timeout_s + _BACKSTOP_S,
            }
        )
        try:
            serve.run(build_application(with_absolute_paths(settings), digests), name=NAME, route_prefix="/")
            address = f"http://{_printable(settings.host)}:{settings.port}"
            _check_answer(settings)
            try:
                yield address
            finally:
                _end_requests(settings.resources.ingress.graceful_shutdown_timeout_s)
        except RuntimeError as error:
            raise user_error(error) or error from error
        finally:
            with suppress(TimeoutError):  # of Serve's own, after a minute; it goes on by itself
                serve.delete(NAME)


def _end_requests(timeout_s: float) -> None:
    """Have those answered that have begun, and no more.

    When Serve deletes an application, it takes away all of its parts at once: a request that is on its way from one to
    the next would wait for ever.
    """
    try:
        serve.get_app_handle(NAME).broadcast("end").results(timeout_s=timeout_s)
    except (TimeoutError, RayError) as error:
        _LOG.warning("the service ends before all that has begun is finished: %s", error or "it took too long")


def _printable(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_answer(settings: ServeSettings) -> None:
    """Serve listens where it was first started on a cluster, whatever is asked later."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what stands for all addresses
    host = _printable(everywhere.get(settings.host, settings.host))
    try:
        httpx2.get(f"http://{host}:{settings.port}/healthz", timeout=_BACKSTOP_S, trust_env=False).raise_for_status()
    except httpx2.HTTPError as error:
        raise SettingsError(
            f"the service does not answer at {host}:{settings.port} ({error}). Does Serve listen elsewhere on this "
            "cluster already? Then name its host and port"
        ) from error


def _check_port(settings: ServeSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise SettingsError(f"--host {settings.host} --port {settings.port} cannot be used: {error}") from error
