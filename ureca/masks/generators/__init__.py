"""Mask generators: segments (no weights), Segment Anything, and masks from annotation files."""
