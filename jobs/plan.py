"""``ureca plan``: estimate what a run would take, from a sample of its images or from a finished run."""

import sys
from collections.abc import Sequence

from ureca.config import settings_of
from ureca.pipelines.plan_settings import PlanSettings


def main(argv: Sequence[str]) -> int:
    """Print the estimate; returns 0."""
    match argv[:1]:
        case ["curate"]:
            from ureca.pipelines.curate_settings import CurateSettings

            curate_settings = CurateSettings.load(argv[1:])
            from ureca.pipelines import curate

            print(curate.plan(curate_settings))
        case ["caption"]:
            from ureca.pipelines.caption_settings import CaptioningSettings

            caption_settings = CaptioningSettings.load(argv[1:])
            from ureca.pipelines import caption

            print(caption.plan(caption_settings))
        case _:
            own, changes = _split(argv)
            settings = PlanSettings.load(own)
            from ureca.pipelines.plan import plan_from_run

            print(plan_from_run(settings, changes))
    return 0


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments into those of the plan itself and those of ``ureca curate``."""
    flags = {each.flag for each in settings_of(PlanSettings)} | {"-h", "--help", "--help-all"}
    own: list[str] = []
    changes: list[str] = []
    current = own
    for position, word in enumerate(argv):
        if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
            current = own if word.partition("=")[0] in flags else changes
        elif position == 0:
            current = own
        current.append(word)
    return own, changes


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
