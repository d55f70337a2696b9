"""A listener that needs no weights: it measures whom a caption can be true of."""

import asyncio
import threading
import weakref
from collections.abc import Collection, Mapping

from ureca.curation.annotator import Choice
from ureca.curation.describer.measurement import Measurement, measure_regions
from ureca.curation.describer.verification import judge
from ureca.curation.image import CurationImage
from ureca.regions.tree import ROOT, MaskTree
from ureca.regions.views import Views


class DescribingListener:
    """Chooses the candidate that all measurable claims of a caption are true of; a ``Listener``.

    What it measures is what ``judge`` does: colour, brightness, texture, shape, size and place. What ranks a region
    among others ("the largest", "second from the left") it takes as said of none in particular: where only that tells
    two candidates apart, it answers ``"several"``.
    """

    name = "describer-listener-1"

    def __init__(self) -> None:
        self._measured: dict[int, tuple[weakref.ref[Views], Mapping[int, Measurement]]] = {}
        self._lock = threading.Lock()

    async def choose(self, views: Views, candidates: Collection[int], caption: str) -> Choice:
        """Choose among the candidates; see ``Listener.choose``."""
        known = self._measured.get(id(views))
        measured = known[1] if known is not None else await asyncio.to_thread(self._measure, views)
        fitting = [
            candidate
            for candidate in candidates
            if candidate in measured and judge(caption, candidate, measured).accepted
        ]
        if len(fitting) == 1:
            return fitting[0]
        return "several" if fitting else "none"

    def _measure(self, views: Views) -> Mapping[int, Measurement]:
        with self._lock:
            key = id(views)
            if key not in self._measured:
                tree = MaskTree.plant(list(views.masks.values()))
                image = CurationImage(
                    pixels=views.pixels,
                    masks=views.masks,
                    tree=tree,
                    main_objects=tuple(tree.children[ROOT]),
                    regions=tuple(tree.walk()),
                    views=views,
                )
                forget = weakref.ref(views, lambda _: self._measured.pop(key, None))
                self._measured[key] = forget, measure_regions(image)
            return self._measured[key][1]
