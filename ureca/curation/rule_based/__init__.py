"""The rule-based captioner: captions of what pixels and masks prove, without weights."""
