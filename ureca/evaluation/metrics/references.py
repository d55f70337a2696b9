"""Metrics of captions against references: BLEU, ROUGE-L, METEOR, CIDEr and BERTScore."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isnan
from typing import Any

import numpy as np

from ureca.errors import SettingsError
from ureca.evaluation.measures import Floats, Measure, Unmeasured, mean_of
from ureca.evaluation.metrics.bert_score import measure_bert_score
from ureca.evaluation.metrics.java import meteor, tokenize
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.settings import METRICS, BertScoreSettings, Metric

_ORDERS = 4
_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap's, against division by zero


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[Metric] = METRICS,
    *,
    bert_score: BertScoreSettings | None = None,
) -> dict[str, Any]:
    """Compute BLEU@1 to BLEU@4, ROUGE-L, METEOR, CIDEr and BERTScore of captions against references.

    All scores are fractions, 0 to 1, but for CIDEr, which is 0 to 10.

    Args:
        predictions: one caption for each item; an empty caption matches nothing.
        references: at least one reference caption for each item.
        metrics: metrics to compute, of "BLEU", "ROUGE", "METEOR", "CIDEr" and "BERTScore". METEOR takes about 10 s to
            start, the others are fast.
        bert_score: model and settings of BERTScore; None: BERTScore is missing.

    Returns:
        A float by the name of each score. A score that could not be computed is None, and the dictionary ``"missing"``
        has the reason by its name.

    Raises:
        ValueError: the numbers of predictions and of lists of references differ, or an item has no reference.
        SettingsError: a package that the metrics need is missing; the message names the extra to install.

    Example:
        >>> import ureca
        >>> scores = ureca.score(["a red car"], [["the red car", "a small red car"]], metrics=["BLEU", "ROUGE"])
        >>> round(scores["ROUGE"], 2)
        0.84
    """
    values: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for measure in measure_texts(predictions, references, bert_score=bert_score, metrics=metrics):
        reason = measure.reason if isinstance(measure, Unmeasured) else None
        value = measure.value() if isinstance(measure, Measure) else None
        if value is not None and isnan(value):
            value, reason = None, "there is nothing to compare" if len(predictions) else "there are no captions"
        values[measure.name] = value
        if reason is not None:
            missing[measure.name] = reason
    return {**values, "missing": missing}


def measure_texts(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    bert_score: BertScoreSettings | None = None,
    metrics: Sequence[Metric] = METRICS,
) -> list[Measure | Unmeasured]:
    """Compute the metrics of ``score`` as measures, with statistics of each item.

    Raises:
        ValueError, SettingsError: as ``score``.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses do not fit {len(references)} lists of references")
    for place, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"item {place} needs a list of at least one reference, not {texts!r}")
    measures: list[Measure | Unmeasured] = []
    if set(metrics) - {"BERTScore"}:
        words = tokenize({*hypotheses, *(text for texts in references for text in texts)})
        captions = [words[text] for text in hypotheses]
        expected = [[words[text] for text in texts] for texts in references]
        if "BLEU" in metrics:
            measures += bleu(captions, expected)
        if "ROUGE" in metrics:
            measures.append(rouge(captions, expected))
        if "METEOR" in metrics:
            measures.append(meteor(captions, expected))
        if "CIDEr" in metrics:
            measures.append(cider(captions, expected))
    if "BERTScore" in metrics:
        if bert_score is None:
            measures.append(Unmeasured("BERTScore", "no model for it was named"))
        else:
            try:
                measures.append(measure_bert_score(hypotheses, references, bert_score))
            except SettingsError as error:
                measures.append(Unmeasured("BERTScore", str(error)))
    return measures


def measure_captions(
    predictions: Sequence[Prediction],
    *,
    bert_score: BertScoreSettings | None = None,
    metrics: Sequence[Metric] = METRICS,
) -> list[Measure | Unmeasured]:
    """Compute the metrics of ``score`` as measures of predictions; regions without references do not count.

    Raises:
        SettingsError: as ``score``.
    """
    places = [place for place, prediction in enumerate(predictions) if prediction.references]
    hypotheses = [predictions[place].caption for place in places]
    references = [predictions[place].references for place in places]
    measures = measure_texts(hypotheses, references, bert_score=bert_score, metrics=metrics)
    if not places:
        return [Unmeasured(measure.name, "no region has a reference caption") for measure in measures]
    spread: list[Measure | Unmeasured] = []
    for measure in measures:
        if isinstance(measure, Measure):
            statistics = np.zeros((len(predictions), measure.statistics.shape[1]))
            statistics[places] = measure.statistics
            measure = replace(measure, statistics=statistics)  # noqa: PLW2901
        spread.append(measure)
    return spread


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[Measure]:
    """Corpus BLEU@1 to BLEU@4 of tokenized captions, with the length of the closest reference.

    The statistics of an item are the lengths of caption and reference, then for each order the number of the caption's
    n-grams, then for each order the number of those that a reference has, too [10].
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=_ORDERS)
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        scorer += (hypothesis, list(texts))
    statistics = np.array(
        [
            [
                counts["testlen"],
                min((abs(length - counts["testlen"]), length) for length in counts["reflen"])[1],
                *counts["guess"],
                *counts["correct"],
            ]
            for counts in scorer.ctest
        ],
        dtype=np.float64,
    ).reshape(-1, 2 + 2 * _ORDERS)
    return [Measure(f"BLEU@{order}", statistics, partial(bleu_figure, order=order)) for order in range(1, _ORDERS + 1)]


def bleu_figure(sums: Floats, order: int) -> Floats:
    """Corpus BLEU of one order [...] from sums of statistics [..., 10]; NaN without references."""
    length, reference_length = sums[..., 0], sums[..., 1]
    guesses, matches = sums[..., 2 : 2 + order], sums[..., 2 + _ORDERS : 2 + _ORDERS + order]
    precision = np.prod((matches + _TINY) / (guesses + _SMALL), axis=-1) ** (1 / order)
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.where(reference_length > 0, precision * brevity, np.nan)


def rouge(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Mean ROUGE-L of tokenized captions; 0 for a caption without words or with references without words."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    values = [
        # pycocoevalcap splits at spaces, which turns an empty text into a word that matches another empty text.
        scorer.calc_score([hypothesis], words) if hypothesis and (words := [text for text in texts if text]) else 0.0
        for hypothesis, texts in zip(hypotheses, references, strict=True)
    ]
    return mean_of("ROUGE", values)


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Mean CIDEr of tokenized captions, 0 to 10; document frequencies are always those of all items."""
    from pycocoevalcap.cider.cider import Cider

    if not any(text for texts in references for text in texts):
        return mean_of("CIDEr", [0.0] * len(hypotheses))
    captions = {place: [text] for place, text in enumerate(hypotheses)}
    _, values = Cider().compute_score({place: list(texts) for place, texts in enumerate(references)}, captions)
    return mean_of("CIDEr", np.asarray(values))
