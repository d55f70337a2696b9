"""The question about a region, and the ways in which a prompt says which region is meant.

A checkpoint carries this file along, and settings import it: it imports nothing but the standard library.
"""

from typing import Literal, get_args

QUESTION = "Describe this region in the image."
"""The question of the released model's prompt."""

RegionPrompt = Literal["mask", "none", "contour", "crop"]
"""``mask`` is URECA. The others are the paper's baselines: ``none`` shows the image alone, ``contour`` the image with
the region's contour drawn, ``crop`` the region's bounding box."""

REGION_PROMPTS: tuple[str, ...] = get_args(RegionPrompt)


def shares_image(region_prompt: str) -> bool:
    """Return true if all regions of an image are shown with the same pixels."""
    return region_prompt in ("mask", "none")
