"""All metrics of captions against references."""

from collections.abc import Sequence

from ureca.evaluation.measures import Measure, Unmeasured
from ureca.evaluation.metrics.bert_score import BertScoreSettings
from ureca.evaluation.predictions import Prediction

METRICS = ("BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4", "ROUGE", "METEOR", "CIDEr", "BERTScore")


def score(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, bert_score: BertScoreSettings | None = None
) -> dict[str, float | None | dict[str, str]]:
    """BLEU@1 to BLEU@4, ROUGE(-L), METEOR, CIDEr and BERTScore of captions, each as a fraction (CIDEr: 0 to 10).

    Args:
        hypotheses: one caption an item; an empty one matches nothing.
        references: for each item at least one.
        bert_score: the model of BERTScore; None leaves it out.

    Returns:
        The metrics by name. One that could not be computed is None, and ``["missing"]`` has its name and the reason.

    Raises:
        ValueError: not as many hypotheses as lists of references, or an item has no reference.
        SettingsError: a package that the metrics need is missing; the message names the extra to install.
    """
    raise NotImplementedError


def measure_captions(
    predictions: Sequence[Prediction], *, bert_score: BertScoreSettings | None = None
) -> list[Measure | Unmeasured]:
    """The same metrics, as measures of each prediction; those without references do not count.

    Raises:
        SettingsError: as ``score``.
    """
    raise NotImplementedError
