"""Mask generators: segments (no weights), Segment Anything, and given annotations."""
