"""Captions of the regions that a model has not seen, and what each is worth."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, TypeAdapter

from ureca.data.output import Output
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.uniqueness import Resolution, resolution
from ureca.io import replacing
from ureca.masks.rle import decode, from_coco
from ureca.model.captioner import RegionCaptioner
from ureca.model.settings import CaptionSettings
from ureca.scenes.scene import read_scene

_IMAGES_AT_ONCE = 4


class ScoredCaptions(BaseModel):
    """The caption of a region, and what ``ureca.scenes.scene`` makes of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: str
    region_id: int
    caption: str
    reference: str
    depth: int
    area_fraction: float
    resolution: Resolution

    @property
    def prediction(self) -> Prediction:
        """As measures take it."""
        return Prediction(
            self.image_id, self.region_id, self.caption, (self.reference,), self.depth, self.area_fraction
        )


_ALL = TypeAdapter(list[ScoredCaptions])


def caption_scenes(model: Path, scenes: Path, path: Path, *, max_new_tokens: int) -> float:
    """Caption every region of a set of scenes with a checkpoint and write what became of it; returns CPU seconds."""
    began = time.process_time()
    captioner = RegionCaptioner.from_pretrained(model, device="cpu")
    settings = CaptionSettings(max_new_tokens=max_new_tokens, batch_size=128)
    judged: list[ScoredCaptions] = []
    rows = Output(str(scenes)).rows()
    while some := list(islice(rows, _IMAGES_AT_ONCE)):
        masks = [list(_masks(row)) for row in some]
        captions = captioner.describe([_pixels(row["uri"]) for row in some], masks, settings)
        for row, of_image in zip(some, captions, strict=True):
            judged += _judge(row, [caption.text for caption in of_image])
    with replacing(path, overwrite=True) as temporary:
        temporary.write_bytes(_ALL.dump_json(judged, indent=1))
    return time.process_time() - began


def read_captions(path: Path) -> list[ScoredCaptions]:
    """What ``caption_scenes`` wrote."""
    return _ALL.validate_json(path.read_bytes())


def _judge(row: dict[str, Any], captions: list[str]) -> Iterator[ScoredCaptions]:
    scene = read_scene(Path(row["uri"]).with_suffix(".json"))
    for region, caption in zip(row["regions"], captions, strict=True):
        yield ScoredCaptions(
            image_id=row["image_id"],
            region_id=region["region_id"],
            caption=caption,
            reference=region["caption"],
            depth=region["depth"],
            area_fraction=region["area_px"] / (row["height"] * row["width"]),
            resolution=resolution(caption, region["region_id"], scene),
        )


def _pixels(uri: str) -> npt.NDArray[np.uint8]:
    with Image.open(uri) as image:
        return np.asarray(image.convert("RGB"))


def _masks(row: dict[str, Any]) -> Iterator[npt.NDArray[np.bool_]]:
    height, width = row["height"], row["width"]
    for region in row["regions"]:
        yield decode(from_coco({"size": [height, width], "counts": region["rle"]}, height, width))
