"""``ureca curate``: caption the regions of images into a Parquet dataset."""

import sys
from collections.abc import Sequence

from ureca.pipelines.curate_settings import CurateSettings


def main(argv: Sequence[str]) -> int:
    """Curate the images; returns 1 if more images or regions failed than ``max_error_fraction`` allows."""
    settings = CurateSettings.load(argv)
    from ureca.jobs.summary import print_summary
    from ureca.pipelines.curate import curate, plan

    if settings.plan:
        print(plan(settings))
        return 0
    return print_summary(curate(settings), settings, "regions")


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
