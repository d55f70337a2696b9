"""Captions that are there already, whoever wrote them, as the captions of a benchmark's regions.

[from] What every measure works on: a region, what was said of it, and what should have been."""

import io
import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import AliasChoices, BaseModel, Field, ValidationError, model_validator

from ureca.captioning.images import answered, failed
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.reading import open_file
from ureca.errors import DataError, InputError
from ureca.evaluation.benchmarks.stored import StoredBenchmark
from ureca.schema import CAPTIONS_DATASET


@dataclass(frozen=True, slots=True)
class Prediction:
    """The caption of one region, with the references it is compared with.

    Attributes:
        image_id: of the image; regions of an image are never taken for independent.
        region_id: unique in its image.
        caption: what the model said. Blank where it said nothing, or where the region failed: the region is then
            counted in every measure, as a caption that matches nothing and singles out nothing.
        references: what people, or the language of scenes, say of the region; none where there are none, and then
            measures that compare with references leave it out.
        depth: of the region in the mask tree, 0 at the top level; None where no tree is known.
        area_fraction: pixels of its mask / pixels of the image, 0 to 1.
        failure: why there is no caption, in a few words that can be counted; None where there is one.
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
        """Whether there is no caption to speak of."""
        return not self.caption.strip()


def by_image(predictions: Sequence[Prediction]) -> dict[str, list[int]]:
    """Places of the regions of each image within ``predictions``, images and regions in their order.

    Raises:
        DataError: ``duplicate_region``: an image has a region twice.
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
    """How many regions have no caption, by the reason."""
    return Counter(prediction.failure or "the model said nothing" for prediction in predictions if prediction.is_blank)


Captions = dict[tuple[str, str], str]
"""By image and region, both as text."""

_MAX_LINE_BYTES = 1 << 20
_NOT_GIVEN = "not_given"


class _Line(BaseModel):
    """A line of predictions: flat, or in URECA's own form, whose answer is the prediction."""

    image: str = Field(validation_alias=AliasChoices("image", "image_id"))
    region: int | str = Field(validation_alias=AliasChoices("mask_id", "region_id"))
    caption: str

    @model_validator(mode="before")
    @classmethod
    def _of_conversation(cls, value: Any) -> Any:
        if isinstance(value, dict) and "caption" not in value and isinstance(turns := value.get("conversations"), list):
            answers = [turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") == "gpt"]
            return {**value, "caption": next(iter(answers), None)}
        return value


def read_jsonl_captions(path: str) -> Captions:
    """Captions of a JSONL file: ``image`` (or ``image_id``), ``mask_id`` (or ``region_id``) and ``caption``.

    Lines of URECA's own form are read, too. Images may be named by their files.

    Raises:
        InputError: the file cannot be read, or a line is malformed or of a region that has one; it says which.
    """
    captions: Captions = {}
    for number, data in enumerate(_lines(path), start=1):
        if not data.strip():
            continue
        try:
            line = _Line.model_validate(json.loads(data))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}, line {number}: {where}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: it is no JSON object ({error})") from error
        key = (line.image, str(line.region))
        if key in captions:
            raise InputError(f"{path}, line {number}: mask {key[1]} of image {key[0]!r} has a caption already")
        captions[key] = line.caption
    return captions


def read_output_captions(path: str) -> Captions:
    """Captions of an output of ``ureca caption`` or ``ureca curate``."""
    return {
        (row["image_id"], str(region["region_id"])): region["caption"]
        for row in Output.of_run(path).region_rows()
        for region in row["regions"]
        if region["caption"] is not None
    }


def write_given(captions: Captions, benchmark: StoredBenchmark, output: Output, *, source: str) -> PartitionReport:
    """Write captions as those of a benchmark's regions, in its units; what was there before is replaced.

    Args:
        captions: of any regions; those of others than the benchmark's are not used.
        benchmark: whose regions without a caption are failures.
        output: of the dataset ``CAPTIONS``.
        source: where the captions are from, for messages and the rows.

    Raises:
        InputError: not one of the benchmark's regions has a caption.
    """
    output.remove()
    output.write_run({"command": "given", "dataset": CAPTIONS_DATASET.name, "source": source})
    report = PartitionReport()
    for partition in benchmark.partitions:
        rows = [_row(row, captions, source) for row in benchmark.rows(partition)]
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
            f"{source} has a caption of none of the {benchmark.num_regions} regions: it has {theirs}; the benchmark "
            f"has {ours}"
        )
    return report


def _row(row: Mapping[str, Any], captions: Captions, source: str) -> dict[str, Any]:
    names = (row["image_id"], row["uri"].rpartition("/")[2])

    def said(id: int) -> dict[str, Any]:
        found = next((captions[key] for name in names if (key := (name, str(id))) in captions), None)
        return failed(_NOT_GIVEN) if found is None else answered(found.strip(), len(found.split()), None)

    return {
        **{name: row[name] for name in ("image_id", "uri", "height", "width")},
        "captions": [
            {
                **{name: region[name] for name in ("region_id", "rle", "bbox_xywh", "area_px", "parent_id", "depth")},
                **said(region["region_id"]),
                "num_tokens": None,
            }
            for region in row["benchmark"]
        ],
        "error": None,
        "model": source,
        "proposer": None,
    }


def _lines(path: str) -> Iterator[bytes]:
    try:
        with io.BufferedReader(open_file(path), 1 << 16) as file:
            while data := file.readline(_MAX_LINE_BYTES + 1):
                if len(data) > _MAX_LINE_BYTES:
                    raise InputError(f"{path}: a line has more than {_MAX_LINE_BYTES} bytes: {reprlib.repr(data[:40])}")
                yield data
    except (DataError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
