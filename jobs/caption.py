"""``ureca caption``: caption the regions of images with a trained model, into a Parquet dataset."""

import sys
from collections.abc import Sequence

from ureca.pipelines.caption_settings import CaptioningSettings


def main(argv: Sequence[str]) -> int:
    """Caption the images; returns 1 if more images or regions failed than ``max_error_fraction`` allows."""
    settings = CaptioningSettings.load(argv)
    from ureca.jobs.summary import print_summary
    from ureca.pipelines.caption import caption, plan

    if settings.plan:
        print(plan(settings))
        return 0
    return print_summary(caption(settings), settings, "captions")


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
