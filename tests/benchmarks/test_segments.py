"""The benchmark of the mask generator: recall of both sides."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import segments as bench
from ureca.masks.annotations import Annotations, write_annotations
from ureca.masks.mask import Mask


def test_bench_segments_of_a_square_finds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    square = np.zeros((90, 120), bool)
    square[30:60, 40:80] = True
    image = np.where(square[..., None], (220, 60, 40), (60, 80, 60)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95)
    write_annotations(tmp_path / "a.json", Annotations((Mask.from_array(1, square),), 90, 120))
    assert bench.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    now = next(line for line in lines if line.startswith("now"))
    assert "all 1.000" in now and "large 1.000" in now
    assert any(line.startswith("graph segmentation") for line in lines)
