"""The models that are compared. They differ in how they are told which region is meant, and in nothing else."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ureca.settings.scratch_sizes import ScratchSizes

if TYPE_CHECKING:
    from ureca.model.region_prompt import RegionPrompt


@dataclass(frozen=True)
class Variant:
    """One model.

    Attributes:
        title: in the tables.
        region_prompt: see `ureca.model.region_prompt`.
        dynamic_mask: whether masks are cut into the image's grid, or are one tile.
        num_mask_tokens: of a mask tile; None: as the settings say.
    """

    title: str
    region_prompt: "RegionPrompt" = "mask"
    dynamic_mask: bool = True
    num_mask_tokens: int | None = None

    def sizes(self, sizes: ScratchSizes) -> ScratchSizes:
        """The sizes of this model."""
        return sizes if self.num_mask_tokens is None else replace(sizes, num_mask_tokens=self.num_mask_tokens)


DYNAMIC = "dynamic"

VARIANTS = {
    DYNAMIC: Variant("URECA, dynamic masks"),
    "one-tile": Variant("URECA, one mask tile", dynamic_mask=False),
    "none": Variant("no region prompt", region_prompt="none"),
    "crop": Variant("crop", region_prompt="crop"),
    "contour": Variant("contour", region_prompt="contour"),
    "tokens-1": Variant("1 mask token a tile", num_mask_tokens=1),
    "tokens-8": Variant("8 mask tokens a tile", num_mask_tokens=8),
    "tokens-16": Variant("16 mask tokens a tile", num_mask_tokens=16),
}
"""By name, in the order in which they are trained."""

TABLES = {
    "prompts": ("none", "contour", "crop", "one-tile", DYNAMIC),
    "mask_tokens": ("tokens-1", DYNAMIC, "tokens-8", "tokens-16"),
}
"""Which models each table compares, in its order."""
