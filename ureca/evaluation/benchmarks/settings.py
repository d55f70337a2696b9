"""Settings of each kind of benchmark; which kind a path is, ``benchmark.open_benchmark`` sees."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ureca.training.sources.settings import JsonlOptions


class RegionsBenchmark(BaseModel):
    """Of the output of ``ureca curate`` or ``ureca scenes``, whose captions are the references."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    references: Literal["unique", "short", "detailed"] = Field(
        default="unique", description="which of its captions a model's are compared with"
    )
    include_rejected: bool = Field(default=False, description="also regions whose caption verification rejected")


class RefCocoBenchmark(BaseModel):
    """Of a folder of RefCOCO, RefCOCO+ or RefCOCOg: refs(...).p and instances.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str = Field(default="val", description="val, test (RefCOCOg, umd), testA, testB (RefCOCO+) or train")
    refs: str | None = Field(
        default=None, description="the pickle in the folder, such as refs(umd).p; None: the only one there"
    )
    images: str | None = Field(
        default=None, description="COCO's images; None: train2014 within the folder, or where it is usually beside it"
    )


class VisualGenomeBenchmark(BaseModel):
    """Of a folder of Visual Genome: region_descriptions.json and image_data.json; its regions are boxes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: str | None = Field(default=None, description="the images; None: VG_100K and VG_100K_2 in the folder")
    image_ids: str | None = Field(default=None, description="file with the ids of the split's images, one a line")


class BenchmarkSettings(BaseModel):
    """How a benchmark is read; only the part for its kind is used.

    Attributes:
        regions: of outputs of ``ureca curate`` and ``ureca scenes``.
        jsonl: of files that end in .jsonl.
        refcoco: of folders with refs(...).p.
        visual_genome: of folders with region_descriptions.json.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    regions: RegionsBenchmark = RegionsBenchmark()
    jsonl: JsonlOptions = JsonlOptions()
    refcoco: RefCocoBenchmark = RefCocoBenchmark()
    visual_genome: VisualGenomeBenchmark = VisualGenomeBenchmark()
