"""METEOR 1.5 (Denkowski and Lavie 2014) with its English parameters, aligned by its own program."""

from collections.abc import Sequence

import numpy as np

from ureca.evaluation.measures import Floats, Measure
from ureca.evaluation.metrics.java import module_folder, run_java

_JAR = "meteor-1.5.jar"
_STAGES = 4  # exact, stem, synonym, paraphrase
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_CONTENT_WEIGHTS = np.array([0.75, 0.25])  # of content words, and of function words
_RECALL_WEIGHT, _PENALTY_EXPONENT, _PENALTY_WEIGHT = 0.85, 0.2, 0.6
"""alpha, beta and gamma of the paper, in its order; the content weight is its delta."""


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """METEOR from the alignments of the whole set.

    A region's statistics are those the program gives for its best reference [23]: lengths of caption and reference,
    function words in both, for each stage the matched content words of both and function words of both, chunks, and
    matched words of both.

    Raises:
        SettingsError: pycocoevalcap or Java is missing.
    """
    lines = [" ||| ".join(["SCORE", *texts, caption]) for caption, texts in zip(hypotheses, references, strict=True)]
    arguments = ["-jar", _JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    answers = run_java(arguments, lines, module_folder("pycocoevalcap.meteor.meteor")) if lines else []
    statistics = np.array([answer.split() for answer in answers], dtype=np.float64).reshape(-1, 7 + 4 * _STAGES)
    lengths, chunks, matches = statistics[:, :2], statistics[:, -3], statistics[:, -2:]
    # A caption that is its reference has no break in its alignment, neither alone nor in a sum.
    chunks[(matches == lengths).all(axis=1) & (chunks == 1)] = 0.0
    return Measure("METEOR", statistics, meteor_figure)


def meteor_figure(sums: Floats) -> Floats:
    """METEOR from sums of statistics [..., 23] to [...]; NaN of no words at all."""
    lengths, function_words, chunks, matches = sums[..., :2], sums[..., 2:4], sums[..., -3], sums[..., -2:]
    # [..., stage, content or function word, caption or reference]
    stages = sums[..., 4:-3].reshape(*sums.shape[:-1], _STAGES, 2, 2)
    weighed = np.einsum("...sft,s,f->...t", stages, _STAGE_WEIGHTS, _CONTENT_WEIGHTS)
    words = np.stack([lengths - function_words, function_words], axis=-1) @ _CONTENT_WEIGHTS
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = np.moveaxis(weighed / words, -1, 0)
        mean = precision * recall / (_RECALL_WEIGHT * precision + (1 - _RECALL_WEIGHT) * recall)
        fragmentation = chunks / matches.mean(axis=-1)
        value = np.nan_to_num(mean * (1 - _PENALTY_WEIGHT * fragmentation**_PENALTY_EXPONENT))
    return np.where(lengths.sum(axis=-1) > 0, value, np.nan)
