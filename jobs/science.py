"""``ureca science OUTPUT``: small models trained from random weights on drawn scenes, compared in tables."""

import sys
from collections.abc import Sequence

from ureca.jobs.checkout import import_from_checkout


def main(argv: Sequence[str]) -> int:
    """Run the unfinished part of the experiment; returns 0."""
    settings = import_from_checkout("experiments.science.settings", "science").ScienceSettings.load(argv)
    run_science = import_from_checkout("experiments.science.experiment", "science").run_science
    from ureca.evaluation.tables.formats import read_table, to_text

    paths = run_science(settings)
    for path in paths:
        if path.suffix == ".json" and path.with_suffix(".html") in paths:
            table = read_table(path)
            print(f"{table.title}\n\n{to_text(table)}\n")
    print("\n".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
