"""The chat model of ``mllm.kind ray_serve``, which exists only while ``ureca.pipelines`` deploys it."""

from typing import NoReturn

from ureca.errors import SettingsError
from ureca.llm.settings import RayServeConfig


def application_not_started(settings: RayServeConfig) -> NoReturn:
    """Raise the error of a Ray Serve application that is used before a pipeline has started it."""
    raise SettingsError(
        "mllm.kind ray_serve: the application has not been started; `ureca curate` and `ureca evaluate` start it"
    )
