"""Pages in the system's Chromium."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
FOCUSABLE = "a[href], select, input, summary, [tabindex='0']"


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Skips the test where there is none."""
    if BROWSER is None:
        pytest.skip("no Chromium: the Debian package chromium has one")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=[*QUIET, "--disable-sync", "--no-first-run"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, address: str, width: int) -> Iterator[Any]:
    """A page in a window of some width. At the end, nothing may have been asked for, and nothing gone wrong."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    requests, errors = [], []
    tab.on("request", lambda asked: requests.append(asked.url))
    tab.on("console", lambda message: errors.append(message.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(address)
    yield tab
    assert {url for url in requests if not url.startswith("data:")} == {address}
    assert not errors
    tab.close()


def assert_fits_its_window(tab: Any) -> None:
    """Nothing overflows. What is wider scrolls in a region of its own, with a name, which the keyboard reaches."""
    scroll, width = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert scroll <= width
    wide = tab.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth && "
        "getComputedStyle(e).overflowX == 'auto').map(e => [e.tabIndex, e.getAttribute('role'), !!e.ariaLabel || "
        "e.hasAttribute('aria-labelledby')])"
    )
    assert all(one == [0, "region", True] for one in wide) and (wide or width > 1000)
