"""The web page: regions that its user draws, and the outlines of masks, in headless Chromium."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from skimage.filters import gaussian

from tests.serving.page.page import INNER, LEFT, OUTSIDE, RIGHT, TIMEOUT_S, Page
from tests.serving.page_service import HEIGHT, WIDTH, PageBackend, serving
from ureca.masks import rle as rle_codec


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


def test_page_region_beyond_the_limit_of_a_request_is_captioned_and_compared(
    desktop: webdriver.Chrome, backend: PageBackend, file: Path
) -> None:
    with serving(backend, limits={"max_regions": 4}) as small:  # as many as the segmenter finds
        page = Page(desktop, small).upload(file)
        page.use("point")
        page.at(OUTSIDE).click().perform()
        page.act("commit")
        page.until("#status", "5 regions, 1 captioned")
        page.until(".card .caption", "The middle grey thing.")
        assert not page.one("#alert").is_displayed()


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
