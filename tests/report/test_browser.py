"""Interaction with the report in headless Chromium."""

import json
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser import contrast, tap
from tests.report.rows import drawn, failed_row, grey_pixels, make_region, make_row
from ureca.data.partitions import PartitionReport
from ureca.report.page import write_report

HOSTILE = (
    "</script x</script><script>document.title='taken'</script>"
    "<img src=http://198.51.100.1/x onerror=alert(1)> \"'&amp;"
)


def rows() -> list[dict[str, Any]]:
    """A whole with two like parts, one of which has a part of its own; a region left out; a second, hostile image."""
    whole = make_region(10, drawn(20, 20, 280, 180), caption="the whole", short_caption="whole, in short")
    left = make_region(11, drawn(40, 40, 140, 160), parent_id=10, depth=1, caption="left half", lookalike_ids=[12])
    right = make_region(12, drawn(170, 40, 260, 160), parent_id=10, depth=1, caption="right half", lookalike_ids=[11])
    deep = make_region(13, drawn(60, 60, 120, 140), parent_id=11, depth=2, caption="innermost", verdict="rejected")
    right |= {"verdict": "self_checked", "detailed_caption": f"{'a long text ' * 20} with a lighthouse"}
    gone = make_region(14, drawn(0, 0, 15, 15), status="skipped:area_below_minimum", caption=None, short_caption=None)
    hostile = make_region(0, drawn(20, 20, 280, 180), caption=HOSTILE, short_caption=HOSTILE, detailed_caption=HOSTILE)
    return [
        make_row("first", [whole, left, right, deep, gone]),
        make_row(HOSTILE, [hostile], uri=HOSTILE),
        failed_row("broken", "truncated", "ends after 9 bytes"),
    ]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    to = tmp_path_factory.mktemp("report") / "report.html"
    write_report(rows(), grey_pixels, to, title="a run", work=PartitionReport(seconds={"masks": 3.0}))
    return to.as_uri()


class Panel:
    """One image on the page."""

    def __init__(self, browser: webdriver.Chrome, number: int = 0) -> None:
        self.browser = browser
        wait = WebDriverWait(browser, 20)
        panels = wait.until(lambda browser: browser.find_elements(By.CSS_SELECTOR, ".panel.built"))
        self.root: WebElement = panels[number]
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.root)

    def one(self, selector: str) -> WebElement:
        return self.root.find_element(By.CSS_SELECTOR, selector)

    def pointer(self, x: float, y: float) -> ActionChains:
        """A pointer moved over a place in the picture, in pixels of the image (300 x 200)."""
        svg = self.one(".stage svg")
        size = svg.size
        at = (round((x / 300 - 0.5) * size["width"]), round((y / 200 - 0.5) * size["height"]))
        return ActionChains(self.browser).move_to_element_with_offset(svg, *at)

    @property
    def card(self) -> str:
        return self.one(".card").text

    @property
    def marked(self) -> list[str | None]:
        """Ids of the look-alikes that are outlined in the picture."""
        return [path.get_attribute("data-id") for path in self.root.find_elements(By.CSS_SELECTOR, "path.lookalike")]


@pytest.mark.parametrize(
    ("x", "y", "caption"),
    [(90, 100, "innermost"), (50, 100, "left half"), (30, 30, "the whole"), (200, 90, "right half")],
)
def test_report_pointing_at_picture_shows_deepest_region(
    desktop: webdriver.Chrome, address: str, x: float, y: float, caption: str
) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    panel.pointer(x, y).perform()
    assert panel.one(".card .caption").text == caption
    current = panel.one('[role="treeitem"].current')
    outline = panel.one(".front").get_attribute("d")
    assert outline == panel.one(f'path[data-id="{current.get_attribute("data-id")}"]').get_attribute("d")
    panel.pointer(2, 198).perform()
    assert "4 of 5 regions captioned" in panel.card


