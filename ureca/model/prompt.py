"""How a model is told which region is meant: by a mask, or, in baselines without one, by what the image shows."""

from typing import Literal, get_args

RegionPrompt = Literal["mask", "none", "contour", "crop"]
"""``mask`` is URECA. The paper's baselines: ``none`` shows the image alone, ``contour`` the image with the region's
contour, ``crop`` what the region's box cuts out."""

REGION_PROMPTS: tuple[str, ...] = get_args(RegionPrompt)


def shares_image(region_prompt: str) -> bool:
    """Whether all regions of an image are shown the same pixels."""
    return region_prompt in ("mask", "none")
