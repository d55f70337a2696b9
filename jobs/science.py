"""``ureca science OUTPUT``: small models trained from nothing on drawn scenes, compared in tables."""

import sys
from collections.abc import Sequence

from ureca.settings.science import ScienceSettings


def main(argv: Sequence[str]) -> int:
    """Run the experiment, or what is missing of it."""
    settings = ScienceSettings.load(argv)
    from ureca.science.experiment import run_science

    print("\n".join(map(str, run_science(settings))))
    return 0


if __name__ == "__main__":
    from jobs.cli import run_verb

    sys.exit(run_verb(main, sys.argv[1:]))
