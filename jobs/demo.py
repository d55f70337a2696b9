"""``make demo``: curate five real photographs with no weights and no network, and write a report."""

import sys
from collections.abc import Sequence
from pathlib import Path

import skimage

from jobs import curate, report

_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def main(argv: Sequence[str]) -> int:
    """Curate the photographs that ship inside scikit-image into the folder ``argv[0]``, anew each time."""
    folder = Path(argv[0] if argv else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    shipped = Path(skimage.__file__).parent / "data"
    images = folder / "images.txt"
    images.write_text("".join(f"{shipped / name}\n" for name in _PHOTOGRAPHS), encoding="utf-8")
    output = folder / "photographs"
    status = curate.main([str(images), str(output), "--verification.kind", "describer", "--overwrite"])
    return status or report.main([str(output), "--to", str(folder / "report.html")])


if __name__ == "__main__":
    from jobs.cli import run_verb

    sys.exit(run_verb(main, sys.argv[1:]))
