"""What a model is shown of a region."""

import numpy as np
import numpy.typing as npt

from ureca.model.region_prompt import shares_image
from ureca.regions.mask import Mask
from ureca.regions.views import Box, Views


def region_view(
    pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], region_prompt: str
) -> npt.NDArray[np.uint8]:
    """What a model is shown of a region.

    Args:
        pixels: uint8 RGB [H, W, 3].
        mask: bool [H, W], with at least one pixel.
        region_prompt: see `ureca.model.region_prompt.RegionPrompt`.

    Returns:
        uint8 RGB [h, w, 3]; the pixels themselves for ``mask`` and ``none``.
    """
    if shares_image(region_prompt):
        return pixels
    region = Mask.from_array(0, mask)
    if region_prompt == "crop":
        return np.ascontiguousarray(pixels[Box.around([region]).rows_and_columns])
    return Views(pixels, {0: region}, max_side_px=max(pixels.shape[:2])).whole_with_contour(0)
