"""Settings of an evaluation: benchmarks, metrics, encoders, listener and table."""

from itertools import pairwise
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ureca.config import MAY_CHANGE
from ureca.curation.settings import PromptedListenerSettings
from ureca.data.settings import JsonlOptions
from ureca.masks.generators.settings import Frame


class RegionsBenchmarkSettings(BaseModel):
    """Settings of a benchmark that is an output of `ureca curate` or `ureca scenes`; its captions are references."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    references: Literal["unique", "short", "detailed"] = Field(
        default="unique", description="captions of the benchmark that serve as references"
    )
    include_rejected: bool = Field(
        default=False, description="include regions of the benchmark whose caption was rejected by verification"
    )


class RefCocoSettings(BaseModel):
    """Settings of a benchmark that is a folder of RefCOCO, RefCOCO+ or RefCOCOg (refs(...).p and instances.json)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str = Field(
        default="val", description="split of RefCOCO: val, test (RefCOCOg, umd), testA, testB (RefCOCO+) or train"
    )
    refs: str | None = Field(
        default=None, description="name of the refs file, such as refs(umd).p; None: the only one in the folder"
    )
    images: str | None = Field(
        default=None,
        description="folder of COCO's images; None: train2014 in the benchmark's folder or in a usual place beside it",
    )
    frame: Frame = Field(
        default="auto",
        description="frame of the masks in images with an EXIF orientation: upright (as shown), or stored (as the "
        "pixels lie in the file); auto: the one that fits the sizes, and upright, with a warning, where both do",
    )


class VisualGenomeSettings(BaseModel):
    """Settings of a benchmark that is a folder of Visual Genome, with region_descriptions.json and image_data.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: str | None = Field(
        default=None, description="folder of Visual Genome's images; None: VG_100K and VG_100K_2 in its folder"
    )
    image_ids: str | None = Field(
        default=None, description="file with the ids of the split's images, one a line; None: all images"
    )


class BenchmarkSettings(BaseModel):
    """Settings for reading a benchmark; only those of its kind are used.

    Attributes:
        regions: for outputs of ``ureca curate`` and ``ureca scenes``.
        jsonl: for files that end in .jsonl.
        refcoco: for folders with refs(...).p.
        visual_genome: for folders with region_descriptions.json.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    regions: RegionsBenchmarkSettings = RegionsBenchmarkSettings()
    jsonl: JsonlOptions = JsonlOptions()
    refcoco: RefCocoSettings = RefCocoSettings()
    visual_genome: VisualGenomeSettings = VisualGenomeSettings()


Metric = Literal["BLEU", "ROUGE", "METEOR", "CIDEr", "BERTScore"]


METRICS: tuple[Metric, ...] = get_args(Metric)


class BertScoreSettings(BaseModel):
    """Model of BERTScore's embeddings, with its layer, batch size and device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, MAY_CHANGE] = Field(
        description="folder or hub name of the text encoder of BERTScore in transformers' format"
    )
    layer: int | None = Field(
        default=None,
        ge=0,
        description="hidden layer that BERTScore compares, 0 for the embeddings; unset: the layer published for the "
        "model, or the last",
    )
    batch_size: Annotated[int, MAY_CHANGE] = Field(
        default=64, ge=1, description="largest number of captions in one pass of BERTScore's model"
    )
    device: Annotated[str, MAY_CHANGE] = Field(
        default="auto",
        description="torch device of BERTScore's model (cpu, cuda:1); "
        "auto: CUDA if its actor has a GPU (num_gpus), else the CPU",
    )


class DuplicateSettings(BaseModel):
    """Threshold from which two captions are near-duplicates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    near_similarity: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="share of words that two captions have in common, in order, to be near-duplicates",
    )


COLOUR_WORDS = "colour-words"
"""The checkpoint name of ``ColourWordEncoder``, which needs no weights."""


class DualEncoderSettings(BaseModel):
    """Checkpoint of an image-text encoder, with its batch size and device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        description="folder or hub name of an image-text encoder such as CLIP or SigLIP in transformers' format; "
        f"{COLOUR_WORDS}: compares colours with colour words and needs no weights"
    )
    batch_size: Annotated[int, MAY_CHANGE] = Field(
        default=32, ge=1, description="largest number of images, or texts, in one pass of the encoder"
    )
    device: Annotated[str, MAY_CHANGE] = Field(
        default="auto",
        description="torch device of the encoder (cpu, cuda:1); "
        "auto: CUDA if its actor has a GPU (num_gpus), else the CPU",
    )


class ScoringListenerConfig(PromptedListenerSettings):
    """The MLLM of ``mllm`` has to find the region of each caption among those that it could be mistaken for."""

    kind: Literal["prompted"] = "prompted"
    max_distractors: int = Field(
        default=8, ge=1, description="largest number of other regions shown to the listener beside the right one"
    )


class TableSettings(BaseModel):
    """Breakdowns of the figures and their confidence intervals."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_bounds_fraction: tuple[float, ...] = Field(
        default=(0.001, 0.005, 0.02, 0.1),
        description="bounds between the size groups of the table, as fractions of the image's area",
    )
    deepest: int = Field(
        default=3, ge=1, description="depth in the mask tree from which on regions share one group of the table"
    )
    num_resamples: int = Field(
        default=1000,
        ge=100,
        le=100_000,
        description="number of bootstrap samples of the images for confidence intervals",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="confidence level of the intervals")
    seed: int = Field(default=0, ge=0, description="seed of the bootstrap samples")

    @field_validator("size_bounds_fraction")
    @classmethod
    def _ascending(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < bound < 1 for bound in bounds) or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"bounds are fractions between 0 and 1, each larger than the one before, not {bounds}")
        return bounds
