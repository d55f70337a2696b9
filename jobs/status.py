"""``ureca status OUTPUT``: how far a run is, from any machine that sees its output."""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Tell how far a run is; returns 1 if it was lost: it says that it runs, and nothing shows it."""
    parser = argparse.ArgumentParser(prog="ureca status", description=main.__doc__)
    parser.add_argument("output", metavar="OUTPUT", help="folder or URI of a run of curate, caption, train or evaluate")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.add_argument("--quick", action="store_true", help="list files without opening them: failures stay unknown")
    arguments = parser.parse_args(argv)

    from ureca.ops.status import status_of, status_text

    status = status_of(arguments.output, quick=arguments.quick)
    print(status.model_dump_json(indent=2) if arguments.json else status_text(status))
    return int(status.state == "lost")


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
