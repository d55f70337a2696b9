"""``serve``: the service as an application of Ray Serve."""

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx2
from ray import serve
from ray.exceptions import RayError

from ureca.config import with_absolute_paths
from ureca.errors import ClusterError, SettingsError
from ureca.model.checkpoint_files import fingerprint
from ureca.pipelines.batch.executor import user_error
from ureca.pipelines.batch.session import ray_session
from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.deployments import build_application
from ureca.pipelines.serving.front import configure_proxies
from ureca.pipelines.serving.middleware import digest_token
from ureca.serving.settings import erase_variable
from ureca.wording import first_line

APPLICATION = "ureca"
"""Name of the application."""

_LOG = logging.getLogger(__name__)
_PACKAGES_OF_REPLICAS = ("fastapi", "fastapi_offline", "python_multipart")
_PROXY_TIMEOUT_MARGIN_S = 30.0
_MIN_CPUS_SERVE = 2
_MIN_CPUS_BATCHES = 2
"""Minimum logical CPUs of a cluster that this process starts, for the replicas and for the actors of batch jobs."""


@contextmanager
def serving(settings: ServeSettings, batch_command: Sequence[str] = (), *, log: bool = False) -> Iterator[str]:
    """Run the service within the context; at exit, requests in flight are finished first.

    Args:
        settings: settings of the service.
        batch_command: command line of ``ureca caption`` for batch jobs; required if ``batches.folders`` is set.
        log: True to print the logs of replicas in this process, too.

    Yields:
        The base URL of the service, such as http://127.0.0.1:8765.

    Raises:
        CheckpointError: the model is not a checkpoint of URECA.
        ClusterError: Ray or Ray Serve does not start.
        ModuleNotFoundError: a package that replicas need is missing.
        SettingsError: tokens are missing or cannot be read, the port is in use, or a deployment cannot start.
    """
    for package in _PACKAGES_OF_REPLICAS:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"there is no package {package}", name=package)
    if settings.model is not None:
        fingerprint(settings.model)
    token_digests = frozenset(map(digest_token, settings.read_tokens()))
    if settings.access.tokens_variable is not None:
        # Ray's processes, one per replica and more, inherit the environment.
        erase_variable(settings.access.tokens_variable)
    configure_proxies(settings.limits, token_digests)
    if not log:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Serve replaces a proxy after three failed health checks: after half a minute with its default period.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")
    # A proxy that is not ready in time is killed, which ends the start; a busy machine takes longer than 5 s.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    with ray_session(_MIN_CPUS_SERVE + _MIN_CPUS_BATCHES * bool(settings.batches.folders)) as cluster:
        if not cluster.may_grow:  # on an existing cluster, Serve itself may listen on the port
            _check_port(settings)
        try:
            serve.start(
                http_options={
                    "host": settings.host,
                    "port": settings.port,
                    # Longer than the service's own timeout: applies only if the ingress does not respond.
                    "request_timeout_s": settings.limits.timeout_s + _PROXY_TIMEOUT_MARGIN_S,
                }
            )
        except (RayError, TimeoutError) as error:
            reason = first_line(error)
            raise ClusterError(
                f"Ray Serve did not start: {reason.rstrip('.')}. The machine may be too busy, or short of "
                "memory (`ureca doctor` checks it); try again, or read /tmp/ray/session_latest/logs/serve"
            ) from error
        try:
            application = build_application(with_absolute_paths(settings), batch_command, token_digests)
            serve.run(application, name=APPLICATION, route_prefix="/")
            _check_responds(settings)
            try:
                yield f"http://{_url_host(settings.host)}:{settings.port}"
            finally:
                _drain(settings.resources.ingress.graceful_shutdown_timeout_s)
        except RuntimeError as error:
            raise user_error(error) or error from error
        finally:
            with suppress(TimeoutError):  # Serve's own timeout, one minute; the deletion continues in the background
                serve.delete(APPLICATION)


def _check_port(settings: ServeSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise SettingsError(f"--host {settings.host} --port {settings.port} cannot be used: {error}") from error


def _check_responds(settings: ServeSettings) -> None:
    """Check that the service responds at its address: on a cluster where Serve already runs, Serve keeps its own."""
    any_address = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - the wildcard addresses
    host = _url_host(any_address.get(settings.host, settings.host))
    try:
        url = f"http://{host}:{settings.port}/healthz"
        httpx2.get(url, timeout=_PROXY_TIMEOUT_MARGIN_S, trust_env=False).raise_for_status()
    except httpx2.HTTPError as error:
        raise SettingsError(
            f"the service does not respond at {host}:{settings.port} ({error}). If Serve already listens at another "
            "address of this cluster, set host and port to that address"
        ) from error


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _drain(timeout_s: float) -> None:
    """Finish the requests in flight.

    Serve deletes all deployments of an application at once; a request on its way from one deployment to another would
    then wait forever.
    """
    try:
        serve.get_app_handle(APPLICATION).broadcast("drain").results(timeout_s=timeout_s)
    except (TimeoutError, RayError) as error:
        _LOG.warning("the service shuts down with requests in flight: %s", error or f"not drained in {timeout_s:g} s")
