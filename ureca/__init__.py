"""URECA: captions that fit one region of an image and no other.

The library knows images, masks and captions. It never imports Ray: graphs over clusters live in ``pipelines``,
entry points in ``jobs``.
"""

__version__ = "0.1.0"
