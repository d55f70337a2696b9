"""Metrics that compare captions with references: BLEU, ROUGE-L, METEOR, CIDEr and BERTScore."""
