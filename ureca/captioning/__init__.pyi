from .images import caption_image as caption_image
