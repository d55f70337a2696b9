"""The dataset card of an output folder."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tests.drawn import write_corpus
from tests.pipelines.test_graph import settings_of
from ureca.data.card import CARD, write_card
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.pipelines.curate import curate
from ureca.scenes.files import write_scenes


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a run with four images, of which one is truncated."""
    folder = tmp_path_factory.mktemp("card")
    write_corpus(folder / "in", 4)
    first = min(path for path in (folder / "in").iterdir() if path.suffix != ".json")
    first.write_bytes(first.read_bytes()[:40])
    curate(settings_of(folder, executor="local", max_error_fraction=1), lambda num_images, num_to_do: None)
    return folder / "out"


def test_load_dataset_of_an_output_folder_has_its_rows(curated: Path, tmp_path: Path) -> None:
    code = (
        "import datasets, sys\n"
        f"rows = datasets.load_dataset({str(curated)!r}, split='train', cache_dir={str(tmp_path)!r})\n"
        "print(len(rows), sum(len(row['regions']) for row in rows), rows[1]['regions'][0]['caption'])"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert printed.returncode == 0, printed.stderr
    rows = list(Output(str(curated)).rows())
    num_regions = sum(len(row["regions"]) for row in rows)
    assert printed.stdout.strip() == f"4 {num_regions} {rows[1]['regions'][0]['caption']}"


def test_duckdb_line_of_the_card_gives_one_row_per_region(curated: Path) -> None:
    (query,) = [line for line in (curated / CARD).read_text().splitlines() if line.startswith("SELECT")]
    found = duckdb.sql(query.replace("FOLDER", str(curated))).fetchall()
    assert len(found) == sum(len(row["regions"]) for row in Output(str(curated)).rows())


def test_polars_line_of_the_card_gives_one_row_per_region(curated: Path) -> None:
    (line,) = [line for line in (curated / CARD).read_text().splitlines() if line.startswith("regions = polars")]
    names: dict[str, object] = {}
    exec(f"import polars\n{line.replace('FOLDER', str(curated))}", names)  # noqa: S102
    captions = names["regions"]["caption"].drop_nulls().to_list()  # type: ignore[index]
    assert sorted(captions) == sorted(
        region["caption"] for row in Output(str(curated)).rows() for region in row["regions"] if region["caption"]
    )


def test_card_counts_the_rows_and_is_replaced_by_the_next_session(curated: Path, tmp_path: Path) -> None:
    text = (curated / CARD).read_text(encoding="utf-8")
    assert "4 images with 12 captioned regions, written by `ureca curate`" in text
    assert "1 rows have an `error`" in text
    output = Output(str(tmp_path / "out"))
    for number in (3, 5):
        write_card(output, "curate", PartitionReport(num_images=number))
        assert f"{number} images with" in (tmp_path / "out" / CARD).read_text()


def test_card_of_somebody_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    output = Output(str(tmp_path / "scenes"))
    (tmp_path / "scenes" / CARD).write_text("mine")
    write_card(output, "curate", PartitionReport())
    assert (tmp_path / "scenes" / CARD).read_text() == "mine"


def test_scenes_have_a_card(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2, split="train", seed=0, width_px=112, height_px=112)
    assert "data_files: regions/part-*.parquet" in (tmp_path / "scenes" / CARD).read_text()
