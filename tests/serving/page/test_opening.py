"""The web page: opening of images, errors and tokens, in headless Chromium."""

import json
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.serving.page.page import INNER, LEFT, TIMEOUT_S, TOKEN, Page
from tests.serving.page_service import PageBackend, serving
from ureca.serving.schemas import ApiError

HOSTILE = "</p><script>document.title='taken'</script><img src=http://198.51.100.1/x onerror=alert(1)> \"'&amp; left"


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


def test_page_without_a_model_has_no_question(desktop: webdriver.Chrome, backend: PageBackend, file: Path) -> None:
    with serving(backend, model=None) as address:
        page = Page(desktop, address).upload(file)
        page.wait_for("#options summary").click()
        shown = [field.get_attribute("name") for field in page.all("#options input") if field.is_displayed()]
        assert shown == ["max_new_tokens"]
        page.until("#length-unit", "words")


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
