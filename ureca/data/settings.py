"""Settings of the data that commands read; importing them loads neither Arrow nor an imaging library."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ureca.masks.generators.settings import Frame, MaskSource

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")
"""Ends of the names of files in URECA's JSONL."""

_SHARD = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")


def validate_shard(shard: str) -> str:
    """Validate a shard, ``i/n`` with i from 1 to n.

    Raises:
        ValueError: it is not a shard.
    """
    found = _SHARD.fullmatch(shard)
    if found is None or int(found[1]) > int(found[2]):
        raise ValueError(f"'{shard}' is no shard: the third of eight is 3/8")
    return shard


@dataclass(frozen=True, slots=True)
class ImageSelection:
    """Selection of the images of an input; by default, all of them.

    Attributes:
        shard: shard ``i/n``, from ``1/n`` to ``n/n``, that an image's id alone assigns it to.
        sample: number of images drawn, by their ids and the seed.
        sample_seed: seed of the sample.
        limit: number of images taken from the beginning.
    """

    shard: str | None = None
    sample: int | None = None
    sample_seed: int = 0
    limit: int | None = None


ALL_IMAGES = ImageSelection()


DEFAULT_PIXELS_IN_FLIGHT = 250_000_000
"""About as many as 75 images of SA-1B have. With its views, a pixel takes about 10 bytes."""


class ReusedMasksConfig(BaseModel):
    """The masks and ids of INPUT, which is the output of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_source: ClassVar[MaskSource] = "run"

    kind: Literal["regions"] = "regions"


class RegionsSource(BaseModel):
    """A regions dataset, as ``ureca curate`` and ``ureca scenes`` write it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["regions"] = "regions"
    path: str = Field(description="output folder of `ureca curate` or `ureca scenes`, a path or URI")
    caption: Literal["unique", "short", "detailed"] = Field(default="unique", description="caption to learn")
    include_rejected: bool = Field(default=False, description="learn captions that the verification rejected, too")


class JsonlOptions(BaseModel):
    """Options of files that end with .jsonl: URECA's JSONL, with the SA-1B images and JSON files that it names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: str | None = Field(
        default=None, description="folder, glob, list, tar shards or Parquet with the images, named by stem"
    )
    annotations: str = Field(
        default="beside", description="'beside' the images, a folder of <image_id>.json, or a COCO file"
    )
    mask_ids: Literal["id", "position"] = Field(
        default="id", description="meaning of mask_id: an annotation's id, or its position in the file, from 0"
    )
    frame: Frame = Field(
        default="auto",
        description="frame of the masks in images with an EXIF orientation: upright (as shown), or stored (as the "
        "pixels lie in the file); auto: the one that fits the sizes, and upright, with a warning, where both do",
    )
    ids: Literal["stem", "path"] = Field(
        default="stem", description="names of images in the file: without folders (stem), or their paths below images"
    )


class JsonlSource(JsonlOptions):
    """URECA's JSONL, with the SA-1B images and JSON files that it names."""

    kind: Literal["jsonl"] = "jsonl"
    path: str = Field(description="the JSONL file, a path or URI")
    images: str = Field(description="folder, glob, list, tar shards or Parquet with the images, named by stem")


SourceSettings = Annotated[RegionsSource | JsonlSource, Field(discriminator="kind")]
"""Settings of one source; a run may mix several."""
