"""Settings of the mask generators; importing them loads no generator."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ureca.config import MAY_CHANGE
from ureca.devices import DtypeName
from ureca.extras import Requirement
from ureca.registry import register

Frame = Literal["auto", "upright", "stored"]
"""Frame of masks in images with an EXIF orientation; auto: the one that fits the sizes."""

MaskSource = Literal["images", "annotations", "run"]
"""Origin of the masks of a generator, as the class attribute ``mask_source`` of its settings model.

images: the pixels alone; annotations: files that the user names by ``listing.annotations``; run: an earlier run. Masks
of the latter two are captioned whatever their size. Without the attribute, annotation files are neither needed nor
refused.
"""

_TRANSFORMERS = Requirement("model", ("torch", "torchvision", "transformers"))
_SEGMENT_ANYTHING = Requirement("sam", ("segment_anything", "torch"))


@register("mask_generator", "segments", component="ureca.masks.generators.segments:SegmentsMaskGenerator")
class SegmentsConfig(BaseModel):
    """Masks of several granularities without weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_source: ClassVar[MaskSource] = "images"

    kind: Literal["segments"] = "segments"
    max_masks: int = Field(
        default=300, ge=1, description="largest number of masks of an image; plain images have fewer, see min_contrast"
    )
    min_contrast: float = Field(
        default=0.12,
        ge=0,
        description="dissimilarity to the neighbours from which a region becomes a mask: 0.1 is that of mere noise, "
        "0.5 that of objects; 0 makes as many masks as max_masks allows",
    )
    min_area_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="smallest mask, as a share of the image; None: 0.001, in `ureca curate` tree.min_area_fraction",
    )
    # Larger regions are mostly an image less one object, and would hold everything else as their parts.
    max_area_fraction: float = Field(
        default=0.5, gt=0, le=1, description="largest mask, as a share of the image; the whole image is never a mask"
    )
    max_iou: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="IoU from which two masks are duplicates; the one that resists merging longer is kept",
    )
    max_working_pixels: int = Field(
        default=200_000, ge=1, description="pixels of the reduced copy that is segmented; time and detail grow with it"
    )
    appearance_weight: float = Field(
        default=0.7, ge=0, description="weight of a difference in colour and texture, against that of the boundary"
    )
    small_region_fraction: float = Field(
        default=0.01, ge=0, description="regions well below this share of the image are merged early"
    )
    enclosure_discount: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="how much sooner a region is merged with one that surrounds it, from 0 (no sooner) to 1",
    )

    @model_validator(mode="after")
    def _check_area_bounds(self) -> Self:
        if self.min_area_fraction is not None and self.min_area_fraction > self.max_area_fraction:
            raise ValueError("min_area_fraction is above max_area_fraction: no mask could be both")
        return self

    def with_smallest(self, area_fraction: float) -> Self:
        """Return these settings for masks of at least a share of the image, of which the largest mask is one."""
        return self.model_copy(update={"min_area_fraction": min(area_fraction, self.max_area_fraction)})


ModelType = Literal["vit_h", "vit_l", "vit_b"]
"""Image encoders that checkpoints were released for: huge, large, base."""


Fraction = Annotated[float, Field(ge=0, le=1)]


