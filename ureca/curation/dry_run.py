"""A curation that asks what the real one would ask, of a model that costs nothing."""

from collections.abc import Collection

from ureca.curation import prompts
from ureca.curation.listener import Listener
from ureca.curation.protocols import Choice
from ureca.llm.fake import CountingChatModel, FakeChatModel, FakeConfig
from ureca.llm.protocol import ChatModel
from ureca.masks.views import Views

_KINDS = {
    prompts.SHORT_CAPTION: "short_caption",
    prompts.DETAILED_CAPTION: "detailed_caption",
    prompts.UNIQUE_CAPTION: "unique_caption",
    prompts.LISTENING: "listen",
    prompts.VERIFICATION: "verify",
}


def counted(model: ChatModel | None = None) -> CountingChatModel:
    """A model that counts the questions of a curation by stage; None: the stand-in answers."""
    return CountingChatModel(model or FakeChatModel(FakeConfig()), _KINDS)


class DryRunListener:
    """Asks as another listener does, and takes every caption for the region that it was written for; a ``Listener``.

    What the stand-in chooses says nothing about real captions: each caption that it did not understand would be
    written again.
    """

    def __init__(self, listener: Listener) -> None:
        self.name = listener.name
        self._listener = listener

    async def choose(self, views: Views, candidates: Collection[int], caption: str) -> Choice:
        """Ask, and choose the first of the candidates: the curation names the right one first."""
        await self._listener.choose(views, candidates, caption)
        return next(iter(candidates))
