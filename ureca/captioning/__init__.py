"""Captions for the regions of a corpus, by URECA: the batch job without Ray.

``caption_image(captioner, pixels, masks, settings)`` captions the regions of one image and gives them as the dataset
``captions`` stores them. ``CaptionStage`` does so for units of images, with images of a size in common batches.
"""

from ureca.captioning.image import ReadyImage, caption_image, caption_ready, make_ready

__all__ = ["ReadyImage", "caption_image", "caption_ready", "make_ready"]
