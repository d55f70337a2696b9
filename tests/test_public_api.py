"""Public names of ``import ureca``: their signatures, and every example of their docstrings and of docs/api.md."""

import ast
import asyncio
import doctest
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ureca
from tests.drawn import drawn_image, png, sa1b_json
from ureca.errors import ImageError, InputError
from ureca.model.initialization import save_tiny
from ureca.scenes.files import write_scenes

ROOT = Path(__file__).parents[1]
SNAPSHOT = Path(__file__).with_name("public_api.txt")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    pixels, masks = drawn_image(0)
    (folder / "photo.png").write_bytes(png(pixels))
    (folder / "photo.json").write_bytes(sa1b_json(masks))
    write_scenes(folder / "captions", 1, split="train", seed=0, width_px=224, height_px=224)
    save_tiny(folder / "checkpoint")
    return folder


def test_import_of_ureca_loads_no_other_package() -> None:
    code = "import sys; before = {*sys.modules}; import ureca; print(sorted({*sys.modules} - before))"
    printed = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
                             capture_output=True, text=True, check=True).stdout  # fmt: skip
    loaded = {name.partition(".")[0] for name in ast.literal_eval(printed)}
    assert loaded - sys.stdlib_module_names == {"ureca", "lazy_loader"}


def test_public_names_have_the_recorded_signatures() -> None:
    """After a deliberate change, ``python -m tests.test_public_api`` records the signatures anew."""
    assert public_api() == SNAPSHOT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(ureca.__all__))
def test_public_names_are_documented_with_examples_that_run(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documented = getattr(ureca, name)
    assert documented.__doc__
    assert f"`{name}" in (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert ">>> " in documented.__doc__ or f"ureca.{name}" in "".join(python_blocks())
    monkeypatch.chdir(workplace)
    runner = doctest.DocTestRunner(_AnyOutputUnlessGiven(), verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(documented, name, globs={}):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_examples_of_the_api_page_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    names: dict[str, Any] = {"__name__": "examples"}
    blocks = [block for block in python_blocks() if "my_captions" not in block]  # see test_plugins.py
    assert len(blocks) >= 5
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)  # noqa: S102
    assert len(names["regions"]) == len(names["annotations"]) == 4
    assert names["unique"]


class TestCurateImage:
    """Forms of the arguments of ``curate_image``."""

    def test_curate_image_of_every_image_form_gives_the_same_captions(self, workplace: Path) -> None:
        from PIL import Image

        pixels, masks = drawn_image(0)
        expected = [region.caption for region in ureca.curate_image(pixels, masks)]
        for image in (str(workplace / "photo.png"), workplace / "photo.png", Image.fromarray(pixels)):
            assert [region.caption for region in ureca.curate_image(image, masks)] == expected
        assert all(expected)

    def test_curate_image_of_mask_arrays_numbers_them_by_position(self) -> None:
        pixels, masks = drawn_image(0)
        arrays = np.stack([mask.decode() for mask in masks])
        regions = ureca.curate_image(pixels, arrays)
        assert sorted(region.region_id for region in regions) == [0, 1, 2, 3]
        for region in regions:
            assert (region.mask.decode() == arrays[region.region_id]).all()

    def test_curate_image_with_own_components_uses_them(self) -> None:
        class Whole:
            name = "whole"

            def generate(self, image: np.ndarray, annotation: bytes | None = None) -> list[ureca.Mask]:
                return [ureca.Mask.from_array(5, np.ones(image.shape[:2], bool))]

        (region,) = ureca.curate_image(drawn_image(0)[0], mask_generator=Whole())
        assert (region.region_id, region.status, region.caption) == (5, "skipped:large", None)

    def test_curate_image_within_a_running_event_loop_works(self) -> None:
        async def cell() -> list[ureca.Region]:
            return ureca.curate_image(*drawn_image(0))

        assert len(asyncio.run(cell())) == 4

    def test_curate_image_with_unusable_arguments_raises(self, tmp_path: Path) -> None:
        pixels, masks = drawn_image(0)
        (tmp_path / "text.png").write_text("no image")
        with pytest.raises(InputError, match="nowhere"):
            ureca.curate_image(tmp_path / "nowhere.png")
        with pytest.raises(ImageError, match="not_an_image"):
            ureca.curate_image(tmp_path / "text.png")
        with pytest.raises(ValueError, match="uint8"):
            ureca.curate_image(pixels.astype(np.float32))
        with pytest.raises(ValueError, match="has the size"):
            ureca.curate_image(pixels[:-1], masks)


def test_open_output_regions_equal_its_rows(workplace: Path) -> None:
    output = ureca.open_output(workplace / "captions")
    assert output.run["command"] == "scenes"
    (row,) = output
    regions = list(output.regions())
    assert [region.caption for region in regions] == [region["caption"] for region in row["regions"]]
    assert {(region.image_id, region.uri, region.mask.height_px) for region in regions} == {
        (row["image_id"], row["uri"], 224)
    }
    assert list(output.regions(status="failed:x")) == []
    with pytest.raises(ureca.UrecaError, match="not the output of a run"):
        ureca.open_output(workplace)


def test_export_with_unknown_format_or_misplaced_masks_raises(workplace: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="csv"):
        ureca.export(workplace / "captions", "csv", tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="jsonl"):
        ureca.export(workplace / "captions", "coco", tmp_path / "x", masks=tmp_path)
    assert not list(tmp_path.iterdir())


def python_blocks() -> list[str]:
    """The Python code of docs/api.md."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def public_api() -> str:
    """Names and signatures as the source has them, so that they do not depend on versions of Python or NumPy."""
    return "\n\n".join(_signatures(getattr(ureca, name)) for name in sorted(ureca.__all__)) + "\n"


def _signatures(documented: Any) -> str:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(documented))).body
    if not isinstance(node, ast.ClassDef):
        return _signature(node)
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    lines = [f"class {node.name}({bases})" if bases else f"class {node.name}"]
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.target).startswith("_"):
            lines.append(f"    {ast.unparse(item)}")
        elif isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and (
            item.name == "__init__" or not item.name.startswith("_")
        ):
            lines += [f"    @{ast.unparse(decorator)}" for decorator in item.decorator_list]
            lines.append(f"    {_signature(item)}")
    return "\n".join(lines)


def _signature(node: ast.stmt) -> str:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    return f"{prefix} {node.name}({ast.unparse(node.args)}){returns}"


class _AnyOutputUnlessGiven(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), encoding="utf-8")
    sys.exit(os.EX_OK)
