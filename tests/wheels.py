"""The wheel of this checkout."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def build_wheel(folder: Path) -> Path:
    """Build the wheel of what git knows, from a copy in ``folder / "source"``, into ``folder``; returns its path."""
    # From a copy: setuptools leaves files where it builds.
    copied = subprocess.run(["git", "ls-files", "-z", "--cached"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, copied.stdout.split("\0")):
        if (ROOT / name).is_symlink():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, folder / "source"]
    subprocess.run(build, check=True, capture_output=True, timeout=150)
    (wheel,) = folder.glob("*.whl")
    return wheel
