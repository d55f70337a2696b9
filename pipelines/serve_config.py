"""The service as a Serve config names it (``serve deploy``, KubeRay's RayService)."""

from collections.abc import Mapping

from ray.serve import Application

from pipelines.serving_deployments import build_application
from pipelines.serving_gate import digest_of
from ureca.settings.serve import ServeSettings


def build(args: Mapping[str, object]) -> Application:
    """The application whose settings are ``args``: flags of ``ureca serve`` by name, ``config`` among them.

    Raises:
        SettingsError: a setting is unknown or impossible, or tokens are missing or cannot be read.
    """
    settings = ServeSettings.load([f"--{name}={value}" for name, value in args.items()])
    return build_application(settings, frozenset(map(digest_of, settings.read_tokens())))