class SamModelSettings(BaseModel):
    """Architecture, weights, device and precision of a Segment Anything Model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_type: ModelType = Field(default="vit_h", description="image encoder of the Segment Anything Model")
    checkpoint: Annotated[Path, MAY_CHANGE] = Field(
        description="file of SAM's weights, as its authors released it (a state dict)"
    )
    device: str = Field(
        default="auto",
        description='PyTorch device, such as "cpu" or "cuda:1"; '
        "auto: CUDA if its actor has a GPU (num_gpus), else the CPU",
    )
    dtype: DtypeName = Field(
        default="auto",
        description="data type of the encoder and the mask decoder; points are embedded in float32 always; "
        "auto: bfloat16 on a GPU, float32 on a CPU",
    )


ImagesInFlight = Annotated[
    int,
    Field(
        ge=1,
        le=16,
        description="images that an actor with a GPU works on at a time: one is segmented while others are decoded "
        "and their masks encoded; without a GPU it is 1",
    ),
    MAY_CHANGE,
]
"""Number of images that overlap on a GPU."""


class AutomaticMaskSettings(BaseModel):
    """Arguments of ``segment_anything.SamAutomaticMaskGenerator``, with its names and defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    points_per_side: int | None = Field(
        default=32,
        ge=1,
        description="number of points along one side of the grid of prompts; None: point_grids has the points",
    )
    points_per_batch: int = Field(
        default=64,
        ge=1,
        description="points that the mask decoder takes at once; on a GPU more is faster and needs more memory, and a "
        "CPU takes at most 4",
    )
    pred_iou_thresh: float = Field(
        default=0.88, ge=0, description="quality, as predicted by the model, above which masks are kept; 0 keeps all"
    )
    stability_score_thresh: Fraction = Field(
        default=0.95, description="stability, 0 to 1, from which masks are kept; 0 keeps all"
    )
    stability_score_offset: float = Field(
        default=1.0, ge=0, description="shift of the mask logits' threshold by which stability is measured"
    )
    box_nms_thresh: Fraction = Field(default=0.7, description="box IoU from which two masks of one crop are duplicates")
    crop_n_layers: int = Field(
        default=0,
        ge=0,
        description="number of further runs on crops of the image; layer i has 2^i x 2^i crops, and is "
        "skipped for images that are too small for it",
    )
    crop_nms_thresh: Fraction = Field(
        default=0.7, description="box IoU from which two masks of different crops are duplicates"
    )
    crop_overlap_ratio: float = Field(
        default=512 / 1500, ge=0, lt=1, description="overlap of the first layer's crops, as a share of the image's side"
    )
    crop_n_points_downscale_factor: int = Field(
        default=1, ge=1, description="layer i of crops has points_per_side / factor^i points per side"
    )
    point_grids: tuple[tuple[tuple[Fraction, Fraction], ...], ...] | None = Field(
        default=None, description="for each layer the points (x, y), 0 to 1, in its crops, instead of points_per_side"
    )
    min_mask_region_area: int = Field(
        default=0, ge=0, description="islands and holes of fewer pixels are removed; above 0 it needs OpenCV"
    )

    @model_validator(mode="after")
    def _has_one_source_of_points(self) -> Self:
        num_layers = self.crop_n_layers + 1
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ValueError("give exactly one of points_per_side and point_grids, and set the other to null")
        if self.point_grids is not None and (len(self.point_grids) != num_layers or not all(self.point_grids)):
            raise ValueError(f"point_grids needs {num_layers} non-empty grids, one for the image and each crop layer")
        factor = self.crop_n_points_downscale_factor**self.crop_n_layers
        if self.points_per_side is not None and self.points_per_side < factor:
            raise ValueError("crop_n_points_downscale_factor leaves the last crop layer without points")
        return self


@register("mask_generator", "sam", component="ureca.masks.generators.sam:SamMaskGenerator")
class SamConfig(AutomaticMaskSettings, SamModelSettings):
    """Masks by Segment Anything."""

    mask_source: ClassVar[MaskSource] = "images"
    requires: ClassVar[Requirement] = _SEGMENT_ANYTHING

    kind: Literal["sam"] = "sam"
    points_per_batch: int = Field(
        default=256,
        ge=1,
        description="points that the mask decoder takes at once; on a GPU more is faster and needs more memory, and a "
        "CPU takes at most 4",
    )
    images_in_flight: ImagesInFlight = 2


class TransformersSamSettings(AutomaticMaskSettings):
    """Checkpoint in transformers' format, device and precision of a promptable segmentation model."""

    mask_source: ClassVar[MaskSource] = "images"
    requires: ClassVar[Requirement] = _TRANSFORMERS

    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        description="folder or name on the hub of the checkpoint, in transformers' format"
    )
    device: str = Field(
        default="auto",
        description='PyTorch device, such as "cpu" or "cuda:1"; '
        "auto: CUDA if its actor has a GPU (num_gpus), else the CPU",
    )
    dtype: DtypeName = Field(
        default="auto",
        description="data type of the encoder and the mask decoder; points are embedded in float32 always; "
        "auto: bfloat16 on a GPU, float32 on a CPU",
    )
    points_per_batch: int = Field(
        default=256,
        ge=1,
        description="points that the mask decoder takes at once; on a GPU more is faster and needs more memory, and a "
        "CPU takes at most 4",
    )
    images_in_flight: ImagesInFlight = 2


