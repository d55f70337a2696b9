"""``ureca doctor``: check this machine, and say what to do."""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ureca.ops.doctor import Finding

_WIDTH = 100


def main(argv: Sequence[str]) -> int:
    """Check versions, memory, disks, GPUs, Java, browser, write access and Ray; returns 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="ureca doctor", description=main.__doc__)
    parser.add_argument(
        "places", metavar="PLACE", nargs="*", default=["."], help="folders and URIs to write to [the working folder]"
    )
    parser.add_argument("--no-ray", action="store_true", help="leave Ray alone, which takes some seconds")
    parser.add_argument("--json", action="store_true", help="print a JSON list, for programs")
    arguments = parser.parse_args(argv)

    findings = []
    for finding in _findings(arguments.places, with_ray=not arguments.no_ray):
        findings.append(finding)
        if not arguments.json:
            print(_text(finding), flush=True)
    if arguments.json:
        import json

        print(json.dumps([finding.model_dump() for finding in findings], indent=2))
    return int(any(finding.level == "problem" for finding in findings))


def _findings(places: Sequence[str], *, with_ray: bool) -> Iterator["Finding"]:
    from ureca.ops.doctor import check_machine, check_packages, check_places, check_programs

    yield from check_packages()
    yield from check_machine()
    yield from check_programs()
    yield from check_places(places)
    if with_ray:
        from ureca.pipelines.batch.session import check_ray

        yield check_ray()


def _text(finding: "Finding") -> str:
    lines = [f"{finding.level.value:<8} {finding.name:<17} {finding.value}"]
    if finding.remedy:
        lines += textwrap.wrap(finding.remedy, _WIDTH, initial_indent=" " * 9 + "-> ", subsequent_indent=" " * 12)
    return "\n".join(lines)


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
