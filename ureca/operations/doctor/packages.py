"""The packages that the project's own metadata names."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version

from packaging.requirements import Requirement

from ureca.operations.doctor.finding import Finding, Level

PROJECT = "ureca-ray"
_FOR_DEVELOPERS = "dev"


def check_packages() -> Iterator[Finding]:
    """Python, the packages that every verb needs, and those of each extra."""
    project = distribution(PROJECT)
    python = platform.python_version()
    yield Finding(name="python", level=Level.OK, value=f"{python} on {platform.platform()}")
    requirements = [Requirement(text) for text in project.requires or ()]
    needed = [each for each in requirements if _applies(each, "")]
    wrong = [text for each in needed if (text := _what_is_wrong(each))]
    shown = ", ".join(f"{name} {version(name)}" for name in ("ray", "pyarrow", "pydantic") if _is_installed(name))
    yield Finding(
        name="packages",
        level=Level.PROBLEM if wrong else Level.OK,
        value="; ".join(wrong) or f"{PROJECT} {project.version}, {shown}",
        remedy=f"pip install --upgrade {PROJECT}" if wrong else "",
    )
    for extra in sorted(set(project.metadata.get_all("Provides-Extra") or ()) - {_FOR_DEVELOPERS}):
        yield _check_extra(extra, [each for each in requirements if _applies(each, extra) and each not in needed])


def _check_extra(extra: str, requirements: list[Requirement]) -> Finding:
    wrong = [text for each in requirements if each.name != PROJECT and (text := _what_is_wrong(each))]
    return Finding(
        name=f"extra {extra}",
        level=Level.NOTE if wrong else Level.OK,
        value="; ".join(wrong) or "installed",
        remedy=f"pip install '{PROJECT}[{extra}]', if you need it" if wrong else "",
    )


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _what_is_wrong(requirement: Requirement) -> str:
    """Empty: the package is there, in a version that will do, and so are the packages of its extras that are asked."""
    if not _is_installed(requirement.name):
        return f"{requirement.name} is missing"
    found = version(requirement.name)
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} {found} is not {requirement.specifier}"
    for extra in requirement.extras:
        inner = [Requirement(text) for text in distribution(requirement.name).requires or ()]
        missing = [each.name for each in inner if _is_of_extra(each, extra) and not _is_installed(each.name)]
        if missing:
            return f"{requirement.name}[{extra}] lacks {', '.join(missing)}"
    return ""


def _is_of_extra(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
