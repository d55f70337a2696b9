"""Components of a package outside the repository, named in settings and on the command line."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

import ureca
from tests.drawn import drawn_image, write_corpus
from tests.test_public_api import ROOT, python_blocks
from ureca.registry import Kind

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a process in which the package of docs/api.md is installed."""
    site = tmp_path_factory.mktemp("site-packages")
    (module,) = (block for block in python_blocks() if block.startswith("# my_captions.py"))
    (site / "my_captions.py").write_text(module, encoding="utf-8")
    information = site / "my_captions-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-captions\nVersion: 1.0\n", encoding="utf-8")
    (entry_point,) = re.findall(r'entry-points."ureca.plugins"\]\n(\w+) = "(\w+)"', PAGE)
    (information / "entry_points.txt").write_text(f"[ureca.plugins]\n{' = '.join(entry_point)}\n", encoding="utf-8")
    return os.environ | {"PYTHONPATH": f"{ROOT}:{site}", "OMP_NUM_THREADS": "1"}


def run_python(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder outside the repository."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", get_args(Kind))
def test_page_names_the_components_of_the_package(kind: Kind) -> None:
    (row,) = re.findall(rf"^\| `{kind}` .*\| (.*) \|$", PAGE, re.MULTILINE)
    code = (
        "import ureca.pipelines.component_settings; from pydantic import TypeAdapter; "
        f"from ureca.registry import config_union; print(*TypeAdapter(config_union({kind!r})).json_schema()"
        "['discriminator']['mapping'])"
    )
    printed = run_python(os.environ | {"PYTHONPATH": str(ROOT)}, ROOT, "-c", code)
    assert sorted(re.findall(r"`([\w-]+)`", row)) == sorted(printed.stdout.split()), printed.stderr


def test_curate_image_with_the_annotator_of_the_page_without_ray(environment: dict[str, str], tmp_path: Path) -> None:
    Image.fromarray(drawn_image(0)[0]).save(tmp_path / "photo.png")
    (example,) = (block for block in python_blocks() if "from my_captions import" in block)
    finished = run_python(environment, tmp_path, "-c", f"{example}\nimport sys\nassert 'ray' not in sys.modules")
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"^\d+ ok .*A region of \d+ parts brightness", finished.stdout, re.MULTILINE), finished.stdout


def test_curate_with_components_of_a_plugin_by_name(environment: dict[str, str], tmp_path: Path) -> None:
    ids = write_corpus(tmp_path / "IMAGES", 3)
    (command,) = re.findall(r"^```console\nureca (.*--masks.kind columns.*)$", PAGE, re.MULTILINE)
    finished = run_python(environment, tmp_path, "-m", "ureca.jobs.cli", *shlex.split(command))
    assert finished.returncode == 0, finished.stderr
    assert "3, of which 0 failed" in finished.stdout
    output = ureca.open_output(tmp_path / "OUTPUT")
    assert sorted({region.image_id for region in output.regions()}) == ids
    assert len(list(output.regions())) == 9
    assert all("parts brightness" in (region.short_caption or "") for region in output.regions())
    assert output.run["settings"]["masks"] == {"kind": "columns", "num_columns": 3}
    assert output.run["settings"]["annotator"] == {"kind": "brightness", "scale": "parts"}
    (first, *_) = output
    assert first["provenance"]["annotator"] == "brightness 1"

    # The settings of a plugin are part of the configuration of a run, as all others are.
    changed = run_python(environment, tmp_path, "-m", "ureca.jobs.cli", *shlex.split(command.replace("parts", "bits")))
    assert changed.returncode == 2
    assert "annotator.scale" in changed.stderr


def test_help_of_a_plugin_lists_its_settings(environment: dict[str, str], tmp_path: Path) -> None:
    printed = run_python(environment, tmp_path, "-m", "ureca.jobs.cli", "curate", "--help-all").stdout
    assert "--masks.num-columns" in printed
    assert "number of columns" in printed
    assert "Captions that tell the brightness of a region." in printed


def test_settings_of_a_plugin_come_from_file_environment_and_flags(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "curate.yaml").write_text("masks: {kind: columns, num_columns: 5}\nannotator: {kind: brightness}\n")
    code = (
        "import pickle, sys\n"
        "from ureca.pipelines.curate_settings import CurateSettings\n"
        "settings = CurateSettings.load(['in', 'out', '--config', 'curate.yaml', *sys.argv[1:]])\n"
        "print(pickle.loads(pickle.dumps(settings)) == settings, settings.masks, settings.annotator)\n"
    )
    with_variable = environment | {"URECA_ANNOTATOR__SCALE": "parts"}
    printed = run_python(with_variable, tmp_path, "-c", code, "--masks.num-columns", "7")
    assert printed.stdout == "True num_columns=7 kind='columns' scale='parts' kind='brightness'\n", printed.stderr


def test_settings_of_a_module_without_entry_point_reach_another_process(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """As in a script of the user's own, which imports the module before it makes the settings."""
    _, site = environment["PYTHONPATH"].split(":")
    (tmp_path / "my_captions.py").write_text((Path(site) / "my_captions.py").read_text())
    without_plugin = environment | {"PYTHONPATH": str(ROOT)}
    write = (
        "import pickle, my_captions\n"
        "from ureca.pipelines.curate_settings import CurateSettings\n"
        "settings = CurateSettings(input='in', output='out', masks={'kind': 'columns', 'num_columns': 4})\n"
        "open('settings.pickle', 'wb').write(pickle.dumps(settings))\n"
    )
    read = (
        "import pickle\n"
        "from ureca.registry import build_component\n"
        "settings = pickle.load(open('settings.pickle', 'rb'))\n"
        "print(build_component('mask_generator', settings.masks).num_columns)\n"
    )
    written = run_python(without_plugin, tmp_path, "-c", write)
    assert written.returncode == 0, written.stderr
    printed = run_python(without_plugin, tmp_path, "-c", read)
    assert printed.stdout == "4\n", printed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--masks.kind", "columns", "--masks.num-columns", "0"], "num_columns"),
        (["--masks.kind", "columns", "--masks.rows", "2"], "rows"),
        (["--masks.kind", "rows"], "'columns'"),
    ],
)
def test_wrong_settings_of_a_plugin_are_one_message(
    arguments: list[str], message: str, environment: dict[str, str], tmp_path: Path
) -> None:
    refused = run_python(environment, tmp_path, "-m", "ureca.jobs.cli", "curate", "in", "out", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_plugin_that_cannot_be_imported_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (tmp_path / "broken-1.0.dist-info" / "entry_points.txt").write_text("[ureca.plugins]\nbroken = no_such_module\n")
    with_broken = environment | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    refused = run_python(with_broken, tmp_path, "-m", "ureca.jobs.cli", "curate", "in", "out")
    assert refused.returncode == 2
    assert "the plugin 'broken' (no_such_module) cannot be imported" in refused.stderr
    assert "Traceback" not in refused.stderr
