"""Print pip constraints: each dependency at the oldest version that pyproject.toml allows (make test-lowest)."""

import re
import tomllib
from pathlib import Path

_BOUND = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[a-z,]*\])?>=(?P<version>[0-9.]+)")
_OWN_ENVIRONMENTS = {"vllm", "ray-serve"}


def constraints() -> list[str]:
    """One a dependency, in the order of pyproject.toml; the highest of several bounds on the same package."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"]]
    requirements += [each for name, listed in extras.items() if name not in _OWN_ENVIRONMENTS for each in listed]
    lowest: dict[str, str] = {}
    for requirement in requirements:
        if bound := _BOUND.match(requirement):
            known = lowest.get(bound["name"], "0")
            lowest[bound["name"]] = max(known, bound["version"], key=_numbers)
    return [f"{name}=={version}" for name, version in lowest.items()]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


if __name__ == "__main__":
    print("\n".join(constraints()))
