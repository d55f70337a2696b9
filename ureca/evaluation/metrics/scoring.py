"""All metrics of captions against references."""

from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from typing import Any, Literal, get_args

import numpy as np

from ureca.errors import SettingsError
from ureca.evaluation.measures import Measure, Unmeasured
from ureca.evaluation.metrics.bert_score import BertScoreSettings, bert_score
from ureca.evaluation.metrics.meteor import meteor
from ureca.evaluation.metrics.ngrams import bleu, cider, rouge
from ureca.evaluation.metrics.tokenization import tokenize
from ureca.evaluation.predictions import Prediction

Metric = Literal["BLEU", "ROUGE", "METEOR", "CIDEr", "BERTScore"]
METRICS: tuple[Metric, ...] = get_args(Metric)


def score(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    bert_score: BertScoreSettings | None = None,
    metrics: Sequence[Metric] = METRICS,
) -> dict[str, Any]:
    """BLEU@1 to BLEU@4, ROUGE(-L), METEOR, CIDEr and BERTScore of captions, each as a fraction (CIDEr: 0 to 10).

    Args:
        hypotheses: one caption an item; an empty one matches nothing.
        references: for each item at least one.
        bert_score: the model of BERTScore; None leaves it out.
        metrics: what is computed. METEOR takes about 10 s to start, the others next to nothing.

    Returns:
        A float by the name of each metric. One that could not be computed is None, and ``["missing"]`` (a dictionary)
        has the reason by its name.

    Raises:
        ValueError: not as many hypotheses as lists of references, or an item has no reference.
        SettingsError: a package that the metrics need is missing; the message names the extra to install.
    """
    values: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for measure in measure_texts(hypotheses, references, bert_score=bert_score, metrics=metrics):
        reason = measure.reason if isinstance(measure, Unmeasured) else None
        value = measure.value() if isinstance(measure, Measure) else None
        if value is not None and isnan(value):
            value, reason = None, "there is nothing to compare" if len(hypotheses) else "there are no captions"
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
    """The same metrics as measures, which also have the value of each item.

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
        spoken = [words[text] for text in hypotheses]
        expected = [[words[text] for text in texts] for texts in references]
        if "BLEU" in metrics:
            measures += bleu(spoken, expected)
        if "ROUGE" in metrics:
            measures.append(rouge(spoken, expected))
        if "METEOR" in metrics:
            measures.append(meteor(spoken, expected))
        if "CIDEr" in metrics:
            measures.append(cider(spoken, expected))
    if "BERTScore" in metrics:
        measures.append(_bert_score(hypotheses, references, bert_score))
    return measures


def measure_captions(
    predictions: Sequence[Prediction],
    *,
    bert_score: BertScoreSettings | None = None,
    metrics: Sequence[Metric] = METRICS,
) -> list[Measure | Unmeasured]:
    """The same metrics as measures of each prediction; those without references do not count.

    Raises:
        SettingsError: as ``score``.
    """
    places = [place for place, prediction in enumerate(predictions) if prediction.references]
    hypotheses = [predictions[place].caption for place in places]
    references = [predictions[place].references for place in places]
    measures = measure_texts(hypotheses, references, bert_score=bert_score, metrics=metrics)
    if not places:
        return [Unmeasured(measure.name, "no region has a reference caption") for measure in measures]
    return [_spread(measure, places, len(predictions)) for measure in measures]


def _bert_score(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], settings: BertScoreSettings | None
) -> Measure | Unmeasured:
    if settings is None:
        return Unmeasured("BERTScore", "no model for it was named")
    try:
        return bert_score(hypotheses, references, settings)
    except SettingsError as error:
        return Unmeasured("BERTScore", str(error))


def _spread(measure: Measure | Unmeasured, places: Sequence[int], length: int) -> Measure | Unmeasured:
    """A measure of the items at some places as one of all, in which the others do not count."""
    if isinstance(measure, Unmeasured):
        return measure
    statistics = np.zeros((length, measure.statistics.shape[1]))
    statistics[places] = measure.statistics
    return replace(measure, statistics=statistics)
