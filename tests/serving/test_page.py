"""The web page in headless Chromium."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from skimage.filters import gaussian

from tests.browser import contrast, start, tap
from tests.serving.page_service import HEIGHT, WIDTH, PageBackend, picture, serving
from ureca.masks import rle as rle_codec
from ureca.serving.schemas import ApiError

HOSTILE = "</p><script>document.title='taken'</script><img src=http://198.51.100.1/x onerror=alert(1)> \"'&amp; left"
TOKEN = "a-token-for-the-test"  # noqa: S105
TIMEOUT_S = 60  # an idle machine needs none of them
LEFT, RIGHT, INNER, OUTSIDE = (90, 120), (230, 100), (55, 80), (150, 100)


@pytest.fixture(scope="module")
def backend() -> PageBackend:
    return PageBackend()


@pytest.fixture(scope="module")
def address(backend: PageBackend) -> Iterator[str]:
    with serving(backend) as address:
        yield address


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / 'the "picture"; it\'s.png'
    Image.fromarray(picture()[0]).save(path)
    return path


@pytest.fixture(scope="module")
def desktop(chromium: tuple[str, str]) -> Iterator[webdriver.Chrome]:
    browser = start(chromium, phone=False)
    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    browser.execute_cdp_cmd("Browser.grantPermissions", permissions)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def phone(chromium: tuple[str, str]) -> Iterator[webdriver.Chrome]:
    browser = start(chromium, phone=True)
    yield browser
    browser.quit()


class Page:
    """The page, with the actions of its users."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        browser.get(address)

    def upload(self, file: Path) -> "Page":
        self.one("#file").send_keys(str(file))
        self.until("#status", "4 regions, 0 captioned")
        self.wait_for('[role="treeitem"] .badge')  # the look-alikes are known
        return self

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, selector: str) -> WebElement:
        return WebDriverWait(self.browser, TIMEOUT_S).until(
            lambda _: next((found for found in self.all(selector) if found.is_displayed()), None),
            f"nothing matches {selector}",
        )

    def until(self, selector: str, text: str) -> None:
        """Wait for a text. Reads it in one step, because the page replaces its elements."""
        script = "return document.querySelector(arguments[0])?.textContent ?? ''"
        read = lambda: self.browser.execute_script(script, selector)  # noqa: E731
        try:
            WebDriverWait(self.browser, TIMEOUT_S, poll_frequency=0.05).until(lambda _: text in read())
        except Exception as error:
            raise AssertionError(f"{selector} says {read()!r}, not {text!r}") from error

    def at(self, place: tuple[float, float]) -> ActionChains:
        """Move the pointer to a place of the picture, in its pixels."""
        svg = self.one(".stage svg")
        size = svg.size
        offset = (round((place[0] / WIDTH - 0.5) * size["width"]), round((place[1] / HEIGHT - 0.5) * size["height"]))
        return ActionChains(self.browser).move_to_element_with_offset(svg, *offset)

    def use(self, tool: str) -> None:
        self.one(f'.choice input[value="{tool}"]').click()

    def act(self, action: str) -> None:
        """Press a button of the card, which the page may redraw at any time."""
        WebDriverWait(self.browser, TIMEOUT_S, ignored_exceptions=[StaleElementReferenceException]).until(
            lambda _: self.wait_for(f'[data-action="{action}"]').click() is None
        )

    def copied(self, action: str) -> str:
        """Press a button, and return the text that it copies."""
        self.act(action)
        self.until("#notice", "Copied.")
        return str(self.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])"))

    def marked(self, selector: str) -> list[str]:
        return [word.text for word in self.all(f"{selector} mark")]

    @property
    def outlined(self) -> str:
        return str(self.one(".front").get_attribute("d"))

    def outline_of(self, region_id: int) -> str:
        return str(self.one(f'.region[data-id="{region_id}"]').get_attribute("d"))


