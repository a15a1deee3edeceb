"""A browser for tests of reports' pages. Needs chromium and its driver (Debian: chromium chromium-driver)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from selenium import webdriver

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.drawing import Drawn
from tensorbench.reports.page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
    ),
]


def page_of(analysis: Analysis, folder: Path, drawn: Sequence[Drawn] = ()) -> Path:
    file = folder / "index.html"
    file.write_text(render(analysis, drawn, []))
    return file


def opened(browser: webdriver.Chrome, page: Path, width: int = 1200, height: int = 900) -> webdriver.Chrome:
    """Opens a page and expands all of its lists."""
    resize(browser, width, height)
    browser.get("about:blank")
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('main details').forEach(list => list.open = true)")
    return browser


def resize(browser: webdriver.Chrome, width: int, height: int = 900) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def on_paper(browser: webdriver.Chrome, *, on: bool = True) -> None:
    """Shows the page as it is printed, or as on a screen again."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print" if on else ""})


def seen(browser: webdriver.Chrome, selector: str) -> list[str]:
    """The texts of the visible elements that this CSS selector matches."""
    texts: list[str] = browser.execute_script(
        """return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length)
        .map(e => e.innerText.trim())""",
        selector,
    )
    return texts
