"""Metrics that compare captions with references: BLEU, ROUGE-L, METEOR, CIDEr, BERTScore."""

from ureca.evaluation.metrics.scoring import measure_captions, score

__all__ = ["measure_captions", "score"]
