"""The page of ``ureca view`` in headless Chromium."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.report.rows import HEIGHT, WIDTH, drawn, make_region, make_row
from ureca.data.corrections import Correction, read_journal
from ureca.data.listing import list_images
from ureca.data.output import Output
from ureca.data.partitions import PartitionReport
from ureca.report.view_server import RunView, ViewServer

TIMEOUT_S = 60
NUM_IMAGES = 70
HOSTILE = "<img src=http://198.51.100.1/x onerror=alert(1)><script>document.title='taken'</script>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 70 images with two regions each: a page is shorter than the run."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(NUM_IMAGES):
        Image.new("RGB", (WIDTH, HEIGHT), (number * 3, 90, 40)).save(images / f"image-{number:02d}.png")
    output = Output(str(tmp_path / "run"))
    output.write_run({"command": "curate", "dataset": "regions", "state": "finished"})
    manifest = list_images(str(images))
    output.add_images(manifest, 100)
    rows = []
    for number, image_id in enumerate(manifest["image_id"].to_pylist()):
        left = make_region(0, drawn(10, 10, 120, 150), caption=f"the left box of image {number}", verdict="accepted")
        right = make_region(1, drawn(150, 40, 280, 180), caption=f"the right box of image {number}", depth=1)
        rows.append(make_row(image_id, [left, right]))
    rows[0]["regions"][0]["caption"] = HOSTILE
    output.write_partition(0, rows, PartitionReport())
    return tmp_path / "run"


@pytest.fixture
def view(run: Path, tmp_path: Path) -> RunView:
    return RunView.of_run(str(run), tmp_path / "cache")


@pytest.fixture
def address(view: RunView) -> Iterator[str]:
    with ViewServer(view) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


class ViewPage:
    """The page, with the actions of its users."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.until("#status", "140 regions of 70 images")

    def text(self, selector: str) -> str:
        script = "return document.querySelector(arguments[0])?.textContent ?? ''"
        return str(self.browser.execute_script(script, selector))

    def until(self, selector: str, text: str) -> None:
        try:
            WebDriverWait(self.browser, TIMEOUT_S, poll_frequency=0.05).until(lambda _: text in self.text(selector))
        except Exception as error:
            raise AssertionError(f"{selector} says {self.text(selector)!r}, not {text!r}") from error

    def press(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def choose(self, selector: str) -> None:
        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    @property
    def current(self) -> str:
        return self.text("#grid .current .text")


def decisions(run: Path, number: int, browser: webdriver.Chrome) -> list[Correction]:
    """Wait for a number of decisions in the journal."""
    WebDriverWait(browser, TIMEOUT_S).until(lambda _: len(list(read_journal(str(run)))) >= number)
    return list(read_journal(str(run)))


def test_view_page_keyboard_decides_and_goes_on(desktop: webdriver.Chrome, address: str, run: Path) -> None:
    page = ViewPage(desktop, address)
    page.press("j", "j", "a")
    assert page.current == "the right box of image 1"
    page.press("r", "2", "R", "e")
    edited = desktop.switch_to.active_element
    assert edited.get_property("value") == "the right box of image 2"
    edited.send_keys("the box on the right", Keys.ENTER)
    page.press("k", "u")
    made = decisions(run, 5, desktop)
    assert [(one.action, one.original) for one in made] == [
        ("accept", "the left box of image 1"),
        ("reject", "the right box of image 1"),
        ("reject", "the left box of image 2"),
        ("correct", "the right box of image 2"),
        ("restore", "the right box of image 2"),
    ]
    assert made[1].reason == "not unique: fits another region, too" and made[3].caption == "the box on the right"
    page.press("k", "a")  # the last decision counts
    assert decisions(run, 6, desktop)[-1].original == "the left box of image 2"
    page.until('#grid [data-index="4"] .badge', "accepted")


def test_view_page_goes_on_to_the_next_page(desktop: webdriver.Chrome, address: str) -> None:
    page = ViewPage(desktop, address)
    assert page.text("#page") == "1 of 3"
    page.press(*"j" * 60)
    page.until("#page", "2 of 3")
    page.until("#grid .current .text", "the left box of image 30")
    page.press("k")
    page.until("#page", "1 of 3")
    page.until("#grid .current .text", "the right box of image 29")
    page.press("n", "n")
    page.until("#page", "3 of 3")
    assert len(desktop.find_elements(By.CSS_SELECTOR, ".region-card")) == 20


def test_view_page_keys_pressed_while_a_page_loads_are_about_that_page(
    desktop: webdriver.Chrome, address: str, run: Path
) -> None:
    page = ViewPage(desktop, address)
    page.press(*"j" * 59, "a", "a", "j", "R")
    assert [(one.action, one.original) for one in decisions(run, 3, desktop)] == [
        ("accept", "the right box of image 29"),
        ("accept", "the left box of image 30"),
        ("reject", "the left box of image 31"),
    ]
    page.until("#grid .current .text", "the right box of image 31")


def test_view_page_filters_and_histograms(desktop: webdriver.Chrome, address: str) -> None:
    page = ViewPage(desktop, address)
    page.press("/")
    desktop.switch_to.active_element.send_keys("RIGHT image 7")
    page.until("#status", "7 regions of 7 images")  # 7, 17, 27, ...
    desktop.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.choose('button[type="reset"]')
    page.until("#status", "140 regions of 70 images")  # the histograms, too
    page.choose('#states input[value="accepted"]')
    page.until("#status", "70 regions of 70 images")
    page.until('#states [data-state="unchecked"]', "0")
    page.choose('#states input[value="accepted"]')
    page.until("#status", "140 regions of 70 images")  # the histograms, too
    page.choose('#depths button[aria-label^="1:"]')  # a bar of the histogram
    page.until("#status", "70 regions of 70 images")
    assert page.current == "the right box of image 0"
    page.choose('#sort option[value="-words"]')
    page.until("#grid .current .text", "the right box of image 0")


def test_view_page_shows_images_and_decides_there(desktop: webdriver.Chrome, address: str, run: Path) -> None:
    page = ViewPage(desktop, address)
    page.press("j", Keys.ENTER)
    page.until("#panel .card .caption", "the right box of image 0")
    WebDriverWait(desktop, TIMEOUT_S).until(
        lambda _: desktop.execute_script("return document.querySelector('#panel img')?.naturalWidth") == WIDTH
    )
    page.press("a")
    page.until("#panel .card .caption", "the left box of image 1")
    assert decisions(run, 1, desktop)[0].region_id == 1
    page.choose('#panel [role="treeitem"][data-id="1"]')
    page.press("R")  # the region that is selected in the image
    assert decisions(run, 2, desktop)[1].original == "the right box of image 1"
    page.until('#panel [role="treeitem"][data-id="1"] .badge', "rejected")
    page.press(Keys.ESCAPE)
    assert desktop.find_element(By.ID, "grid").is_displayed()


def test_view_page_without_pictures_says_so_within_each_card(
    desktop: webdriver.Chrome, address: str, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "images")
    page = ViewPage(desktop, address)
    page.until("#grid .missing", "no picture")
    card, missing = (
        desktop.execute_script(f"return document.querySelector('#grid .current{within}').offsetWidth")
        for within in ("", " .missing")
    )
    assert 0 < missing <= card


def test_view_page_while_an_image_loads_says_so_and_decides_about_the_new_region(
    desktop: webdriver.Chrome, address: str, run: Path, view: RunView, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions_may_come, pictures_may_come = threading.Event(), threading.Event()
    image, picture = view.image, view.picture
    monkeypatch.setattr(view, "image", lambda number: regions_may_come.wait(TIMEOUT_S) and image(number))
    monkeypatch.setattr(view, "picture", lambda number: pictures_may_come.wait(TIMEOUT_S) and picture(number))
    try:
        page = ViewPage(desktop, address)
        page.press("j", Keys.ENTER)
        panel = desktop.find_element(By.ID, "panel")
        assert panel.get_attribute("aria-busy") == "true"
        page.until("#panel", "Loading image-00 …")
        page.until("#spoken", "Loading image-00 …")
        page.press("a")  # the current region, though its image is not there yet
        assert decisions(run, 1, desktop)[0].original == "the right box of image 0"
        regions_may_come.set()
        page.until("#panel .card .caption", "the left box of image 1")
        page.until("#panel .plane .loading", "Loading image-01 …")  # its picture is to come
        pictures_may_come.set()
        WebDriverWait(desktop, TIMEOUT_S, poll_frequency=0.05).until(
            lambda _: panel.get_attribute("aria-busy") == "false"
        )
        assert not desktop.find_elements(By.CSS_SELECTOR, ".loading")
        regions_may_come.clear()
        page.press("j", "j", "a", "a")  # the image of the region before is still shown
        made = [one.original for one in decisions(run, 3, desktop)[1:]]
        assert made == ["the left box of image 2", "the right box of image 2"]
    finally:
        regions_may_come.set()
        pictures_may_come.set()


def test_view_page_buttons_decide_without_keys(desktop: webdriver.Chrome, address: str, run: Path) -> None:
    page = ViewPage(desktop, address)
    page.choose('#decide [data-key="a"]')
    assert page.current == "the right box of image 0"
    page.choose('#decide [data-key="r"]')
    page.choose("#reasons li:nth-child(6) button")
    assert page.current == "the left box of image 1"
    page.press("k")
    page.choose('#decide [data-key="u"]')
    made = decisions(run, 3, desktop)
    assert [(one.action, one.reason) for one in made] == [("accept", None), ("reject", "bad mask"), ("restore", None)]


def test_view_page_lists_its_keys(desktop: webdriver.Chrome, address: str) -> None:
    page = ViewPage(desktop, address)
    page.press("?")
    keys = desktop.find_element(By.ID, "keys")
    assert keys.is_displayed()
    for key in ("j", "k", "a", "r", "e", "u", "/"):
        assert key in keys.text
    page.press(Keys.ESCAPE)
    assert not keys.is_displayed()


def test_view_page_with_hostile_captions_shows_text_and_asks_no_other_host(
    desktop: webdriver.Chrome, address: str
) -> None:
    desktop.get_log("performance")
    desktop.get_log("browser")
    page = ViewPage(desktop, address)
    assert page.current == HOSTILE
    page.press(Keys.ENTER)
    page.until("#panel .card .caption", HOSTILE)
    assert desktop.title == "run \N{MIDDLE DOT} URECA"
    assert [entry for entry in desktop.get_log("browser") if "icon" not in entry["message"]] == []
    urls = [entry["message"] for entry in desktop.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert urls and not [url for url in urls if "198.51.100.1" in url]


def test_view_page_that_becomes_wide_shows_its_filters(desktop: webdriver.Chrome, address: str) -> None:
    size = desktop.get_window_size()
    try:
        desktop.set_window_size(600, 800)
        ViewPage(desktop, address)
        panel = desktop.find_element(By.ID, "filter-panel")
        assert not panel.get_property("open")
        desktop.set_window_size(1400, 900)
        WebDriverWait(desktop, TIMEOUT_S, poll_frequency=0.05).until(lambda _: panel.get_property("open"))
    finally:
        desktop.set_window_size(size["width"], size["height"])