def requested(browser: webdriver.Chrome) -> list[str]:
    """Return the requested URLs since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def test_page_example_opens_without_requests_to_other_hosts(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get_log("performance")
    desktop.get_log("browser")
    page = Page(desktop, address)
    page.until("#model", "model ureca")
    assert [
        image.get_property("complete") and image.get_property("naturalWidth") for image in page.all(".examples img")
    ] == [600, 448, 448, 448]
    page.one('[data-example="examples/trees.png"]').click()
    page.until("#status", " captioned")
    assert len(page.all(".region")) > 20
    urls = requested(desktop)
    assert f"{address}v1/regions" in urls
    assert [url for url in urls if not url.startswith((address, f"blob:{address}"))] == []
    assert desktop.get_log("browser") == []
    page.one("#another").click()
    assert page.wait_for("#start").is_displayed()


def test_docs_page_tries_the_api_without_requests_to_other_hosts(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get_log("performance")
    desktop.get_log("browser")
    page = Page(desktop, f"{address}docs")
    page.wait_for("#operations-captions-captions_v1_captions_post").click()
    page.wait_for(".examples-select")
    page.wait_for(".try-out__btn").click()
    page.wait_for(".execute").click()
    page.until(".live-responses-table", '"finish_reason"')
    urls = requested(desktop)
    assert f"{address}openapi.json" in urls and f"{address}v1/captions" in urls
    assert [url for url in urls if not url.startswith((address, "data:"))] == []
    assert desktop.get_log("browser") == []  # where a policy that forbids something says so


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_page_dropped_or_pasted_image_opens(desktop: webdriver.Chrome, address: str, way: str) -> None:
    page = Page(desktop, address)
    desktop.execute_script(
        """const canvas = document.createElement("canvas");
        canvas.width = 90; canvas.height = 60;
        const pen = canvas.getContext("2d");
        pen.fillStyle = "#999"; pen.fillRect(0, 0, 90, 60);
        pen.fillStyle = "#22c"; pen.fillRect(20, 20, 30, 30);
        canvas.toBlob((blob) => {
          const data = new DataTransfer();
          data.items.add(new File([blob], "given.png", { type: "image/png" }));
          const event = arguments[0] === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
          document.body.dispatchEvent(event);
        });""",
        way,
    )
    page.until(".card h2", "given.png")
    page.until("#status", " captioned")
    assert len(page.all(".region")) > 0


def test_page_hover_outlines_and_click_captions(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.at(INNER).perform()
    assert page.outlined == page.outline_of(5)
    assert "not captioned yet" in page.one(".card").text
    page.at(INNER).click().perform()
    page.until(".card .caption", "The left yellow thing.")
    page.until("#spoken", "Region 5: The left yellow thing.")
    page.at((5, 195)).perform()  # the selection stays
    assert page.one(".card .caption").text == "The left yellow thing."
    assert page.one('[role="treeitem"][data-id="5"] .text').text == "The left yellow thing."
    for fact in ("Region 5", "part of 1", "depth 1", "1.0 % of the image"):
        assert fact in page.one(".card .facts").text


def test_page_lookalikes_show_differing_words(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.at(LEFT).click().perform()
    page.until(".this .caption", "The left blue thing.")
    page.until(".alike", "The right blue thing.")
    assert "Differences" in page.one(".card h3").text
    assert (page.marked(".this .caption"), page.marked(".alike")) == (["left"], ["right"])
    assert [path.get_attribute("data-id") for path in page.all("path.lookalike")] == ["2"]
    link = page.one('.alike [aria-label="Region 2"]')
    ActionChains(desktop).move_to_element(link).perform()
    assert "pointed" in str(page.one('.region[data-id="2"]').get_attribute("class"))
    link.click()
    assert page.one(".this .caption").text == "The right blue thing."
    assert page.marked(".alike") == ["left"]


def test_page_equal_captions_are_reported(
    desktop: webdriver.Chrome, address: str, backend: PageBackend, file: Path
) -> None:
    page = Page(desktop, address).upload(file)
    backend.text = "A thing."
    page.at(LEFT).click().perform()
    page.until(".card .problem", "Region 2 has the same caption")
    backend.text = None
    assert page.marked(".card") == []


def test_page_points_create_a_region(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.use("point")
    page.at(INNER).click().perform()
    page.until(".card .facts", "1 inside")
    page.wait_for('[data-action="commit"]')
    assert page.outlined == page.outline_of(5)
    page.use("0")
    page.at(RIGHT).click().perform()
    page.use("1")
    page.at(LEFT).click().perform()
    page.until(".card .facts", "2 inside, 1 outside")
    page.wait_for('[data-action="commit"]')
    assert page.outlined == page.outline_of(1)
    assert [mark.text for mark in page.all(".marks span")] == ["+", "\N{MINUS SIGN}", "+"]
    page.wait_for("#undo").click()
    page.until(".card .facts", "1 inside, 1 outside")
    page.wait_for("#redo").click()
    page.until(".card .facts", "2 inside, 1 outside")
    assert not page.one("#redo").is_enabled()
    page.one(".stage").send_keys(Keys.CONTROL, "z")
    page.until(".card .facts", "1 inside, 1 outside")
    page.act("discard")
    assert page.all(".marks span") == []
    with_shift = page.at(RIGHT).key_down(Keys.SHIFT).click().key_up(Keys.SHIFT)
    with_shift.perform()
    page.until(".card .facts", "1 outside")
    assert "Add a point inside" in page.one(".card").text


def test_page_created_region_is_captioned_and_removed(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.use("point")
    page.at(OUTSIDE).click().perform()
    page.wait_for('[data-action="commit"]')
    desktop.switch_to.active_element.send_keys(Keys.ENTER)
    page.until(".card .caption", "The middle grey thing.")  # the background around the point
    page.until("#status", "5 regions, 1 captioned")
    command = page.copied("curl")
    request = json.loads(shlex.split(command)[-1].removeprefix("request="))
    [point] = request["regions"][0]["points"]
    assert point["label"] == 1
    assert (round(point["x"]), round(point["y"])) == pytest.approx(OUTSIDE, abs=1)
    page.act("remove")
    page.until("#status", "4 regions, 0 captioned")


def test_page_existing_region_is_not_added_twice(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.use("point")
    page.at(RIGHT).click().perform()
    page.act("commit")
    page.until(".card .caption", "The right blue thing.")
    page.until("#status", "4 regions, 2 captioned")


def test_page_box_creates_a_region(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.use("box")
    page.at((125, 75)).click_and_hold().perform()
    page.at((175, 125)).perform()
    assert float(str(page.one("rect.box").get_attribute("width"))) == pytest.approx(50, abs=1)
    ActionChains(desktop).release().perform()
    page.act("commit")
    page.until(".card .caption", "The middle red thing.")
    region = json.loads(page.copied("json"))
    assert region["bbox_xywh"] == pytest.approx([125, 75, 50, 50], abs=1)
    assert (region["region_id"], region["parent_id"], region["caption"]) == (7, -1, "The middle red thing.")


def test_page_change_between_points_and_box_discards_the_draft(
    desktop: webdriver.Chrome, address: str, file: Path
) -> None:
    page = Page(desktop, address).upload(file)
    page.use("point")
    page.at(INNER).click().perform()
    page.until(".card .facts", "1 inside")
    page.use("box")
    assert page.all(".marks span") == []
    page.at((125, 75)).click_and_hold().perform()
    page.at((175, 125)).release().perform()
    page.until(".card .pending", "the region is the box itself")
    page.use("point")
    assert float(str(page.one("rect.box").get_attribute("width"))) == 0
    page.use("box")
    page.at((28, 58)).click_and_hold().perform()
    page.at((118, 148)).release().perform()
    page.until(".card .pending", "the segment that matches the box")


def test_page_captions_stream_and_stop(
    desktop: webdriver.Chrome, address: str, backend: PageBackend, file: Path
) -> None:
    page = Page(desktop, address).upload(file)
    while backend.slots.acquire(blocking=False):
        pass
    stopped = backend.stopped
    page.one("#everything").click()
    page.until("#status", "Captioning: 0 of 4")
    backend.slots.release()
    page.until("#status", "Captioning: 1 of 4")
    texts = desktop.execute_script("return [...document.querySelectorAll('.tree .text')].map(e => e.textContent)")
    assert sum(text == "captioning …" for text in texts) == 3
    desktop.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until("#status", "4 regions, 1 captioned")
    # Room only after the service has noticed: with room it might be done before.
    WebDriverWait(desktop, TIMEOUT_S).until(lambda _: backend.stopped == stopped + 1)
    backend.slots.release(1000)
    page.one("#everything").click()
    page.until("#spoken", "All 4 regions are captioned.")
    whole = json.loads(page.copied("json"))
    assert [region["caption"] for region in whole["regions"]] == [
        "The left blue thing.",
        "The left yellow thing.",
        "The right blue thing.",
        "The right yellow thing.",
    ]
    assert [region["lookalike_ids"] for region in whole["regions"]] == [[2], [6], [1], [5]]


def test_page_copied_curl_gives_the_same_captions(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    page = Page(desktop, address).upload(file)
    page.at(LEFT).click().perform()
    page.until(".card .caption", "The left blue thing.")
    page.until("#status", "4 regions, 2 captioned")
    [caption] = pasted(page.copied("curl"), file.parent)
    assert caption["caption"] == "The left blue thing."
    page.at((5, 5)).click().perform()
    page.until(".card h2", file.name)
    assert [found["region_id"] for found in pasted(page.copied("curl"), file.parent)] == [1, 2, 5, 6]


def test_page_copied_curl_of_an_example_needs_no_file(
    desktop: webdriver.Chrome, backend: PageBackend, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    with serving(backend, token=TOKEN) as guarded:
        page = Page(desktop, guarded)
        page.wait_for("#token-field").send_keys(f"Bearer {TOKEN}{Keys.ENTER}")
        page.until("#model", "model ureca")
        page.one('[data-example="examples/robots.png"]').click()
        page.wait_for('[role="treeitem"] .badge')
        num_regions = len(page.all(".region"))
        # The pointer is where the example was, on the picture: the card is that of a region, and changes as it leaves.
        ActionChains(desktop).move_to_element(page.one(".brand")).perform()
        page.until(".card h2", "robots.png")
        assert len(pasted(page.copied("curl"), tmp_path, URECA_TOKEN=TOKEN)) == num_regions


def pasted(command: str, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """Run a command as a user who pastes it into a shell; returns the captions of the response."""
    shell = subprocess.run(
        ["bash", "-c", command],
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert shell.returncode == 0, shell.stderr
    captions: list[dict[str, Any]] = json.loads(shell.stdout)["captions"]
    return captions


def test_page_without_clipboard_shows_the_text(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    desktop.execute_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as without HTTPS
    page.act("json")
    shown = json.loads(str(page.wait_for("#alert textarea").get_property("value")))
    assert [region["region_id"] for region in shown["regions"]] == [1, 5, 2, 6]


def test_page_busy_service_is_retried_after_the_delay(
    desktop: webdriver.Chrome, address: str, backend: PageBackend, file: Path
) -> None:
    page = Page(desktop, address).upload(file)
    backend.api_error = ApiError(429, "queue_full", "all queues are full", retry_after_s=3600)
    page.at(INNER).click().perform()
    page.until("#alert", "The service is busy. all queues are full")
    page.until("#alert", "Try again in 3")  # from the error event of the stream
    assert not page.one("#alert button").is_enabled()
    assert page.one('[role="treeitem"][data-id="5"] .text').text == "not captioned yet"
    page.use("point")
    backend.api_error = ApiError(429, "queue_full", "segmenters are busy", retry_after_s=1)
    page.at(INNER).click().perform()
    page.until("#alert", "segmenters are busy")
    assert page.one("#alert button").text == "Try again in 1 s"
    WebDriverWait(desktop, TIMEOUT_S).until(lambda _: page.one("#alert button").is_enabled())
    page.one("#alert button").click()
    page.act("commit")
    page.until(".card .caption", "The left yellow thing.")
    assert not page.one("#alert").is_displayed()


def test_page_api_error_names_the_field(
    desktop: webdriver.Chrome, address: str, backend: PageBackend, file: Path
) -> None:
    page = Page(desktop, address).upload(file)
    backend.lasting_error = ApiError(422, "empty_mask", "the mask has no pixel", param="regions[0].rle")
    page.at(INNER).click().perform()
    page.until("#status", "4 regions, 0 captioned, 2 failed")  # it and its look-alike, each in a request of its own
    backend.lasting_error = None
    page.until(".card .problem", "The request is invalid. regions[0].rle: the mask has no pixel")
    page.until('[role="treeitem"][data-id="5"] .text', "failed: the mask has no pixel")
    page.use("point")
    backend.api_error = ApiError(422, "no_region", "no region fits these points", param="regions[0]")
    page.at(INNER).click().perform()
    page.until(".card .problem", "no region fits these points")


def test_page_invalid_image_shows_an_error(
    desktop: webdriver.Chrome, address: str, backend: PageBackend, tmp_path: Path, file: Path
) -> None:
    with serving(backend, limits={"max_body_bytes": 1000}) as small:
        page = Page(desktop, small)
        page.one("#file").send_keys(str(file))
        page.until("#alert", "The image is too large for this service.")
    text = tmp_path / "a.png"
    text.write_text("not an image")
    page = Page(desktop, address)
    page.one("#file").send_keys(str(text))
    page.until("#alert", "a.png is not an image that this browser supports")
    assert page.one("#start").is_displayed()


def test_page_token_is_requested_and_not_stored(desktop: webdriver.Chrome, backend: PageBackend, file: Path) -> None:
    with serving(backend, token=TOKEN) as guarded:
        page = Page(desktop, guarded)
        page.wait_for("#token-field").send_keys("a-wrong-token" + Keys.ENTER)
        page.until("#token label", "The service does not accept this token.")
        page.one("#token-field").send_keys("caf\N{LATIN SMALL LETTER E WITH ACUTE} au lait" + Keys.ENTER)
        page.until("#token label", "A token consists of letters, digits and signs")
        page.one("#token-field").clear()
        page.one("#token-cancel").click()
        page.until("#alert", "This service requires a token. Its operator gives out tokens.")
        page.one("#alert button").click()  # try again
        page.wait_for("#token-field").send_keys(TOKEN + Keys.ENTER)
        page.until("#model", "model ureca")
        page.upload(file)
        page.at(INNER).click().perform()
        page.until(".card .caption", "The left yellow thing.")
        assert '-H "Authorization: Bearer $URECA_TOKEN"' in page.copied("curl")
        kept = desktop.execute_script(
            "return [localStorage.length, sessionStorage.length, document.cookie, location.href]"
        )
        assert kept == [0, 0, "", guarded]
        assert TOKEN not in desktop.page_source
        assert page.one("#token-field").get_property("value") == ""
        desktop.refresh()
        assert page.wait_for("#token-field").is_displayed()


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


def test_page_captions_appear_word_by_word(
    desktop: webdriver.Chrome, address: str, backend: PageBackend, file: Path
) -> None:
    page = Page(desktop, address).upload(file)
    while backend.words.acquire(blocking=False):
        pass
    page.at(INNER).click().perform()
    backend.words.release(2)
    page.until(".card .caption", "The left")
    page.until('[role="treeitem"][data-id="5"] .text', "The left")
    assert page.one(".card .caption").text == "The left"
    backend.words.release(100_000)
    page.until(".card .caption", "The left yellow thing.")


def test_page_failure_of_one_region_is_shown_there_and_retried(
    desktop: webdriver.Chrome, address: str, backend: PageBackend, file: Path
) -> None:
    page = Page(desktop, address).upload(file)
    backend.poison = 5
    page.one("#everything").click()
    page.until("#status", "4 regions, 3 captioned, 1 failed")
    assert page.one('[role="treeitem"][data-id="5"] .text').text == "failed: this region cannot be captioned"
    assert not page.one("#alert").is_displayed()
    page.one('[role="treeitem"][data-id="5"]').click()
    page.until(".card .problem", "this region cannot be captioned")
    backend.poison = None
    page.act("caption")
    page.until(".card .caption", "The left yellow thing.")
    assert page.all(".card .problem") == []
    page.until("#status", "4 regions, 4 captioned")


def test_page_question_and_settings_are_sent(
    desktop: webdriver.Chrome, address: str, backend: PageBackend, file: Path
) -> None:
    page = Page(desktop, address).upload(file)
    page.at(INNER).click().perform()
    page.until(".card .caption", "The left yellow thing.")
    first = backend.jobs[-1].settings
    page.wait_for('[name="question"]').send_keys("Which color is it?")
    page.one("#options summary").click()
    for name, value in (("max_new_tokens", "17"), ("temperature", "0.5"), ("top_p", "0.9"), ("seed", "3")):
        page.one(f'[name="{name}"]').send_keys(value)
    num_jobs = len(backend.jobs)
    page.act("again")  # the caption is one of the previous settings
    page.until(".card", "Question: Which color is it?")
    settings = backend.jobs[num_jobs].settings
    assert settings == first.model_copy(
        update={"question": "Which color is it?", "max_new_tokens": 17, "temperature": 0.5, "top_p": 0.9, "seed": 3}
    )
    assert page.all('[data-action="again"]') == []
    assert shlex.split(page.copied("curl"))[-1].startswith(
        'request={"question":"Which color is it?","max_new_tokens":17'
    )
    page.one('[name="max_new_tokens"]').send_keys("0000")
    page.one("#everything").click()
    assert page.one('[name="max_new_tokens"]').get_property("validity")["rangeOverflow"]
    assert len(backend.jobs) == num_jobs + 1


def test_page_without_a_model_has_no_question(desktop: webdriver.Chrome, backend: PageBackend, file: Path) -> None:
    with serving(backend, model=None) as address:
        page = Page(desktop, address).upload(file)
        page.wait_for("#options summary").click()
        shown = [field.get_attribute("name") for field in page.all("#options input") if field.is_displayed()]
        assert shown == ["max_new_tokens"]
        page.until("#length-unit", "words")


def test_page_polygon_creates_a_region(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.use("polygon")
    for corner in ((120, 70), (180, 70), (180, 130), (120, 130)):
        page.at(corner).click().perform()
    page.until(".card .facts", "a polygon of 4 corners")
    assert "Click the first corner again" in page.one(".card").text
    page.at((121, 71)).click().perform()
    page.wait_for('[data-action="commit"]')
    page.one(".stage").send_keys(Keys.ENTER)
    page.until(".card .caption", "The middle")
    region = json.loads(page.copied("json"))
    assert region["bbox_xywh"] == pytest.approx([120, 70, 60, 60], abs=1.5)
    assert region["area_px"] == pytest.approx(3600, rel=0.05)
    [request] = json.loads(shlex.split(page.copied("curl"))[-1].removeprefix("request="))["regions"]
    assert len(request["polygon"][0]) == 8


def test_page_brush_and_eraser_change_a_box(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.use("box")
    page.at((120, 70)).click_and_hold().perform()
    page.at((180, 130)).release().perform()
    page.until(".card .pending", "Brush and eraser change it")
    page.use("brush")
    page.until(".card .facts", "painted")
    page.at((150, 40)).click_and_hold().perform()
    page.at((150, 60)).release().perform()
    page.wait_for('[data-action="commit"]')
    painted = page.outlined
    page.use("eraser")
    page.at((150, 100)).click().perform()
    WebDriverWait(desktop, TIMEOUT_S).until(lambda _: page.outlined not in ("", painted))
    erased = page.outlined
    page.one("#undo").click()
    WebDriverWait(desktop, TIMEOUT_S).until(lambda _: page.outlined == painted)
    page.one(".stage").send_keys(Keys.CONTROL, Keys.SHIFT, "z")
    WebDriverWait(desktop, TIMEOUT_S).until(lambda _: page.outlined == erased)
    page.act("commit")
    page.until(".card .caption", "The middle")
    region = json.loads(page.copied("json"))
    inside = rle_codec.decode(region["rle"])
    expected = {(150, 45): True, (150, 75): True, (122, 128): True, (150, 100): False, (110, 100): False}
    assert {place: bool(inside[place[1], place[0]]) for place in expected} == expected
    page.act("edit")
    page.until(".card .facts", "painted")


def test_page_brush_keeps_masks_of_large_images(desktop: webdriver.Chrome, address: str) -> None:
    desktop.get(address)
    for seed, (height, width) in enumerate([(40, 60), (7, 500), (3001, 2003)]):
        mask = blobs(height, width, seed)
        rle = rle_codec.encode(mask)
        kept = desktop.execute_script(
            """const [width, height, rle] = arguments;
            const brush = new Brush({ width, height });
            brush.show(rle);
            return brush.mask();""",
            width,
            height,
            rle,
        )
        found = rle_codec.decode(kept)
        assert found.shape == mask.shape
        assert (found & mask).sum() / (found | mask).sum() > 0.97, (height, width)
        if height * width < 4_000_000:
            assert kept["counts"] == rle["counts"]


def test_page_zoomed_picture_takes_points_at_their_pixels(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    stage = page.one(".stage")
    before = stage.rect
    for _ in range(4):
        ActionChains(desktop).scroll_from_origin(ScrollOrigin.from_element(stage), 0, -300).perform()
    page.until(".zoom .factor", "\N{MULTIPLICATION SIGN}")
    assert stage.rect == before  # the page does not move
    factor = page.one(".stage svg").size["width"] / before["width"]
    assert factor > 3
    page.use("point")
    ActionChains(desktop).move_to_element(stage).click().perform()  # the middle stays where it is
    page.act("commit")
    page.until(".card .caption", "The middle")
    [point] = json.loads(shlex.split(page.copied("curl"))[-1].removeprefix("request="))["regions"][0]["points"]
    assert (point["x"], point["y"]) == pytest.approx((WIDTH / 2, HEIGHT / 2), abs=1)
    page.use("select")
    left = page.one(".stage svg").location["x"]
    ActionChains(desktop).move_to_element(stage).click_and_hold().move_by_offset(90, 0).release().perform()
    assert page.one(".stage svg").location["x"] == pytest.approx(left + 90, abs=2)
    page.until("#status", "5 regions, 1 captioned")
    assert "Region 7" in page.one(".card .facts").text  # the drag is no click
    stage.send_keys("0")
    assert page.one(".stage svg").size["width"] == pytest.approx(before["width"], abs=1)
    stage.send_keys("+")
    page.until(".zoom .factor", "1.5")
    page.one('[aria-label="Show the whole image"]').click()
    page.until(".zoom .factor", "")
    assert page.one(".stage svg").size["width"] == pytest.approx(before["width"], abs=1)


def test_page_masks_and_captions_are_downloaded(
    desktop: webdriver.Chrome, address: str, file: Path, tmp_path: Path
) -> None:
    desktop.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page = Page(desktop, address).upload(file)
    page.one("#everything").click()
    page.until("#status", "4 regions, 4 captioned")

    def download(action: str, suffix: str) -> Path:
        page.act(action)
        WebDriverWait(desktop, TIMEOUT_S).until(lambda _: list(tmp_path.glob(f"*{suffix}")))
        [path] = tmp_path.glob(f"*{suffix}")
        return path

    coco = COCO(str(download("save-coco", "-coco.json")))
    masks = {mask.id: mask for mask in picture()[1]}
    for annotation in coco.loadAnns(coco.getAnnIds()):
        own = masks[annotation["region_id"]]
        assert (coco.annToMask(annotation).astype(bool) == rle_codec.decode(own.rle)).all()
        assert annotation["area"] == own.area_px
        assert annotation["caption"].startswith("The ")
    assert len(coco.anns) == 4
    whole = json.loads(download("save-json", "-regions.json").read_text())
    assert {region["region_id"] for region in whole["regions"]} == set(masks)
    with Image.open(download("save-png", "-regions.png")) as annotated:
        assert (annotated.format, annotated.width) == ("PNG", 1000)
        assert annotated.height > 1000 * HEIGHT / WIDTH + 4 * 14  # the captions are below the picture


def test_page_region_is_cut_out(desktop: webdriver.Chrome, address: str, file: Path, tmp_path: Path) -> None:
    desktop.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page = Page(desktop, address).upload(file)
    page.at(INNER).click().perform()
    page.until(".card .caption", "The left yellow thing.")
    page.act("cut")
    WebDriverWait(desktop, TIMEOUT_S).until(lambda _: list(tmp_path.glob("*-region-5.png")))
    [path] = tmp_path.glob("*-region-5.png")
    pixels, masks = picture()
    [mask] = [mask for mask in masks if mask.id == 5]
    left, top, width, height = map(int, rle_codec.box_xywh(mask.rle))
    inside = rle_codec.decode(mask.rle)[top : top + height, left : left + width]
    with Image.open(path) as cut:
        found = np.asarray(cut.convert("RGBA"))
    assert found.shape == (height, width, 4)
    assert (found[..., 3] == 255 * inside).all()
    assert (found[inside][:, :3] == pixels[top : top + height, left : left + width][inside]).all()


def test_page_pointer_previews_the_region_of_a_first_point(desktop: webdriver.Chrome, address: str, file: Path) -> None:
    page = Page(desktop, address).upload(file)
    page.use("point")

    def previewed(place: tuple[int, int]) -> str | None:
        page.at(place).perform()
        return page.one(".preview").get_attribute("d")

    assert previewed(INNER) == page.outline_of(5)
    assert previewed(LEFT) == page.outline_of(1)
    assert previewed(OUTSIDE) == ""
    page.at(INNER).click().perform()
    page.wait_for('[data-action="commit"]')
    assert previewed(LEFT) == ""


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


def test_page_hostile_captions_are_text(
    desktop: webdriver.Chrome, address: str, backend: PageBackend, file: Path
) -> None:
    page = Page(desktop, address).upload(file)
    desktop.get_log("browser")
    backend.text = HOSTILE
    page.one("#everything").click()
    page.until("#spoken", "All 4 regions are captioned.")
    backend.text = None
    page.at(LEFT).click().perform()
    assert page.one(".this .caption").text == HOSTILE
    assert page.one('[role="treeitem"][data-id="1"] .text').text == HOSTILE
    assert page.all("p script") == page.all("p img") == []
    assert desktop.title == "URECA: captions of regions"
    assert desktop.get_log("browser") == []


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


def test_outlines_cover_their_masks(desktop: webdriver.Chrome, address: str) -> None:
    """Masks as the service sends them, drawn by the browser's own rasteriser: with holes, islands, and lines."""
    desktop.get(address)
    for seed, (height, width) in enumerate([(40, 60), (7, 500), (300, 200), (1500, 1100)]):
        mask = blobs(height, width, seed)
        rle = rle_codec.encode(mask)
        drawn = desktop.execute_script(
            """const [size, counts, box] = arguments;
            const canvas = new OffscreenCanvas(size[1], size[0]);
            const pen = canvas.getContext("2d");
            pen.fill(new Path2D(outlineOf({ size, counts }, box)), "evenodd");
            const pixels = pen.getImageData(0, 0, size[1], size[0]).data;
            let runs = [], last = 0, length = 0;
            for (let at = 3; at < pixels.length; at += 4) {
              const inside = Number(pixels[at] > 127);
              if (inside !== last) { runs.push(length); [last, length] = [inside, 0]; }
              length++;
            }
            return [...runs, length];""",
            [height, width],
            rle["counts"],
            rle_codec.box_xywh(rle),
        )
        values = np.arange(len(drawn)) % 2 == 1
        found = np.repeat(values, drawn).reshape(height, width)
        assert (found & mask).sum() / (found | mask).sum() > 0.93, (height, width)


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    """Noise, smoothed: bool [height, width]."""
    noise = gaussian(np.random.default_rng(seed).normal(size=(height, width)), max(height, width) / 40)
    return np.asarray(noise > np.median(noise))
