"""Hand-written fakes for the curation: annotators, embedders, chat models; and drawn images."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ureca.curation.protocols import Choice, CurationImage, LookAlike, RegionCrop, Verdict
from ureca.errors import AnswerError
from ureca.llm.protocol import ChatAnswer, ChatRequest
from ureca.masks.mask import Mask
from ureca.masks.tree import ROOT, MaskTree
from ureca.masks.views import Views

CELL_PX = 4


def image_of(parents: Mapping[int, int], *, dropped: Sequence[int] = ()) -> CurationImage:
    """An image whose mask tree has these parents, in this order; the ids in ``dropped`` are no regions.

    Masks are strips of a picture ``CELL_PX`` high. Each leaf has a cell of its own, whose grey is 10 more than the
    last one's; every other mask is what lies below it, and a cell besides.
    """
    cells: dict[int, list[int]] = {id: [index] for index, id in enumerate(parents)}
    for id in reversed(list(parents)):
        if parents[id] != ROOT:
            cells[parents[id]] += cells[id]
    pixels = np.zeros((CELL_PX, CELL_PX * max(1, len(parents)), 3), np.uint8)
    masks = {}
    for index, id in enumerate(parents):
        pixels[:, index * CELL_PX : (index + 1) * CELL_PX] = 10 * (index + 1) % 250
        inside = np.zeros(pixels.shape[:2], bool)
        for cell in cells[id]:
            inside[:, cell * CELL_PX : (cell + 1) * CELL_PX] = True
        masks[id] = Mask.from_array(id, inside)
    tree = MaskTree.from_parents(list(masks.values()), parents)
    regions = tuple(id for id in tree.walk() if id not in dropped)
    return CurationImage(
        pixels=pixels,
        masks=masks,
        tree=tree,
        main_objects=tuple(id for id in tree.children[ROOT] if id in regions),
        regions=regions,
        views=Views(pixels, masks),
    )


@dataclass(frozen=True)
class Call:
    """One question to an annotator: its stage, its region, and everything that was said about the region."""

    stage: str
    region_id: int
    context: Mapping[str, Any]


Script = Callable[[Call], str]


def say_everything(call: Call) -> str:
    """A caption that differs by region and stage."""
    return f"{call.stage} of {call.region_id}"


@dataclass
class RecordingAnnotator:
    """Answers by a script, after a delay of its own for each question, and writes down what happened when.

    Attributes:
        script: the caption of a call; raises ``AnswerError`` where the annotator shall have none.
        delay_s: delay of each answer in seconds.
        accepts: the verdict on a caption.
        calls: in the order in which they were asked.
        finished: the same calls in the order in which they were answered, failures too.
        max_in_flight: the most questions that were open at the same time.
    """

    script: Script = say_everything
    delay_s: Callable[[], float] = lambda: 0.0
    accepts: Callable[[str], bool] = lambda caption: True
    name: str = "recording"
    calls: list[Call] = field(default_factory=list)
    finished: list[Call] = field(default_factory=list)
    max_in_flight: int = 0
    log: list[tuple[str, str, int]] = field(default_factory=list)

    async def short_caption(
        self, image: CurationImage, region_id: int, *, parent_caption: str | None, sibling_captions: Sequence[str]
    ) -> str:
        return await self._answer("short", region_id, parent=parent_caption, siblings=tuple(sibling_captions))

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        return await self._answer("detailed", region_id, short=short_caption, children=tuple(child_captions))

    async def unique_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        caption: str,
        lookalikes: Sequence[LookAlike],
        confused_with: Choice | None = None,
    ) -> str:
        confusion = {} if confused_with is None else {"confused_with": confused_with}
        return await self._answer("unique", region_id, caption=caption, lookalikes=tuple(lookalikes), **confusion)

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        reason = await self._answer("verify", region_id, caption=caption)
        return Verdict(accepted=self.accepts(caption), reason=reason)

    async def _answer(self, stage: str, region_id: int, **context: Any) -> str:
        call = Call(stage, region_id, context)
        self.calls.append(call)
        self.max_in_flight = max(self.max_in_flight, len(self.calls) - len(self.finished))
        self.log.append(("asked", stage, region_id))
        await asyncio.sleep(self.delay_s())
        self.finished.append(call)
        self.log.append(("answered", stage, region_id))
        return self.script(call)

    def of_stage(self, stage: str) -> dict[int, Mapping[str, Any]]:
        """The context of each region's last question of a stage, by region id."""
        return {call.region_id: call.context for call in self.calls if call.stage == stage}

    def when(self, event: str, stage: str, region_id: int) -> int:
        """Place in the log of ``asked`` or ``answered``."""
        return self.log.index((event, stage, region_id))


def failing(stage: str, *region_ids: int, kind: str = "unusable_answer") -> Script:
    """Says everything, but for these regions at this stage."""

    def script(call: Call) -> str:
        if call.stage == stage and call.region_id in region_ids:
            raise AnswerError(kind, "as told")
        return say_everything(call)

    return script


@dataclass
class TableEmbedder:
    """Gives the regions of one image the vectors of a table, in the order in which they are embedded."""

    vectors: Sequence[Sequence[float]]
    name: str = "table"
    crops: list[RegionCrop] = field(default_factory=list)

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        start = len(self.crops)
        self.crops.extend(crops)
        return np.array(self.vectors[start : start + len(crops)], np.float32).reshape(len(crops), -1)


class NothingAlike:
    """Every region of an image is orthogonal to the others."""

    name = "nothing alike"

    def __init__(self, num_regions: int = 64) -> None:
        self._table = TableEmbedder(np.eye(num_regions).tolist())

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        return self._table.embed(crops)


class EverythingAlike:
    """Every region has the same vector."""

    name = "everything alike"

    def embed(self, crops: Sequence[RegionCrop]) -> npt.NDArray[np.float32]:
        return np.ones((len(crops), 1), np.float32)


@dataclass
class ScriptedChatModel:
    """Answers with these texts one after another, then with the last one for ever, and keeps the requests."""

    texts: Sequence[str] = ('{"caption": "A mug."}',)
    name: str = "scripted"
    requests: list[ChatRequest] = field(default_factory=list)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        text = self.texts[min(len(self.requests), len(self.texts) - 1)]
        self.requests.append(request)
        await asyncio.sleep(0)
        return ChatAnswer(text, num_prompt_tokens=100, num_new_tokens=10)


def caption_json(caption: str) -> str:
    """A caption as a model is asked to say it."""
    return json.dumps({"caption": caption})
