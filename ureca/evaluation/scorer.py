"""Scores of captions by an image-text encoder, a listener, BERTScore's model and the scene that the image shows."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ureca.curation.protocols import Listener
from ureca.evaluation.encoders import ImageTextEncoder
from ureca.evaluation.measures import Measure, Unmeasured
from ureca.evaluation.metrics.bert_score import BertScorer, bert_measure
from ureca.evaluation.metrics.references import measure_captions
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.settings import BertScoreSettings, DuplicateSettings, Metric
from ureca.evaluation.uniqueness import (
    Heard,
    Question,
    Resolution,
    Retrieved,
    distractors,
    listen,
    listener_measures,
    measure_duplicates,
    resolution,
    resolution_measures,
    retrieval_measures,
    retrieve,
)
from ureca.masks.views import Views
from ureca.scenes.scene import Scene

_CROP_SIDE_PX = 448  # longest side of the encoder's inputs; encoders resize to less


@dataclass(slots=True)
class CaptionScores:
    """The scores of one caption; each is None where it was not measured.

    Attributes:
        retrieved: rank of the caption's region for the image-text encoder.
        heard: the listener's choice.
        bert_f1: F1 of BERTScore with the best reference, 0 to 1.
        resolution: verdict of the scene: the caption fits its region alone, others too, or not its region.
    """

    retrieved: Retrieved | None = None
    heard: Heard | None = None
    bert_f1: float | None = None
    resolution: Resolution | None = None


@dataclass(frozen=True, slots=True)
class ScoredCaption:
    """A region of an image with its caption, and the scores of the caption.

    Attributes:
        region_id: unique in its image.
        caption: blank where the region has none.
        references: reference captions of the region.
        lookalike_ids: regions known to look like it, the most similar first.
        is_scored: False for a region that is only a candidate for which captions of other regions can be mistaken.
        scores: filled in by ``CaptionScorer``.
    """

    region_id: int
    caption: str
    references: Sequence[str] = ()
    lookalike_ids: Sequence[int] = ()
    is_scored: bool = True
    scores: CaptionScores = field(default_factory=CaptionScores)


class CaptionScorer:
    """Scores the captions of one image at a time; several images may be scored concurrently.

    Args:
        encoder: image-text encoder for self-retrieval; None skips it.
        listener: listener that chooses regions by captions; None skips it.
        bert: model of BERTScore; None skips it.
        max_distractors: largest number of other regions shown to the listener beside the right one.
    """

    def __init__(
        self,
        encoder: ImageTextEncoder | None = None,
        listener: Listener | None = None,
        bert: BertScorer | None = None,
        max_distractors: int = 8,
    ) -> None:
        self.encoder = encoder
        self.listener = listener
        self._bert = bert
        self._max_distractors = max_distractors
        self._network_lock = asyncio.Lock()  # one batch at a time goes through the networks

    @property
    def needs_pixels(self) -> bool:
        """True if ``score_views`` has something to measure."""
        return self.encoder is not None or self.listener is not None

    async def compare_references(self, captions: Sequence[ScoredCaption]) -> None:
        """Fill in ``bert_f1`` of the captions of one image, where the region has a reference."""
        compared = [caption for caption in captions if caption.is_scored and caption.references]
        if self._bert is None or not compared:
            return
        texts, references = [caption.caption for caption in compared], [caption.references for caption in compared]
        async with self._network_lock:
            values = await asyncio.to_thread(self._bert.f1, texts, references)
        for caption, value in zip(compared, values, strict=True):
            caption.scores.bert_f1 = value

    def resolve(self, captions: Sequence[ScoredCaption], scene: Scene) -> None:
        """Fill in ``resolution`` of the captions of one image, which shows a scene."""
        for caption in captions:
            if caption.is_scored:
                caption.scores.resolution = resolution(caption.caption, caption.region_id, scene)

    async def score_views(self, captions: Sequence[ScoredCaption], views: Views) -> None:
        """Fill in ``retrieved`` and ``heard`` of the captions of one image.

        Args:
            captions: captions of the regions of one image; every region is a candidate for all captions.
            views: views of the image, with at least the masks of these regions.

        Raises:
            SettingsError, ModelError: the listener's model cannot answer at all.
        """
        if self.encoder is not None:
            await self._retrieve(self.encoder, captions, views)
        if self.listener is not None and len(captions) > 1:
            masks = {caption.region_id: views.masks[caption.region_id] for caption in captions}
            asked = [caption for caption in captions if caption.is_scored]
            most = self._max_distractors
            questions = [
                Question(
                    caption.region_id,
                    caption.caption,
                    distractors(caption.region_id, masks, caption.lookalike_ids, max_distractors=most),
                )
                for caption in asked
            ]
            for caption, heard in zip(asked, await listen(self.listener, views, questions), strict=True):
                caption.scores.heard = heard

    async def _retrieve(self, encoder: ImageTextEncoder, captions: Sequence[ScoredCaption], views: Views) -> None:
        def find() -> list[Retrieved | None]:
            crops = [views.crop_with_mask(caption.region_id, max_side_px=_CROP_SIDE_PX)[0] for caption in captions]
            return retrieve([caption.caption for caption in captions], crops, encoder)

        async with self._network_lock:
            found = await asyncio.to_thread(find)
        for caption, retrieved in zip(captions, found, strict=True):
            if caption.is_scored:
                caption.scores.retrieved = retrieved


def measure_predictions(
    predictions: Sequence[Prediction],
    scores: Sequence[CaptionScores] | None = None,
    *,
    metrics: Sequence[Metric] = (),
    duplicates: DuplicateSettings | None = None,
    bert_score: BertScoreSettings | None = None,
    encoder_name: str | None = None,
    listener_name: str | None = None,
    reference_scores: Sequence[CaptionScores] | None = None,
) -> list[Measure | Unmeasured]:
    """All measures of predictions: metrics against references, duplicates, and those from the scores of the captions.

    A region without a caption is neither retrieved nor understood by the listener, even where its image could not be
    read.

    Args:
        predictions: the captions of a model.
        scores: scores of the captions, in the order of ``predictions``; None where they were not scored.
        metrics: names of the metrics against references.
        duplicates: settings of the duplicate rates; None leaves them out.
        bert_score: settings of the model that gave ``bert_f1``; None where there was none.
        encoder_name: name of the image-text encoder; None where there was none.
        listener_name: name of the listener; None where there was none.
        reference_scores: scores of the regions' first references in the same order, for the ceilings of retrieval and
            listener; None leaves the ceilings out.

    Raises:
        SettingsError: a package that the metrics need is missing.
        DataError: ``duplicate_region``.
    """
    measures: list[Measure | Unmeasured] = []
    if metrics:
        measures += measure_captions(predictions, metrics=metrics)
    if duplicates is not None:
        measures += measure_duplicates(predictions, duplicates)
    if scores is None:
        return measures
    resolutions = [score.resolution for score in scores]
    if any(resolutions):
        measures += resolution_measures(resolutions)
    if bert_score is not None:
        measures.append(bert_measure([score.bert_f1 for score in scores], bert_score))
    num_regions = Counter(prediction.image_id for prediction in predictions)
    # The number of candidates of a blank caption, 0 for any other and for the only region of an image.
    num_candidates_of_blank = [
        num_regions[prediction.image_id] if prediction.is_blank and num_regions[prediction.image_id] > 1 else 0
        for prediction in predictions
    ]
    if encoder_name is not None:
        retrieved = [
            score.retrieved or (Retrieved(0.0, 0.0, num_candidates) if num_candidates else None)
            for score, num_candidates in zip(scores, num_candidates_of_blank, strict=True)
        ]
        ceiling = None if reference_scores is None else [score.retrieved for score in reference_scores]
        measures += retrieval_measures(retrieved, encoder_name, of_references=ceiling)
    if listener_name is not None:
        heard: list[Heard | None] = [
            score.heard or ("blank" if num_candidates else None)
            for score, num_candidates in zip(scores, num_candidates_of_blank, strict=True)
        ]
        heard_ceiling = None if reference_scores is None else [score.heard for score in reference_scores]
        measures += listener_measures(heard, listener_name, of_references=heard_ceiling)
    return measures
