"""The table as Markdown, and as a page in headless Chromium."""

import json
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.evaluation.tables.conftest import HOSTILE
from ureca.evaluation.measures import mean_of
from ureca.evaluation.predictions import Prediction
from ureca.evaluation.settings import TableSettings
from ureca.evaluation.tables.build import Evaluated, EvaluationTable, build_table
from ureca.evaluation.tables.formats import to_html, to_markdown, to_text, write_table


def small_table() -> EvaluationTable:
    regions = [
        Prediction("one", 0, "a car", ("a car",), None, 0.2),
        Prediction("two", 0, "", ("a car",), None, 0.2, failure="too_small"),
    ]
    models = [
        Evaluated(
            name,
            regions,
            [
                mean_of("ROUGE", [rouge, 0]),
                mean_of("Duplicates", [duplicates, 0]),
                mean_of("Listener ceiling", [rouge, rouge]),
                mean_of("METEOR", [0.5, 0.5]),
            ],
        )
        for name, rouge, duplicates in (("contour", 0.5, 1), ("URECA", 1, 0))
    ]
    return build_table(models, TableSettings(num_resamples=100), title="Two images")


def test_to_markdown_has_figures_intervals_and_notes() -> None:
    lines = to_markdown(small_table()).splitlines()
    assert lines[0] == "# Two images"
    head = next(line for line in lines if line.startswith("| model"))
    assert head == (
        "| model | regions | images | BLEU@1 | BLEU@2 | BLEU@3 | BLEU@4 | ROUGE | METEOR | BERTScore | Duplicates "
        "| Listener ceiling |"
    )
    first, second = lines[lines.index(head) + 2 : lines.index(head) + 4]
    assert first == (
        "| contour | 2 | 2 | – | – | – | – | 25.00 (0.0 to 50.0) | 50.00 (50.0 to 50.0) | – "  # noqa: RUF001
        "| 50.00 (0.0 to 100.0) | 50.00 (50.0 to 50.0) |"
    )
    # The best figure is bold: the higher or the lower one; equal figures and ceilings are not.
    assert [cell for cell in second.split("|") if "**" in cell] == [
        " **50.00** (0.0 to 100.0) ",
        " **0.00** (0.0 to 0.0) ",
    ]
    notes = "\n".join(lines[lines.index("**All models**") :])
    assert "Not measured: BLEU@1, BLEU@2, BLEU@3, BLEU@4, BERTScore (it was not asked for)." in notes
    assert r"1 of 2 regions have no caption and count as blank (too\_small: 1)." in notes
    assert "## By depth" not in "\n".join(lines)


def test_best_figure_of_equal_texts_is_not_marked() -> None:
    regions = [Prediction("one", 0, "a car", ("a car",), None, 0.2)]
    models = [Evaluated(name, regions, [mean_of("ROUGE", [value])]) for name, value in (("a", 0.50001), ("b", 0.5))]
    table = build_table(models, TableSettings(num_resamples=100), title="Close")
    assert "**50.00**" not in to_markdown(table)
    assert 'class="value best"' not in to_html(table)


def test_to_text_has_measures_down_and_models_across() -> None:
    lines = to_text(small_table()).splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["contour", "URECA"], ["regions", "2"]]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["without", "a", "caption", "1", "1"]
    assert next(line for line in lines if line.startswith("ROUGE")).split() == ["ROUGE", "25.00", "50.00"]


def test_to_markdown_with_hostile_names_keeps_columns(hostile_table: EvaluationTable) -> None:
    text = to_markdown(hostile_table)
    assert "<" not in text
    assert "\n# c" not in text
    rows = [line.replace(r"\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {rows[0].count("|"), rows[0].count("|") + 1}  # one more for the group
    assert "](" not in text.replace(r"\](", "")


def test_to_html_with_hostile_names_has_no_script(hostile_table: EvaluationTable) -> None:
    page = to_html(hostile_table)
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("<style>") == page.count("</style>") == page.count("</title>") == 1


@pytest.fixture(scope="module")
def address(hostile_table: EvaluationTable, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("table")
    write_table(hostile_table, folder)
    return (folder / "table.html").as_uri()


@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_html_page_in_browser_shows_names_as_text_and_requests_nothing(
    request: pytest.FixtureRequest, hostile_table: EvaluationTable, address: str, device: str
) -> None:
    browser: webdriver.Chrome = request.getfixturevalue(device)
    browser.get(address)
    assert browser.title == " ".join(HOSTILE.split())
    assert browser.find_element(By.TAG_NAME, "h1").text == " ".join(HOSTILE.split())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert asked == {address}
    assert browser.get_log("browser") == []  # nothing that the page's policy had to stop
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    rows = browser.find_elements(By.CSS_SELECTOR, "tbody tr:not(.group)")
    assert len(rows) == sum(len(model.groups) for model in hostile_table.models)
    # The models' names stay in view when the figures move aside.
    moved = browser.execute_script(
        "const box = document.querySelector('.scroll'), name = box.querySelector('tbody th');"
        "const before = name.getBoundingClientRect().left; box.scrollLeft = 300;"
        "return [box.scrollLeft, name.getBoundingClientRect().left - before]"
    )
    assert moved == [300, 0]
