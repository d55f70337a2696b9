"""How captions are written: the service's settings with what a request asks for."""

from ureca.serving.refusal import Refusal
from ureca.serving.requests import Generation
from ureca.settings.captioner import CaptionSettings


def caption_settings(defaults: CaptionSettings, asked: Generation) -> CaptionSettings:
    """The defaults with what was asked for; their ``max_new_tokens`` is also the limit.

    Raises:
        Refusal: 422 ``too_many_tokens``.
    """
    given = {name: value for name in Generation.model_fields if (value := getattr(asked, name)) is not None}
    if given.get("max_new_tokens", 1) > defaults.max_new_tokens:
        raise Refusal(422, "too_many_tokens", f"the limit is {defaults.max_new_tokens}", param="max_new_tokens")
    return defaults.model_copy(update=given)
