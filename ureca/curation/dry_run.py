"""Components of a dry run: a curation that makes the requests of a real one without their cost."""

from collections.abc import Collection
from weakref import WeakKeyDictionary

from ureca.curation import prompts
from ureca.curation.protocols import Choice, Listener
from ureca.llm.fake import CountingChatModel, FakeChatModel
from ureca.llm.protocol import ChatModel
from ureca.llm.settings import FakeConfig
from ureca.masks.views import Views

_KINDS = {
    prompts.SHORT_CAPTION: "short_caption",
    prompts.DETAILED_CAPTION: "detailed_caption",
    prompts.UNIQUE_CAPTION: "unique_caption",
    prompts.LISTENING: "listen",
    prompts.VERIFICATION: "verify",
}


def counting_model(model: ChatModel | None = None) -> CountingChatModel:
    """Wrap a model so that it counts the requests of a curation by stage; None: the fake model answers."""
    return CountingChatModel(model or FakeChatModel(FakeConfig()), _KINDS)


class DryRunListener:
    """Makes the requests of another listener and then chooses the right region; a ``Listener``.

    The choices of the fake model say nothing about real captions, and each wrong choice would cause a rewrite.

    Args:
        listener: listener whose requests are made.
    """

    def __init__(self, listener: Listener) -> None:
        self.name = listener.name
        self._listener = listener
        self._right: WeakKeyDictionary[Views, dict[str, int]] = WeakKeyDictionary()

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
        """Choose the first candidate of a caption's first question, the right one, and "none" where it is not shown."""
        await self._listener.choose(views, candidates, caption, shuffle=shuffle)
        right = self._right.setdefault(views, {}).setdefault(caption, next(iter(candidates)))
        return right if right in candidates else "none"
