"""An annotator of one's own: captions by the position of a region, for all regions of a photograph.

    python examples/own_annotator.py

To choose it by `--annotator.kind position` in all commands, put it into a package with the entry-point group
`ureca.plugins`: docs/api.md, "Components of your own".
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import skimage
from pydantic import BaseModel, Field

import ureca
from ureca.curation.protocols import Choice, CurationImage, LookAlike, Verdict


class PositionSettings(BaseModel):
    """Captions that tell the position of a region."""

    num_rows: int = Field(default=3, ge=1, description="rows of the grid that positions are told in")


@ureca.register("annotator", "position", settings=PositionSettings)
class PositionAnnotator:
    """Says in which cell of a grid the center of a region is."""

    name = "position 1"

    def __init__(self, settings: PositionSettings) -> None:
        self._num_rows = settings.num_rows

    async def short_caption(
        self, image: CurationImage, region_id: int, *, parent_caption: str | None, sibling_captions: Sequence[str]
    ) -> str:
        """Caption a region after its parent and its earlier siblings."""
        x, y, width, height = image.masks[region_id].bbox_xywh
        image_height, image_width, _ = image.pixels.shape
        row = int((y + height / 2) * self._num_rows / image_height)
        column = int((x + width / 2) * self._num_rows / image_width)
        return f"A region in row {row + 1} and column {column + 1}."

    async def detailed_caption(
        self, image: CurationImage, region_id: int, *, short_caption: str, child_captions: Sequence[str]
    ) -> str:
        """Extend the short caption by the number of parts."""
        return f"{short_caption.rstrip('.')} with {len(child_captions)} parts."

    async def unique_caption(
        self,
        image: CurationImage,
        region_id: int,
        *,
        caption: str,
        lookalikes: Sequence[LookAlike],
        confused_with: Choice | None = None,
    ) -> str:
        """Rewrite a caption that look-alikes share: the exact box is always unique enough."""
        x, y, width, height = map(round, image.masks[region_id].bbox_xywh)
        return f"{caption.rstrip('.')}, from {x},{y} to {x + width},{y + height}."

    async def verify(self, image: CurationImage, region_id: int, *, caption: str) -> Verdict:
        """Judge a caption; this annotator states only what it has computed."""
        return Verdict(True, "computed from the mask")


def main() -> int:
    """Caption a photograph that ships inside scikit-image."""
    photograph = Path(skimage.__file__).parent / "data" / "coffee.png"
    curator = ureca.Curator(annotator=PositionAnnotator(PositionSettings(num_rows=3)))
    regions = ureca.curate_image(photograph, curator=curator)
    captioned = [region for region in regions if region.status == "ok"]
    for region in captioned[:5]:
        print(f"{region.region_id:4} {region.caption}")
    print(f"{len(captioned)} captions, {len({region.caption for region in captioned})} different ones")
    return 0


if __name__ == "__main__":
    sys.exit(main())
