"""BLEU, ROUGE-L and CIDEr of tokenized captions, counted by pycocoevalcap."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from ureca.evaluation.measures import Floats, Measure, mean_of

_ORDERS = 4
_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap's, against division by zero


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[Measure]:
    """BLEU@1 to BLEU@4, each from the counts of the whole set; the reference length is the closest one's.

    A region's statistics are the lengths of caption and reference, then for each order the n-grams that the caption
    has and how many of them a reference has too.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=_ORDERS)
    for hypothesis, of_item in zip(hypotheses, references, strict=True):
        scorer += (hypothesis, list(of_item))
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
    """Corpus BLEU of one order from sums of counts [..., 10] to [...]; NaN of no references at all."""
    length, reference_length = sums[..., 0], sums[..., 1]
    guesses, matches = sums[..., 2 : 2 + order], sums[..., 2 + _ORDERS : 2 + _ORDERS + order]
    precision = np.prod((matches + _TINY) / (guesses + _SMALL), axis=-1) ** (1 / order)
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.where(reference_length > 0, precision * brevity, np.nan)


def rouge(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """ROUGE-L, the mean over captions; a caption, or its references, without a word has 0."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    values = [
        # Split at spaces, nothing at all is a word that matches nothing at all.
        scorer.calc_score([hypothesis], spoken) if hypothesis and (spoken := [text for text in texts if text]) else 0.0
        for hypothesis, texts in zip(hypotheses, references, strict=True)
    ]
    return mean_of("ROUGE", values)


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """CIDEr, the mean over captions, 0 to 10; document frequencies are of all items, whatever set a figure is of."""
    from pycocoevalcap.cider.cider import Cider

    if not any(text for texts in references for text in texts):
        return mean_of("CIDEr", [0.0] * len(hypotheses))
    captions = {place: [text] for place, text in enumerate(hypotheses)}
    _, values = Cider().compute_score({place: list(texts) for place, texts in enumerate(references)}, captions)
    return mean_of("CIDEr", np.asarray(values))
