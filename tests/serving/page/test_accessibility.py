"""The web page by keyboard, on a phone, and in both colour schemes, in headless Chromium."""

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.browser import contrast, tap
from tests.serving.page.page import INNER, LEFT, RIGHT, Page
from tests.serving.page_service import HEIGHT, WIDTH


def test_page_regions_by_keyboard(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    stage = page.one(".stage")
    assert desktop.switch_to.active_element == stage
    stage.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page.outlined == page.outline_of(5)
    stage.send_keys(Keys.ENTER)
    page.until("#spoken", "Region 5: The left yellow thing.")
    stage.send_keys(Keys.TAB)
    for _ in range(9):  # through the buttons of the zoom and of the card to the list
        if desktop.switch_to.active_element.get_attribute("role") == "treeitem":
            break
        desktop.switch_to.active_element.send_keys(Keys.TAB)
    item = desktop.switch_to.active_element
    assert item.get_attribute("data-id") == "5"
    assert item.value_of_css_property("outline-style") == "solid"
    item.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    page.until(".card .caption", "The right blue thing.")
    desktop.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until(".card .hint", "4 of 4 regions captioned")


def test_page_points_and_boxes_by_keyboard(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.use("point")
    stage = page.one(".stage")
    stage.send_keys(Keys.ARROW_LEFT, Keys.ARROW_RIGHT, " ")  # the middle
    page.wait_for('[data-action="commit"]')
    stage.send_keys(Keys.BACKSPACE)
    page.until(".card .hint", "0 of 4 regions captioned")
    page.use("box")
    stage.send_keys(
        *[Keys.ARROW_LEFT] * 4, *[Keys.ARROW_UP] * 4, " ", *[Keys.ARROW_RIGHT] * 8, *[Keys.ARROW_DOWN] * 8, " "
    )
    page.until(".card .facts", "a box")
    page.wait_for('[data-action="commit"]')
    stage.send_keys(Keys.ENTER)
    page.until(".card .caption", "The middle red thing.")
    stage.send_keys(" ", Keys.ARROW_RIGHT, Keys.ARROW_DOWN, " ")
    page.until(".card .facts", "a box")
    stage.send_keys(Keys.ESCAPE)
    page.until(".card .hint", "1 of 5 regions captioned")


def test_page_keyboard_order_is_the_order_on_the_screen(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.use("brush")
    script = """const at = document.activeElement;
    return at.dataset.action ?? at.dataset.id ?? (at.id || at.name || at.getAttribute("aria-label") || at.tagName);"""
    desktop.execute_script("document.querySelector('header a').focus()")
    names = []
    for _ in range(14):
        ActionChains(desktop).send_keys(Keys.TAB).perform()
        names.append(desktop.execute_script(script))
    assert names == [
        "mode",
        "diameter",
        "everything",
        "another",
        "question",
        "SUMMARY",
        f"{file.name}: use the arrow keys to move through its regions",
        "Zoom out",
        "Zoom in",
        "Show the whole image",
        "json",
        "curl",
        "save-coco",
        "save-json",
    ]


def test_page_on_phone_has_taps_and_one_column(phone: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(phone, address).upload(file)
    tap(phone, page.one(".stage svg"), INNER[0] / WIDTH, INNER[1] / HEIGHT)
    page.until(".card .caption", "The left yellow thing.")
    page.use("point")
    tap(phone, page.one(".stage svg"), RIGHT[0] / WIDTH, RIGHT[1] / HEIGHT)
    page.until(".card .facts", "1 inside")
    page.act("commit")
    page.until(".card .caption", "The right blue thing.")
    assert page.one(".card").location["y"] >= page.one(".stage").location["y"] + page.one(".stage").size["height"]
    width, screen = phone.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= screen == 390


def test_page_on_phone_has_large_targets_and_pinches(phone: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(phone, address)
    small = """const targets = "a, button, summary, label, input:not([type=file]), [role=treeitem]";
    return [...document.querySelectorAll(targets)]
    .filter((element) => element.checkVisibility() && !element.closest(".visually-hidden"))
    .filter((element) => { const box = element.getBoundingClientRect(); return Math.min(box.width, box.height) < 24; })
    .map((element) => element.outerHTML);"""
    assert phone.execute_script(small) == []
    page.upload(file)
    tap(phone, page.one(".stage svg"), INNER[0] / WIDTH, INNER[1] / HEIGHT)
    page.until(".card .caption", "The left yellow thing.")
    page.one("#options summary").click()
    for tool in ("select", "point", "box", "brush"):
        page.use(tool)
        assert phone.execute_script(small) == []
    box = page.one(".stage").rect
    middle, height = box["x"] + box["width"] / 2, box["y"] - phone.execute_script("return scrollY") + 60
    fingers = lambda gap: [{"x": middle + side * gap, "y": height, "id": side + 1} for side in (-1, 1)]  # noqa: E731
    for kind, points in (
        ("touchStart", fingers(20)[:1]),
        ("touchStart", fingers(20)),
        ("touchMove", fingers(40)),
        ("touchMove", fingers(60)),
        ("touchEnd", []),
    ):
        phone.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.until(".zoom .factor", "3.0")
    assert "painted" not in page.one(".card").text  # a pinch is no stroke
    width, screen = phone.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= screen == 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_text_has_contrast_in_both_color_schemes(
    desktop: webdriver.Chrome, address: str, file: Path, scheme: str
) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page = Page(desktop, address).upload(file)
    page.at(LEFT).click().perform()
    page.until(".alike", "The right blue thing.")
    for selector in (
        ".this .caption",
        ".card h3",
        ".card .facts",
        ".alike small",
        ".tree .none",
        "#everything",
        "#status",
    ):
        assert contrast(desktop, page.one(selector)) >= 4.5, selector
    desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
