"""Tests how a report's page looks in a real browser: first screen, phone, paper, both themes, pointing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.reports.analysis import analyse
from tensorbench.reports.drawing import Looks, styled
from tensorbench.reports.figures.cost import COSTS, score_against
from tensorbench.reports.reading import read
from tools.benchmarks.large_store import STUDY, VARIANTS, study_result

from ..fixtures import NewStore
from ..stored import write
from .browsing import MARKS, opened, page_of, resize, seen

pytestmark = MARKS


def test_pointing_at_a_mark_shows_its_numbers(drawn: webdriver.Chrome) -> None:
    figure = drawn.find_element(By.ID, "figure-score-vs-parameters-1")
    drawn.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    tip = drawn.find_element(By.CSS_SELECTOR, ".tip")
    assert not tip.is_displayed()
    for mark in figure.find_elements(By.CSS_SELECTOR, "svg a")[:3]:
        ActionChains(drawn).move_to_element(mark).perform()
        assert tip.is_displayed()
        assert str(mark.get_attribute("ariaLabel")) in tip.text
        assert "adapter parameters" in tip.text
    ActionChains(drawn).move_to_element(drawn.find_element(By.ID, "cost")).perform()
    assert not tip.is_displayed()
    assert drawn.find_elements(By.CSS_SELECTOR, "figure svg title") == []
    assert [entry for entry in drawn.get_log("browser") if entry["level"] != "INFO"] == []


@pytest.mark.parametrize("width", [390, 1366])
def test_nothing_is_cut_off_at_any_width(drawn: webdriver.Chrome, width: int) -> None:
    resize(drawn, width)
    assert drawn.execute_script("return document.documentElement.scrollWidth") <= width
    # Wider content scrolls in a frame with a note that it scrolls.
    beyond = drawn.execute_script(
        """return [...document.querySelectorAll('main *')].filter(e =>
        e.getClientRects().length && !e.closest('.hidden, .over > *, svg *')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 100))"""
    )
    assert beyond == []
    frames = drawn.execute_script(
        """return [...document.querySelectorAll('.over')].map(frame =>
        [getComputedStyle(frame).overflowX, getComputedStyle(frame, '::before').content])"""
    )
    assert {*map(tuple, frames)} <= {("auto", '"goes on to the right →"')}
    assert frames != [] or width == 1366


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Path:
    """The page of 20 methods, 4 tasks and 3 budgets, with only the figures of parameter counts."""
    folder = tmp_path_factory.mktemp("large")
    uri = new_store(folder)
    # Replaces peft's methods, which take seconds to import, and leaves out two of the seeds.
    variants = {"method": "tenslora", "init": "normal", "each": {"variant": VARIANTS[:6]}}
    suite = STUDY | {"methods": [*STUDY["methods"][:-1], variants], "seeds": [0, 1, 2]}
    write(uri, make_plan(validate(Suite, suite, "suite")), study_result)
    analysis = analyse(read(uri, ["study"]))
    with styled():
        figures = score_against(analysis, COSTS[0], Looks(cell.family for cell in analysis.results.all_cells))
    return page_of(analysis, folder, figures)


def test_a_large_study_is_answered_on_the_first_screen(browser: webdriver.Chrome, large: Path) -> None:
    opened(browser, large, 1366, 768)
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    assert browser.execute_script(bottom, ".answered") < 300
    assert browser.execute_script(bottom, ".next") < 400
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 1366
    assert len(seen(browser, "#answer h2")) == 3


def test_figures_of_cost_have_the_width_of_the_sheet(browser: webdriver.Chrome, large: Path) -> None:
    opened(browser, large, 703, 1000)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        share = browser.execute_script(
            """const width = (e) => e.getBoundingClientRect().width;
            return width(document.querySelector('.figures svg')) / width(document.querySelector('main'))"""
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert share > 0.75


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(drawn: webdriver.Chrome, theme: str) -> None:
    pick_theme = Select(drawn.find_element(By.ID, "theme"))
    pick_theme.select_by_value(theme)
    colour = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    paper = _luminance(drawn.execute_script(colour, "body", "backgroundColor"))
    assert (paper > 0.5) == (theme == "light")
    for element, least in (
        ("body", 7),
        (".lead", 4.5),
        ("main a", 4.5),
        (".verdict.better", 4.5),
        (".warn", 4.5),
        ("figure svg", 7),
    ):
        ink = _luminance(drawn.execute_script(colour, element, "color"))
        ratio = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert ratio >= least, (element, ratio)
    pick_theme.select_by_value("")
