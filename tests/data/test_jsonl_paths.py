"""Training from URECA's JSONL whose images are named by path: an export of such a run is learned as it is."""

from pathlib import Path
from typing import Any

from PIL import Image

from tests.data.export.conftest import HEIGHT, WIDTH, make_region, make_row
from ureca.data.export import ExportReport, export_jsonl
from ureca.data.samples import JsonlFile, TrainingImage
from ureca.data.settings import JsonlSource


def test_samples_of_an_export_with_ids_by_path_are_its_regions(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for name in ("cat/001", "dog/001"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"in/{name}.jpg")
        rows.append(make_row(name, [make_region(3, f"caption of {name}")]))
    export_jsonl(rows, tmp_path / "train.jsonl", ExportReport(), masks=tmp_path / "masks")
    source = JsonlSource(
        path=str(tmp_path / "train.jsonl"), images=str(tmp_path / "in"), annotations=str(tmp_path / "masks"), ids="path"
    )
    samples = list(JsonlFile(source).samples())
    assert all(isinstance(sample, TrainingImage) for sample in samples)
    found = {s.image_id: [region.caption for region in s.regions] for s in samples if isinstance(s, TrainingImage)}
    assert found == {"cat/001": ["caption of cat/001"], "dog/001": ["caption of dog/001"]}
