"""The web page in a browser, with the actions of its users."""

from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.serving.page_service import HEIGHT, WIDTH

TOKEN = "a-token-for-the-test"  # noqa: S105
TIMEOUT_S = 60  # an idle machine needs none of them
LEFT, RIGHT, INNER, OUTSIDE = (90, 120), (230, 100), (55, 80), (150, 100)
"""Places of ``picture`` in pixels, x and y: the left and the right square, the disc in the left one, the background."""


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
