"""The service as a Serve config names it (``serve deploy``, KubeRay's RayService)."""

from collections.abc import Mapping

from ray.serve import Application

from ureca.pipelines.serve_settings import ServeSettings
from ureca.pipelines.serving.deployments import build_application
from ureca.pipelines.serving.middleware import digest_of


def build(args: Mapping[str, object]) -> Application:
    """The application whose settings are ``args``: flags of ``ureca serve`` by name, ``config`` among them.

    Raises:
        SettingsError: a setting is unknown or impossible, or tokens are missing or cannot be read.
    """
    settings = ServeSettings.load([f"--{name}={value}" for name, value in args.items()])
    return build_application(settings, frozenset(map(digest_of, settings.read_tokens())))
