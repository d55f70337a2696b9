"""An annotator, listener and verifier that answers from the ground truth of scenes, with errors at known rates.

It replaces models where the truth must be known, for example to count the mistakes that the stages of a curation
correct. It cannot answer for images that are no scenes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ureca.curation.protocols import Choice, CurationImage, LookAlike, Verdict
from ureca.errors import AnnotationError, AnswerError, SettingsError
from ureca.hashing import digest
from ureca.llm import usage
from ureca.llm.protocol import ChatAnswer
from ureca.masks.annotations import read_annotations
from ureca.masks.mask import Mask
from ureca.masks.views import Views
from ureca.rng import Rng
from ureca.scenes.captions import RegionCaptions, caption_scene
from ureca.scenes.language import COLOURS, Caption, CaptionError, Description, parse
from ureca.scenes.scene import Scene, resolve, scene_of
from ureca.scenes.settings import OracleSettings


class _KnownScene(NamedTuple):
    scene: Scene
    captions: Mapping[int, RegionCaptions]


class Oracle:
    """Annotator, listener and verifier in one, by the ground truth of scenes; each answer counts as a call.

    Errors depend on the question and the seed only: the same question always gets the same answer.

    Args:
        settings: folder of the scenes, and rates of errors.

    Raises:
        SettingsError: the folder has no scene.
    """

    def __init__(self, settings: OracleSettings) -> None:
        self.name = f"oracle error {settings.error_rate:g} vague {settings.vagueness:g} seed {settings.seed}"
        self._settings = settings
        self._known: dict[str, _KnownScene] = {}
        for path in sorted(Path(settings.folder).glob("*.json")):
            try:
                annotations = read_annotations(path)
                scene = scene_of(annotations)
            except AnnotationError:
                continue
            captions = caption_scene(scene, Rng(settings.seed))
            if captions is not None:
                self._known[_scene_key(annotations)] = _KnownScene(scene, captions)
        if not self._known:
            raise SettingsError(f"{settings.folder} has no scene; name the folder of images that `ureca scenes` wrote")

    async def short_caption(
        self, image: CurationImage, region_id: int, *, parent_caption: str | None, sibling_captions: Sequence[str]
    ) -> str:
        """The short caption of the region; without parent and siblings, its kind and colour only."""
        known = self._known_scene(image.masks)
        if parent_caption is None and not sibling_captions:
            region = known.scene[region_id]
            caption = Caption(Description(region.kind, article="a", colour=region.colour))
        else:
            caption = known.captions[region_id].short
        return self._answer(caption, "short", region_id, parent_caption, *sibling_captions)

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        """The short caption with a second sentence on the region's parts."""
        items = self._known_scene(image.masks).captions[region_id].detailed.items
        return self._answer(Caption(parse(short_caption).region, items), "detailed", region_id, *child_captions)

    async def unique_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        caption: str,
        lookalikes: Sequence[LookAlike],
        confused_with: Choice | None = None,
    ) -> str:
        """The unique caption of the region, or, at the rate of vagueness, its short caption."""
        captions = self._known_scene(image.masks).captions[region_id]
        question = ("unique", region_id, caption, confused_with)
        vague = self._rng("vague", *question).bernoulli(self._settings.vagueness)
        return self._answer(captions.short if vague else captions.unique, *question)

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        """Accept a caption that fits the region, unique or not."""
        self._count("yes")
        fits = region_id in _resolved_ids(caption, self._known_scene(image.masks).scene)
        errs = self._rng("verify", region_id, caption).bernoulli(self._settings.error_rate)
        return Verdict(fits != errs, "the scene says so" if not errs else "the oracle errs")

    async def choose(self, views: Views, candidates: Collection[int], caption: str, *, shuffle: int = 0) -> Choice:
        """The only candidate that the caption fits, "none" or "several"; see ``Listener.choose``."""
        self._count("0")
        fitting = [id for id in _resolved_ids(caption, self._known_scene(views.masks).scene) if id in candidates]
        rng = self._rng("listen", caption, *sorted(candidates))
        if rng.bernoulli(self._settings.error_rate):
            return rng.choice([*sorted(candidates), "none", "several"])
        return fitting[0] if len(fitting) == 1 else "several" if fitting else "none"

    def _answer(self, caption: Caption, *question: object) -> str:
        """The text of a caption, whose colour is wrong at the rate of errors."""
        rng = self._rng("say", *question)
        if rng.bernoulli(self._settings.error_rate):
            others = [colour for colour in COLOURS if colour != caption.region.colour]
            caption = replace(caption, region=replace(caption.region, colour=rng.choice(others)))
        self._count(str(caption))
        return str(caption)

    def _known_scene(self, masks: Mapping[int, Mask]) -> _KnownScene:
        known = self._known.get(_scene_key(masks.values()))
        if known is None:
            raise AnswerError("no_scene", f"the image is none of the scenes in {self._settings.folder}")
        return known

    def _rng(self, *question: object) -> Rng:
        hashed = digest([repr(question)], num_bytes=8)
        return Rng(self._settings.seed, int.from_bytes(hashed[:4], "big"), int.from_bytes(hashed[4:], "big"))

    @staticmethod
    def _count(text: str) -> None:
        usage.record(ChatAnswer(text, num_prompt_tokens=0, num_new_tokens=len(text.split())))


def _resolved_ids(caption: str, scene: Scene) -> list[int]:
    try:
        return resolve(caption, scene)
    except CaptionError:
        return []


def _scene_key(masks: Iterable[Mask]) -> str:
    runs = sorted((mask.id, mask.rle["counts"]) for mask in masks)
    return digest([repr(runs)]).hex()
