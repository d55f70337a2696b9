"""The benchmark of the curation: its corpus and its table."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import curate, scene_corpus
from benchmarks.chat_endpoint import BIN_S
from ureca.masks.annotations import read_annotations


def test_write_scene_corpus_writes_distinct_images_with_masks(tmp_path: Path) -> None:
    scene_corpus.write_scene_corpus(tmp_path / "images", 9, 112, num_scenes=2)
    paths = sorted((tmp_path / "images").glob("*.png"))
    images = [np.asarray(Image.open(path)) for path in paths]
    assert len({image.tobytes() for image in images}) == len(images) == 9
    assert {image.shape for image in images} == {(112, 112, 3)}
    for path, image in zip(paths, images, strict=True):
        annotations = read_annotations(path.with_suffix(".json"))
        assert len(annotations) > 5
        assert (annotations.height_px, annotations.width_px) == image.shape[:2]


def test_bench_curate_row_has_busy_shares_and_end() -> None:
    arguments = curate.build_parser().parse_args(["--slots", "10", "--warm-up-s", "1"])
    # A second of warm-up, two with all places taken, one with half of them.
    busy_s = [2 * BIN_S] * 10 + [10 * BIN_S] * 20 + [5 * BIN_S] * 10
    run = curate.CurationRun(
        num_calls=200,
        busy_s=busy_s,
        cpu_s={"CurateActor": 1.0, "other": 0.5},
        memory_mib={},
        record={"totals": {"latency_ms": {"1": 1}}},
        captions={},
    )
    cells = [
        cell.strip() for cell in curate.result_row(curate.CurationJob(30, 0), run, arguments).strip("|").split("|")
    ]
    assert cells[:7] == ["30 images", "200", "50", "83.3%", "100.0%", "1.0 s", "5.00, 7.50"]
