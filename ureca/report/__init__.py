"""A self-contained HTML report of a run: images with their regions, captions, trees, failures and figures."""
