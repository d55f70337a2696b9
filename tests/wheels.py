"""The wheel and the source distribution of this checkout."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def build_wheel(folder: Path) -> Path:
    """Build the wheel of what git knows, from a copy in ``folder / "source"``, into ``folder``; returns its path."""
    _copy_source(folder / "source")
    return _build(folder / "source", folder)


def build_wheel_of_sdist(folder: Path) -> tuple[Path, Path]:
    """Build the source distribution of what git knows, and the wheel of it, into ``folder``; returns both paths."""
    _copy_source(folder / "source")
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    build = [sys.executable, "-c", code, folder]
    subprocess.run(build, check=True, capture_output=True, timeout=150, cwd=folder / "source")
    (sdist,) = folder.glob("*.tar.gz")
    return sdist, _build(sdist, folder)


def _copy_source(to: Path) -> None:
    """Copy the files: setuptools leaves others where it builds."""
    copied = subprocess.run(["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, copied.stdout.split("\0")):
        if (ROOT / name).is_symlink():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes((ROOT / name).read_bytes())


def _build(source: Path, folder: Path) -> Path:
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source]
    subprocess.run(build, check=True, capture_output=True, timeout=150)
    (wheel,) = folder.glob("*.whl")
    return wheel