@register("mask_generator", "sam2", component="ureca.masks.generators.transformers_sam:Sam2MaskGenerator")
class Sam2Config(TransformersSamSettings):
    """Masks by SAM 2, through transformers."""

    kind: Literal["sam2"] = "sam2"
    pred_iou_thresh: float = Field(
        default=0.8, ge=0, description="quality, as predicted by the model, above which masks are kept; 0 keeps all"
    )


@register("mask_generator", "sam3", component="ureca.masks.generators.transformers_sam:Sam3MaskGenerator")
class Sam3Config(TransformersSamSettings):
    """Masks by SAM 3, through transformers: of everything, or of the things that text names."""

    kind: Literal["sam3"] = "sam3"
    pred_iou_thresh: float = Field(
        default=0.8, ge=0, description="quality, as predicted by the model, above which masks are kept; 0 keeps all"
    )
    text: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(),
        max_length=1000,
        description='short noun phrases, such as ["person", "red car"]: masks of all instances of each, with the '
        "phrase as their class; empty: masks of everything",
    )
    text_score_thresh: Fraction = Field(
        default=0.5, description="score, 0 to 1, above which an instance of a phrase is kept"
    )


@register("mask_generator", "sam-hq", component="ureca.masks.generators.transformers_sam:SamHqMaskGenerator")
class SamHqConfig(TransformersSamSettings):
    """Masks by HQ-SAM, through transformers."""

    kind: Literal["sam-hq"] = "sam-hq"


@register("mask_generator", "prompts", component="ureca.masks.generators.prompted_sam:PromptedSam")
class PromptedSamConfig(BaseModel):
    """Masks by a model of the boxes and points in files: <image_id>.json or COCO, see listing.annotations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_source: ClassVar[MaskSource] = "annotations"

    kind: Literal["prompts"] = "prompts"
    network: Literal["sam", "sam2", "sam3", "sam-hq"] = Field(
        default="sam",
        description="sam: Segment Anything, from a file of its authors; sam2, sam3 and sam-hq: SAM 2, SAM 3 and "
        "HQ-SAM, from a folder or name on the hub in transformers' format",
    )
    model_type: ModelType = Field(
        default="vit_h", description="image encoder of the Segment Anything Model; other models state it in their files"
    )
    checkpoint: Annotated[str, MAY_CHANGE] = Field(
        description="weights: the file that Segment Anything's authors released, or for the other models a folder or "
        "name on the hub"
    )
    device: str = Field(
        default="auto",
        description='PyTorch device, such as "cpu" or "cuda:1"; '
        "auto: CUDA if its actor has a GPU (num_gpus), else the CPU",
    )
    dtype: DtypeName = Field(
        default="auto",
        description="data type of the encoder and the mask decoder; points and boxes are embedded in float32 always; "
        "auto: bfloat16 on a GPU, float32 on a CPU",
    )
    frame: Frame = Field(
        default="auto",
        description="frame of the prompts in images with an EXIF orientation: upright (as shown), or stored (as the "
        "pixels lie in the file); auto: upright, with a note",
    )

    @property
    def requires(self) -> Requirement:
        """Packages of the network."""
        return _SEGMENT_ANYTHING if self.network == "sam" else _TRANSFORMERS


@register("mask_generator", "annotations", component="ureca.masks.generators.annotations:AnnotationMaskGenerator")
class AnnotationsConfig(BaseModel):
    """Masks from annotation files: SA-1B, COCO, LabelMe, or index images; see listing.annotations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_source: ClassVar[MaskSource] = "annotations"

    kind: Literal["annotations"] = "annotations"
    boxes: bool = Field(
        default=False, description="make a filled box of annotations that have a box and no segmentation"
    )
    frame: Frame = Field(
        default="auto",
        description="frame of the masks in images with an EXIF orientation: upright (as shown), or stored (as the "
        "pixels lie in the file); auto: the one that fits the sizes, and upright, with a note, where both do",
    )
