"""Captions of the test scenes' regions by a trained model, with their scores."""

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
from ureca.evaluation.scorer import CaptionScorer, CaptionScores, ScoredCaption
from ureca.evaluation.uniqueness import Resolution
from ureca.io import replacing
from ureca.masks.rle import decode, from_coco
from ureca.model.captioner import RegionCaptioner
from ureca.model.settings import CaptionSettings
from ureca.scenes.scene import read_scene

_IMAGES_AT_ONCE = 4


class SceneCaption(BaseModel):
    """The caption of a region of a scene, and its resolution in the scene."""

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
        """The caption as a prediction, with its only reference."""
        return Prediction(
            self.image_id, self.region_id, self.caption, (self.reference,), self.depth, self.area_fraction
        )

    @property
    def scores(self) -> CaptionScores:
        """The scores of the caption."""
        return CaptionScores(resolution=self.resolution)


_CAPTIONS = TypeAdapter(list[SceneCaption])


def caption_scenes(model: Path, scenes: Path, path: Path, *, max_new_tokens: int) -> float:
    """Caption every region of a set of scenes, score the captions, and write both as JSON.

    Args:
        model: folder of the checkpoint.
        scenes: folder of the set of scenes.
        path: JSON file to write, which ``read_captions`` reads.
        max_new_tokens: largest length of a caption in tokens.

    Returns:
        CPU seconds of this process.
    """
    began = time.process_time()
    captioner = RegionCaptioner.from_pretrained(model, device="cpu")
    scorer = CaptionScorer()
    settings = CaptionSettings(max_new_tokens=max_new_tokens, batch_size=128)
    captions: list[SceneCaption] = []
    rows = Output(str(scenes)).rows()
    while batch := list(islice(rows, _IMAGES_AT_ONCE)):
        pixels = [_read_pixels(row["uri"]) for row in batch]
        answers = captioner.describe(pixels, [list(_masks(row)) for row in batch], settings)
        for row, of_image in zip(batch, answers, strict=True):
            captions += _score(row, [caption.text for caption in of_image], scorer)
    with replacing(path, overwrite=True) as temporary:
        temporary.write_bytes(_CAPTIONS.dump_json(captions, indent=1))
    return time.process_time() - began


def read_captions(path: Path) -> list[SceneCaption]:
    """Read a file of ``caption_scenes``."""
    return _CAPTIONS.validate_json(path.read_bytes())


def _score(row: dict[str, Any], texts: list[str], scorer: CaptionScorer) -> Iterator[SceneCaption]:
    captions = [ScoredCaption(region["region_id"], text) for region, text in zip(row["regions"], texts, strict=True)]
    scorer.resolve(captions, read_scene(Path(row["uri"]).with_suffix(".json")))
    for region, caption in zip(row["regions"], captions, strict=True):
        yield SceneCaption.model_validate(
            {
                "image_id": row["image_id"],
                "region_id": region["region_id"],
                "caption": caption.caption,
                "reference": region["caption"],
                "depth": region["depth"],
                "area_fraction": region["area_px"] / (row["height"] * row["width"]),
                "resolution": caption.scores.resolution,
            }
        )


def _read_pixels(uri: str) -> npt.NDArray[np.uint8]:
    with Image.open(uri) as image:
        return np.asarray(image.convert("RGB"))


def _masks(row: dict[str, Any]) -> Iterator[npt.NDArray[np.bool_]]:
    height, width = row["height"], row["width"]
    for region in row["regions"]:
        yield decode(from_coco({"size": [height, width], "counts": region["rle"]}, height, width))
