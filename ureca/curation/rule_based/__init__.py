"""The rule-based captioner and listener: captions of measured colours, shapes and locations, without weights."""
