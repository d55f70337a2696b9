"""Predictions: captions of a benchmark's regions with their references; and reading captions from files and outputs."""

import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import AliasChoices, BaseModel, Field, ValidationError, model_validator

from ureca.captioning.images import failed_caption, finished_caption
from ureca.content import open_lines
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.errors import DataError, InputError
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.schema import CAPTIONS_DATASET
from ureca.wording import quantity


@dataclass(frozen=True, slots=True)
class Prediction:
    """The caption of one region, with its references.

    Attributes:
        image_id: id of the image; intervals resample images, as the regions of one image are not independent.
        region_id: unique in its image.
        caption: the model's caption. Blank where the model gave none or the region failed: every measure counts the
            region as a caption that matches nothing and identifies no region.
        references: reference captions; measures against references leave out a region without any.
        depth: depth of the region in the mask tree, 0 at the top level; None where no tree is known.
        area_fraction: pixels of its mask / pixels of the image, 0 to 1.
        failure: reason for a missing caption, in a few words that can be counted; None where there is a caption.

    Raises:
        ValueError: ``area_fraction`` or ``depth`` is out of range, or there are both a caption and a failure.
    """

    image_id: str
    region_id: int
    caption: str
    references: tuple[str, ...]
    depth: int | None
    area_fraction: float
    failure: str | None = None

    def __post_init__(self) -> None:
        where = f"region {self.region_id} of image {self.image_id!r}"
        if not 0 <= self.area_fraction <= 1:
            raise ValueError(f"{where}: area_fraction is 0 to 1, not {self.area_fraction}")
        if self.depth is not None and self.depth < 0:
            raise ValueError(f"{where}: depth is at least 0, not {self.depth}")
        if self.failure is not None and not self.is_blank:
            raise ValueError(f"{where} has a caption and a failure ({self.failure})")

    @property
    def is_blank(self) -> bool:
        """True if the caption is empty or white space."""
        return not self.caption.strip()


def by_image(predictions: Sequence[Prediction]) -> dict[str, list[int]]:
    """Indices into ``predictions`` of each image's regions; images and regions keep their order.

    Raises:
        DataError: ``duplicate_region``: two predictions are of one region.
    """
    places: dict[str, list[int]] = {}
    seen: set[tuple[str, int]] = set()
    for place, prediction in enumerate(predictions):
        key = (prediction.image_id, prediction.region_id)
        if key in seen:
            raise DataError(
                "duplicate_region", f"region {key[1]} of image {key[0]!r} is there twice; keep one caption a region"
            )
        seen.add(key)
        places.setdefault(prediction.image_id, []).append(place)
    return places


def failures(predictions: Iterable[Prediction]) -> Counter[str]:
    """Numbers of regions without a caption, by reason."""
    return Counter(prediction.failure or "the model said nothing" for prediction in predictions if prediction.is_blank)


Captions = dict[tuple[str, str], str]
"""Captions by image and region id, both as text."""

_MAX_LINE_BYTES = 1 << 20
_MISSING = "not_given"  # the status of regions without a caption in a file or output


class _CaptionLine(BaseModel):
    """A line with a caption: flat, or in URECA's own format, whose answer is the caption."""

    image: str = Field(validation_alias=AliasChoices("image", "image_id"))
    region: int | str = Field(validation_alias=AliasChoices("mask_id", "region_id"))
    caption: str

    @model_validator(mode="before")
    @classmethod
    def _take_answer(cls, value: Any) -> Any:
        if isinstance(value, dict) and "caption" not in value and isinstance(turns := value.get("conversations"), list):
            answers = [turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") == "gpt"]
            return {**value, "caption": next(iter(answers), None)}
        return value


def read_jsonl_captions(path: str) -> Captions:
    """Read captions from a JSONL file.

    A line has ``image`` (or ``image_id``), ``mask_id`` (or ``region_id``) and ``caption``, or URECA's own format.
    Images may be named by their file names.

    Raises:
        InputError: the file cannot be read, a line is malformed, or two lines are of one region; the message names the
            line.
    """
    captions: Captions = {}
    for number, data in enumerate(_lines(path), start=1):
        if not data.strip():
            continue
        try:
            line = _CaptionLine.model_validate(json.loads(data.removeprefix(b"\xef\xbb\xbf")))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}, line {number}: {where}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: it is no JSON object ({error})") from error
        key = (line.image.replace("\\", "/"), str(line.region))
        if key in captions:
            raise InputError(f"{path}, line {number}: mask {key[1]} of image {key[0]!r} has a caption already")
        captions[key] = line.caption
    return captions


def read_output_captions(path: str) -> Captions:
    """Read captions from an output of ``ureca caption`` or ``ureca curate``."""
    return {
        (row["image_id"], str(region["region_id"])): region["caption"]
        for row in Output.of_run(path).region_rows()
        for region in row["regions"]
        if region["caption"] is not None
    }


def write_predictions(
    captions: Captions, benchmark: StoredBenchmark, output: Output, *, source: str
) -> PartitionReport:
    """Write captions of a benchmark's regions in its partitions, replacing the output.

    Args:
        captions: captions of any regions; those of regions outside the benchmark are ignored.
        benchmark: the stored benchmark; its regions without a caption become failures.
        output: output of the dataset ``CAPTIONS``.
        source: path of the captions, for messages and the rows.

    Raises:
        InputError: none of the benchmark's regions has a caption.
    """
    output.remove()
    output.write_run({"command": "given", "dataset": CAPTIONS_DATASET.name, "source": source})
    report = PartitionReport()
    for partition in benchmark.partitions:
        rows = [_prediction_row(row, captions, source) for row in benchmark.rows(partition)]
        output.write_partition(partition, rows, PartitionReport())
        report = report + PartitionReport.of_rows(rows, CAPTIONS_DATASET)
    if not report.num_regions:
        theirs = ", ".join(f"{image!r} {region}" for image, region in list(captions)[:3]) or "none"
        ours = ", ".join(
            f"{row['image_id']!r} {region['region_id']}"
            for row in benchmark.rows(benchmark.partitions[0])[:1]
            for region in row["benchmark"][:3]
        )
        raise InputError(
            f"{source} has no caption of the benchmark's {quantity(benchmark.num_regions, 'region')}: it has {theirs}; "
            f"the benchmark has {ours}"
        )
    return report


def _prediction_row(row: Mapping[str, Any], captions: Captions, source: str) -> dict[str, Any]:
    """A row of the schema ``CAPTIONS`` for an image of the benchmark."""
    names = (row["image_id"], row["uri"].rpartition("/")[2])
    predicted = []
    for region in row["benchmark"]:
        keys = [(name, str(region["region_id"])) for name in names]
        caption = next((captions[key] for key in keys if key in captions), None)
        predicted.append(
            {
                **{name: region[name] for name in ("region_id", "rle", "bbox_xywh", "area_px", "parent_id", "depth")},
                **(
                    failed_caption(_MISSING)
                    if caption is None
                    else finished_caption(caption.strip(), len(caption.split()), None)
                ),
                "num_tokens": None,
            }
        )
    return {
        **{name: row[name] for name in ("image_id", "uri", "height", "width")},
        "captions": predicted,
        "error": None,
        "model": source,
        "proposer": None,
    }


def _lines(path: str) -> Iterator[bytes]:
    try:
        with open_lines(path) as file:
            while data := file.readline(_MAX_LINE_BYTES + 1):
                if len(data) > _MAX_LINE_BYTES:
                    raise InputError(f"{path}: a line has more than {_MAX_LINE_BYTES} bytes: {reprlib.repr(data[:40])}")
                yield data
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
