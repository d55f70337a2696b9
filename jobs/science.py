"""``ureca science OUTPUT``: small models trained from nothing on drawn scenes, compared in tables."""

import sys
from collections.abc import Sequence

from ureca.settings.science import ScienceSettings


def main(argv: Sequence[str]) -> int:
    """Run the experiment, or what is missing of it."""
    settings = ScienceSettings.load(argv)
    from ureca.evaluation.tables import read_table
    from ureca.evaluation.tables.plain import to_text
    from ureca.science.experiment import run_science

    paths = run_science(settings)
    for path in paths:
        if path.suffix == ".json" and path.with_suffix(".html") in paths:
            table = read_table(path)
            print(f"{table.title}\n\n{to_text(table)}\n")
    print("\n".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    from jobs.cli import run_verb

    sys.exit(run_verb(main, sys.argv[1:]))
