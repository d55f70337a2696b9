"""Sets of scenes on disk, in the formats that all other commands read.

``images/<id>.png`` with ``images/<id>.json`` beside it (SA-1B's layout; its extra keys are the scene), ``regions/``,
``manifest/`` and ``run.json`` as ``ureca curate`` writes them, and ``captions.jsonl`` (URECA's training format).
"""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from ureca import __version__
from ureca.data.card import write_card
from ureca.data.export import ExportReport, export_jsonl
from ureca.data.manifest import make_manifest
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.data.run_record import RunRecord
from ureca.errors import OutputError
from ureca.io import naming_unwritable
from ureca.masks.annotations import write_annotations
from ureca.scenes.captions import shortest_captions
from ureca.scenes.composition import CaptionPolicy, Split
from ureca.scenes.rendering import Rendering, image_id, render
from ureca.scenes.scene import SceneRegion, resolve
from ureca.schema import REGIONS_DATASET

VERSION = "1"
"""Version of the drawings and captions; it changes whenever a seed gives other ones."""

_COMMAND = "scenes"
_IMAGES = "images"
_CAPTIONS = "captions.jsonl"
_IMAGES_PER_PARTITION = 64
_PNG_LEVEL = 4


def write_scenes(
    destination: Path,
    num_images: int,
    *,
    split: Split,
    seed: int,
    width_px: int,
    height_px: int,
    captions: CaptionPolicy = "varied",
    num_processes: int = 1,
    overwrite: bool = False,
) -> ExportReport:
    """Write the scenes with numbers 0 to ``num_images`` - 1 of a set.

    Args:
        destination: folder, created if it is missing.
        num_images: number of images, at least 1.
        split, seed, width_px, height_px: parameters of the set, as for ``rendering.render``.
        captions: policy of the unique captions: "varied", or those of ``captions.shortest_captions``.
        num_processes: number of processes that draw; the files do not depend on it.
        overwrite: replace an earlier set.

    Returns:
        The counts of images and captions.

    Raises:
        OutputError: the folder is not empty, and it holds no scenes, or others than an interrupted set of the same
            parameters while ``overwrite`` is not set.
    """
    output = Output(str(destination))
    images = destination / _IMAGES
    settings = {
        "split": split,
        "seed": seed,
        "num_images": num_images,
        "width_px": width_px,
        "height_px": height_px,
        "captions": captions,
    }
    _prepare_folder(destination, output, settings, overwrite=overwrite)
    with naming_unwritable(images):
        images.mkdir(parents=True, exist_ok=True)
    record = RunRecord(
        output, _COMMAND, settings, versions={"scenes": VERSION}, dataset=REGIONS_DATASET, has_sessions=False
    )
    record.write("running")
    output.add_images(
        _manifest(images, [image_id(split, seed, number) for number in range(num_images)]), _IMAGES_PER_PARTITION
    )
    draw = partial(_draw_image, images, split, seed, (width_px, height_px), captions=captions)
    rows = _draw_rows(draw, num_images, num_processes)
    report = PartitionReport()
    for partition, size in sorted(output.partition_sizes().items()):
        of_partition = list(islice(rows, size))
        output.write_partition(partition, of_partition, PartitionReport())
        report = report + PartitionReport.of_rows(of_partition)
    exported = ExportReport()
    export_jsonl(output.rows(), destination / _CAPTIONS, exported, overwrite=True)
    write_card(output, _COMMAND, report)
    record.write("finished", totals=report.model_dump())
    return exported


def regions_row(rendering: Rendering, uri: str) -> dict[str, Any]:
    """The row of a scene in the schema ``REGIONS``, with accepted captions, as ``resolve`` proves them unique."""
    annotations = rendering.annotations
    return {
        "image_id": annotations.image_id,
        "uri": uri,
        "height": annotations.height_px,
        "width": annotations.width_px,
        "regions": [_region_row(rendering, region) for region in rendering.scene.regions],
        "error": None,
        "provenance": {
            "proposer": f"scenes {VERSION}",
            "annotator": f"scenes {VERSION}",
            "embedder": None,
            "verifier": "ureca.scenes.scene",
            "ureca": __version__,
        },
    }


def _region_row(rendering: Rendering, region: SceneRegion) -> dict[str, Any]:
    mask, captions = rendering.annotations[region.id], rendering.captions[region.id]
    return {
        "region_id": region.id,
        "rle": mask.rle["counts"],
        "bbox_xywh": list(mask.bbox_xywh),
        "area_px": mask.area_px,
        "parent_id": region.parent_id,
        "depth": sum(1 for _ in rendering.scene.ancestors(region)),
        "short_caption": str(captions.short),
        "detailed_caption": str(captions.detailed),
        "caption": str(captions.unique),
        "lookalike_ids": [id for id in resolve(captions.short, rendering.scene) if id != region.id],
        "verdict": "accepted",
        "status": "ok",
    }


def _draw_image(
    images: Path, split: Split, seed: int, size_px: tuple[int, int], number: int, *, captions: CaptionPolicy
) -> dict[str, Any]:
    rendering = render(split, seed, number, *size_px)
    path = images / f"{rendering.annotations.image_id}.png"
    with naming_unwritable(path):
        Image.fromarray(rendering.pixels).save(path, compress_level=_PNG_LEVEL)
        write_annotations(path.with_suffix(".json"), rendering.annotations)
    row = regions_row(rendering, str(path.absolute()))
    if captions == "shortest":
        shortest = shortest_captions(rendering.scene)
        row["regions"] = [region | {"caption": str(shortest[region["region_id"]])} for region in row["regions"]]
    return row


def _draw_rows(draw: Callable[[int], dict[str, Any]], num_images: int, num_processes: int) -> Iterator[dict[str, Any]]:
    if num_processes == 1:
        yield from map(draw, range(num_images))
        return
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(draw, range(num_images), chunksize=8)


def _manifest(images: Path, ids: list[str]) -> pa.Table:
    paths = [str((images / f"{id}.png").absolute()) for id in ids]
    beside = [str((images / f"{id}.json").absolute()) for id in ids]
    return make_manifest(
        image_id=pa.array(ids), uri=pa.array(paths), path=pa.array(paths), annotation_path=pa.array(beside)
    )


def _prepare_folder(destination: Path, output: Output, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Remove an earlier set; one that was interrupted, by a full disk for example, is begun again unasked."""
    if destination.is_file():
        raise OutputError(f"{destination} is a file; name a folder")
    if not destination.is_dir() or not any(destination.iterdir()):
        return
    before = output.run() if output.exists() else {}
    is_interrupted = before.get("state") == "running" and before.get("settings") == settings
    if not (overwrite or is_interrupted):
        raise OutputError(
            f"the folder {destination} is not empty; name another one, or replace scenes with --overwrite"
        )
    if (command := output.run().get("command")) != _COMMAND:
        raise OutputError(f"{destination} is the output of {command!r}, not of scenes; name another folder")
    known = output.run()["settings"]
    for number in range(known["num_images"]):
        for suffix in (".png", ".json"):
            id = image_id(known["split"], known["seed"], number)
            (destination / _IMAGES / f"{id}{suffix}").unlink(missing_ok=True)
    output.remove()
