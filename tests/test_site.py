"""The documentation site, the README and the examples."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.drawn import write_corpus
from tests.pipelines.test_graph import settings_of
from tests.test_failures_page import flags_of
from ureca.jobs.cli import COMMANDS
from ureca.pipelines.curate import curate
from ureca.pipelines.curate_settings import CurateSettings

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built site; warnings, such as about links, pages without a place in the menu and anchors, fail it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_site_has_every_setting_of_every_command(site: Path) -> None:
    page = (site / "commands" / "index.html").read_text(encoding="utf-8")
    for name in {name for commands in COMMANDS.values() for name in commands} - {"bench", "demo", "plan"}:
        assert f'id="{name}"' in page, name
    for flag in flags_of(CurateSettings):
        if not flag.endswith(".kind") and "." in flag:
            assert f"--{flag}" in page or f"--[no-]{flag}" in page, flag


def test_site_has_every_public_name(site: Path) -> None:
    page = (site / "reference" / "index.html").read_text(encoding="utf-8")
    stub = (ROOT / "ureca" / "__init__.pyi").read_text(encoding="utf-8")
    names = re.findall(r"^from \.([\w.]+) import (\w+) as", stub, re.MULTILINE)
    assert len(names) >= 15
    for module, name in names:
        assert f'id="ureca.{module}.{name}"' in page, name


def test_site_has_no_links_to_files_that_it_lacks(site: Path) -> None:
    pages = list(site.rglob("index.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:|//|/", target):
                continue
            path = (page.parent / target).resolve()
            assert path.exists(), f"{page.relative_to(site)}: {target}"


def test_every_page_has_a_place_in_the_menu() -> None:
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    menu = json.dumps(yaml.safe_load(text)["nav"])
    assert not [page.name for page in PAGES if f'"{page.name}"' not in menu]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", EXAMPLES / "README.md", *PAGES],
                         ids=lambda page: page.name)  # fmt: skip
def test_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    generated = {"commands.md", "reference.md", "design.md"}
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if name in generated:
            continue
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, link


@pytest.fixture(scope="module")
def folder_of_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working folder that has what the pages name: OUTPUT, a photograph, and its annotations."""
    folder = tmp_path_factory.mktemp("pages")
    write_corpus(folder / "in", 3)
    shutil.copy(folder / "in" / "img_0000.png", folder / "photo.png")
    shutil.copy(folder / "in" / "img_0000.json", folder / "photo.json")
    Image.open(folder / "photo.png").save(folder / "photo.jpg", quality=95)
    settings = settings_of(folder, executor="local").model_copy(update={"output": str(folder / "OUTPUT")})
    curate(settings, lambda num_images, num_to_do: None)
    return folder


@pytest.mark.timeout(200)
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", "docs/masks.md", "docs/results.md"])
def test_python_of_a_page_runs(page: str, folder_of_pages: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=folder_of_pages, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout or page == "docs/results.md"


def test_readme_fits_on_two_screens() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80
    assert all(len(line) <= 200 for line in lines)


@pytest.mark.timeout(300)
def test_notebook_runs_and_prints_as_it_shows(tmp_path: Path) -> None:
    cells = json.loads((EXAMPLES / "curate_and_analyse.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    # The output of each cell is told apart by a line of its own.
    code = "\nprint('--- cell ---', flush=True)\n".join(sources)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.split("--- cell ---\n")
    assert len(printed) == len(sources) >= 6
    assert re.search(r"\d+ captions of 2 images", printed[0])
    shown = ["".join(output["text"]) for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert [bool(text) for text in printed] == [bool(text) for text in shown]


def test_own_annotator_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = runpy.run_path(str(EXAMPLES / "own_annotator.py"))
    assert names["main"]() == 0
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(r"(\d+) captions, (\d+) different ones", last)
    assert found is not None
    assert int(found[1]) == int(found[2]) > 10


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(300)
def test_ray_data_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = runpy.run_path(str(EXAMPLES / "ray_data_pipeline.py"))
    assert names["main"]([str(tmp_path / "captions")]) == 0
    printed = capsys.readouterr().out
    for name in ("coffee", "rocket"):
        assert re.search(rf"{name}: \d+ regions; the largest: \w+", printed)
