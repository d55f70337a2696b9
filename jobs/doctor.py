"""``ureca doctor``: check this machine, and name a remedy for each problem."""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator
from pydantic_settings import CliPositionalArg

from ureca.config import CommandSettings, Metavar

if TYPE_CHECKING:
    from ureca.ops.doctor import Finding

_WIDTH = 100


class DoctorSettings(CommandSettings):
    """Check versions, memory, disks, GPUs, Java, browser, write access and Ray; the exit status is 1 on a problem."""

    command: ClassVar[str] = "doctor"
    examples: ClassVar[tuple[str, ...]] = (
        "ureca doctor",
        "ureca doctor s3://BUCKET/folder /data    # also checks that it can write there",
        "ureca doctor --ranks 8                   # also measures the all-reduce of training",
    )

    places: Annotated[CliPositionalArg[list[str]], Metavar("[PLACE...]")] = Field(
        default=["."], description="folders and URIs to write to; by default the working folder"
    )
    # Not "no_ray": the parser reads --no-X as the negation of X, and would give its field False.
    with_ray: bool = Field(
        default=True, validation_alias="ray", description="start Ray and run a task, which takes some seconds"
    )
    ranks: int = Field(
        default=0,
        ge=0,
        description="ranks between which the all-reduce of training is measured, one on each GPU; 0: none",
    )
    as_json: bool = Field(default=False, validation_alias="json", description="print a JSON list, for programs")

    @field_validator("ranks")
    @classmethod
    def _are_several(cls, ranks: int) -> int:
        if ranks == 1:
            raise ValueError("an all-reduce needs at least 2 ranks")
        return ranks


def main(argv: Sequence[str]) -> int:
    """Check the machine and print the findings; returns 1 if there is a problem."""
    settings = DoctorSettings.load(argv)
    findings = []
    for finding in _findings(settings):
        findings.append(finding)
        if not settings.as_json:
            print(_text(finding), flush=True)
    if settings.as_json:
        import json

        print(json.dumps([finding.model_dump() for finding in findings], indent=2))
    return int(any(finding.level == "problem" for finding in findings))


def _findings(settings: DoctorSettings) -> Iterator["Finding"]:
    from ureca.ops.doctor import check_machine, check_packages, check_places, check_programs

    yield from check_packages()
    yield from check_machine()
    yield from check_programs()
    yield from check_places(settings.places)
    if settings.with_ray:
        from ureca.pipelines.batch.session import check_ray

        yield check_ray()
    if settings.ranks:
        from ureca.pipelines.batch.session import ray_session
        from ureca.pipelines.training.bandwidth import check_all_reduce

        with ray_session(min_cpus=settings.ranks):
            yield check_all_reduce(settings.ranks)


def _text(finding: "Finding") -> str:
    lines = [f"{finding.level.value:<8} {finding.name:<17} {finding.value}"]
    if finding.remedy:
        lines += textwrap.wrap(finding.remedy, _WIDTH, initial_indent=" " * 9 + "-> ", subsequent_indent=" " * 12)
    return "\n".join(lines)


if __name__ == "__main__":
    from ureca.jobs.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
