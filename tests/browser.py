"""Headless Chromium, as tests of pages drive it; tests/conftest.py makes this a plugin, which provides its fixtures."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def started(*, phone: bool) -> Iterator[webdriver.Chrome]:
    """Run a browser with the screen of a desktop or of a phone; without one on this machine, tests are skipped."""
    chromium = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs a Chromium and its chromedriver on the PATH (Debian: apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1400,1000"):
        options.add_argument(argument)
    for service in ("background-networking", "component-update", "sync"):
        options.add_argument(f"--disable-{service}")
    if phone:
        screen = {"width": 390, "height": 844, "pixelRatio": 2.0, "touch": True, "mobile": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": screen})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        browser.execute_cdp_cmd("Browser.grantPermissions", permissions)
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="session")
def desktop_browser() -> Iterator[webdriver.Chrome]:
    with started(phone=False) as browser:
        yield browser


@pytest.fixture(scope="session")
def phone_browser() -> Iterator[webdriver.Chrome]:
    with started(phone=True) as browser:
        yield browser


@pytest.fixture
def desktop(desktop_browser: webdriver.Chrome) -> webdriver.Chrome:
    """A browser on a desktop, which all tests share, on an empty page and with empty logs."""
    clear(desktop_browser)
    return desktop_browser


@pytest.fixture
def phone(phone_browser: webdriver.Chrome) -> webdriver.Chrome:
    """A browser on a phone, which all tests share, on an empty page and with empty logs."""
    clear(phone_browser)
    return phone_browser


def clear(browser: webdriver.Chrome) -> None:
    """Leave the page of an earlier test, with its media features and logs."""
    browser.get("about:blank")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for log in ("performance", "browser"):
        browser.get_log(log)


def tap(browser: webdriver.Chrome, element: WebElement, x: float, y: float) -> None:
    """A finger on a place of an element, as fractions of its width and height."""
    box = browser.execute_script(
        "const box = arguments[0].getBoundingClientRect(); return [box.x, box.y, box.width, box.height]", element
    )
    finger = {"x": box[0] + box[2] * x, "y": box[1] + box[3] * y}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [finger]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def contrast(browser: webdriver.Chrome, element: WebElement) -> float:
    """WCAG's contrast ratio of an element's text to what is behind it."""
    colours = browser.execute_script(
        """let [element] = arguments; const colour = getComputedStyle(element).color; let behind = "rgba(0, 0, 0, 0)";
        while (behind === "rgba(0, 0, 0, 0)") { behind = getComputedStyle(element).backgroundColor;
        element = element.parentElement; } return [colour, behind];""",
        element,
    )
    first, second = (luminance(colour) for colour in colours)
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


def luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in colour.removeprefix("rgb(").removesuffix(")").split(", ")]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