def test_report_card_shows_all_facts_of_region(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    panel.pointer(50, 100).perform()
    for text in ("Region 11", "depth 1", "20.0 % of the image", "left half", "short 11", "detailed 11", "right half"):
        assert text in panel.card
    panel.pointer(90, 100).perform()
    assert "rejected" in panel.card


def test_report_pointing_at_list_marks_picture(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    ActionChains(desktop).move_to_element(panel.one('[role="treeitem"][data-id="11"]')).perform()
    assert panel.one(".card .caption").text == "left half"
    assert panel.marked == ["12"]


def test_report_look_alikes_link_to_each_other(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    panel.one('[role="treeitem"][data-id="11"]').click()
    link = panel.one('.card .lookalikes [aria-label="Region 12"]')
    ActionChains(desktop).move_to_element(link).perform()
    assert "pointed" in str(panel.one('path[data-id="12"]').get_attribute("class"))
    link.click()
    assert panel.one(".card .caption").text == "right half"
    assert panel.marked == ["11"]


def test_report_keyboard_navigates_tree(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    panel.one(".stage").send_keys(Keys.TAB)
    focused = desktop.switch_to.active_element
    assert focused.get_attribute("data-id") == "10"
    captions = []
    for key in (
        Keys.ARROW_DOWN,
        Keys.ARROW_DOWN,
        Keys.ARROW_LEFT,
        Keys.ARROW_LEFT,
        Keys.END,
        Keys.HOME,
        Keys.ARROW_RIGHT,
    ):
        desktop.switch_to.active_element.send_keys(key)
        captions.append(panel.one(".card .caption").text)
    assert captions == ["left half", "innermost", "left half", "the whole", "right half", "the whole", "left half"]
    focused = desktop.switch_to.active_element
    assert focused.get_attribute("aria-selected") == "true"
    assert focused.value_of_css_property("outline-style") == "solid"
    focused.send_keys(Keys.ESCAPE)
    assert "4 of 5 regions captioned" in panel.card


def test_report_keyboard_navigates_picture(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    panel.one(".stage").send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert panel.one(".card .caption").text == "left half"


def test_report_region_without_caption_is_listed_with_reason(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    panel.pointer(5, 5).perform()
    assert "4 of 5 regions captioned" in panel.card
    panel.one("summary").click()
    panel.one('[role="treeitem"][data-id="14"]').click()
    assert "No caption: skipped:area_below_minimum" in panel.card


def test_report_search_shows_matches_only(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    desktop.find_element(By.ID, "query").send_keys("HALF right")
    assert desktop.find_element(By.ID, "matches").text == "1 region in 1 image"
    shown = [item for item in panel.root.find_elements(By.CSS_SELECTOR, '[role="treeitem"]') if item.is_displayed()]
    assert [item.get_attribute("data-id") for item in shown] == ["12"]
    panel.pointer(50, 100).perform()
    assert panel.root.find_elements(By.CSS_SELECTOR, ".focused .card .caption") == []
    desktop.find_element(By.ID, "query").clear()
    desktop.find_element(By.ID, "query").send_keys(" ")
    assert desktop.find_element(By.ID, "matches").text == ""
    desktop.find_element(By.CSS_SELECTOR, '#kind option[value="left-out"]').click()
    shown = [item for item in panel.root.find_elements(By.CSS_SELECTOR, '[role="treeitem"]') if item.is_displayed()]
    assert [item.get_attribute("data-id") for item in shown] == ["14"]


def test_report_list_has_final_captions_and_says_which_are_self_checked(
    desktop: webdriver.Chrome, address: str
) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    texts = {id: panel.one(f'[role="treeitem"][data-id="{id}"] .text').text for id in (10, 11, 12)}
    assert texts == {10: "the whole", 11: "left half", 12: "right half"}
    assert panel.one('[role="treeitem"][data-id="12"] .self_checked').text == "self-checked"
    desktop.find_element(By.CSS_SELECTOR, '#kind option[value="self-checked"]').click()
    assert desktop.find_element(By.ID, "matches").text == "1 region in 1 image"


def test_report_search_shows_why_a_region_matches(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    panel = Panel(desktop)
    query = desktop.find_element(By.ID, "query")
    query.send_keys("RIGHT lighthouse")
    item = panel.one('[role="treeitem"][data-id="12"] .text')
    # Not Selenium's text, which leaves out what the width of the list cuts off.
    text = str(item.get_property("textContent"))
    assert text.startswith("right half detailed: ") and text.endswith("with a lighthouse")
    marks = [mark.get_property("textContent") for mark in item.find_elements(By.TAG_NAME, "mark")]
    assert marks == ["right", "lighthouse"]
    query.clear()
    query.send_keys("half")
    assert panel.one('[role="treeitem"][data-id="12"] .text').get_property("textContent") == "right half"
    query.clear()
    query.send_keys(" ")
    assert panel.root.find_elements(By.CSS_SELECTOR, '[role="treeitem"] mark') == []


def test_report_on_phone_shows_tapped_caption(phone: webdriver.Chrome, address: str) -> None:
    phone.get(address)
    panel = Panel(phone)
    tap(phone, panel.one(".stage svg"), 90 / 300, 1 / 2)
    assert panel.one(".card .caption").text == "innermost"
    width, screen = phone.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= screen == 390


def test_report_with_hostile_text_shows_text_and_requests_nothing(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get_log("performance")
    desktop.get_log("browser")
    desktop.get(address)
    panel = Panel(desktop, 1)
    assert panel.one(".card h2").text == HOSTILE
    panel.pointer(100, 100).perform()
    assert panel.one(".card .caption").text == HOSTILE
    assert desktop.title == "a run"
    messages = [json.loads(entry["message"])["message"] for entry in desktop.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert address in urls
    assert [url for url in urls if url != address and not url.startswith("data:image/jpeg")] == []
    assert desktop.get_log("browser") == []


def test_report_figures_link_to_failed_images(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    desktop.find_element(By.CSS_SELECTOR, '.figures a[href="#failures"]').click()
    table = desktop.find_element(By.CSS_SELECTOR, "#failures table")
    assert "ends after 9 bytes" in table.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_text_has_contrast_in_both_schemes(desktop: webdriver.Chrome, address: str, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    desktop.get(address)
    panel = Panel(desktop)
    panel.pointer(50, 100).perform()
    for selector in (".card .caption", ".card dt", ".card .facts", ".tree .number", ".link"):
        assert contrast(desktop, panel.one(selector)) >= 4.5, selector
    desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
