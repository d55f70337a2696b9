"""The web page: captions, their copies and downloads, in headless Chromium."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.serving.page.page import INNER, LEFT, TIMEOUT_S, TOKEN, Page
from tests.serving.page_service import HEIGHT, WIDTH, PageBackend, picture, serving
from ureca.masks import rle as rle_codec


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
