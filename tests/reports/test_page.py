"""The page in a real browser: it sorts, filters, shows seeds, and asks nothing of the network.

Needs chromium and its driver (Debian: apt-get install chromium chromium-driver).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import reports
from reports.analysis import Analysis
from reports.report import write_report

from ..stored import Result
from .made_up import NewStore, store

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
    ),
]


@pytest.fixture(scope="module")
def page(written: Path) -> Path:
    return written / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as opened:
        yield opened


@pytest.fixture
def shown(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    _size(browser, 1200)
    browser.get("about:blank")
    browser.get(page.as_uri())
    return browser


def _size(browser: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def rows(browser: webdriver.Chrome) -> list[dict[str, Any]]:
    """The rows of the leaderboard that can be seen, in their order."""
    found: list[dict[str, Any]] = browser.execute_script(
        """return [...document.querySelectorAll('#board tbody tr')]
        .filter(r => !r.classList.contains('detail') && r.getClientRects().length)
        .map(r => ({id: r.id, ...r.dataset, method: r.cells[0].dataset.v,
            parameters: Number(r.cells[3].dataset.v)}))"""
    )
    return found


def head(browser: webdriver.Chrome, text: str) -> Any:
    return browser.find_element(By.XPATH, f"//table[@id='board']//th[button='{text}']")


def pick(browser: webdriver.Chrome, name: str, value: str) -> None:
    Select(browser.find_element(By.NAME, name)).select_by_visible_text(value)


def test_nothing_is_asked_of_the_network_and_nothing_goes_wrong(shown: webdriver.Chrome, page: Path) -> None:
    shown.find_element(By.NAME, "dots").click()
    shown.find_element(By.CSS_SELECTOR, ".open").click()
    assert [entry for entry in shown.get_log("browser") if entry["level"] != "INFO"] == []
    asked = re.findall(r'"url":"((?:https?|file|wss?):[^"]*)"', str(shown.get_log("performance")))
    assert {url for url in asked if not url.endswith("/index.html")} == set()
    # What draws figures has addresses of documentation in it, and asks none of them.
    plotly = (Path(reports.__file__).parent / "vendor" / "plotly-basic.min.js").read_text()
    assert page.read_text().count(plotly) == 1
    text = page.read_text().replace(plotly, "")
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(["']?http""", text)
    assert len(text) < 1_500_000


def test_a_point_tells_its_seeds_when_it_is_pointed_at(shown: webdriver.Chrome) -> None:
    figure = shown.find_element(By.ID, "figure-score-vs-parameters-1")
    static = figure.find_element(By.CSS_SELECTOR, ".scroll svg")
    shown.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    waiting = WebDriverWait(shown, 30)
    point = waiting.until(lambda _: figure.find_elements(By.CSS_SELECTOR, ".live .points path"))[-1]
    assert not static.is_displayed()
    ActionChains(shown).move_to_element(point).perform()
    told = waiting.until(lambda _: figure.find_elements(By.CSS_SELECTOR, ".hoverlayer .hovertext"))[0].text
    assert "seed 0: " in told
    assert "seed 4: " in told
    assert [entry for entry in shown.get_log("browser") if entry["level"] != "INFO"] == []


def test_columns_sort_both_ways(shown: webdriver.Chrome) -> None:
    everything = rows(shown)
    assert len(everything) == 36
    button = head(shown, "Parameters").find_element(By.TAG_NAME, "button")
    button.click()
    counts = [row["parameters"] for row in rows(shown)]
    assert counts == sorted(counts, reverse=True)
    assert head(shown, "Parameters").get_attribute("aria-sort") == "descending"
    # By the keyboard, the other way.
    button.send_keys(Keys.ENTER)
    assert [row["parameters"] for row in rows(shown)] == sorted(counts)
    head(shown, "Method").find_element(By.TAG_NAME, "button").click()
    names = [row["method"] for row in rows(shown)]
    assert names == sorted(names, key=str.lower)
    assert head(shown, "Parameters").get_attribute("aria-sort") is None


def test_rows_filter_by_task_backbone_budget_family_and_name(shown: webdriver.Chrome) -> None:
    pick(shown, "task", "digits")
    assert {row["task"] for row in rows(shown)} == {"digits"}
    pick(shown, "budget", "isorank 2")
    pick(shown, "family", "tenslora")
    assert [row["method"] for row in rows(shown)] == ["TensLoRA att", "TensLoRA qkv", "TensLoRA depth"]
    assert shown.find_element(By.ID, "shown").text == "3 of 36 rows"
    shown.find_element(By.NAME, "method").send_keys("QKV")
    assert [row["method"] for row in rows(shown)] == ["TensLoRA qkv"]
    pick(shown, "backbone", "tiny-random-bert")
    assert rows(shown) == []
    shown.find_element(By.CSS_SELECTOR, "button[name=clear]").click()
    assert len(rows(shown)) == 36


def test_a_row_opens_to_its_seeds_and_their_runs(shown: webdriver.Chrome, analysis: Analysis) -> None:
    row = rows(shown)[0]
    button = shown.find_element(By.CSS_SELECTOR, f"#{row['id']} .open")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    detail = shown.find_element(By.ID, f"{row['id']}-seeds")
    seeds = analysis.study.seeds[analysis.study.seeds["cell"] == int(row["id"][1:])]
    assert len(detail.find_elements(By.CSS_SELECTOR, "circle")) == 5
    codes = {code.text for code in detail.find_elements(By.TAG_NAME, "code")}
    assert codes == set(seeds["run_id"]) | set(seeds["trial_id"])
    # It stays with its row when the table is sorted, and closes.
    head(shown, "Method").find_element(By.TAG_NAME, "button").click()
    after = f"return document.getElementById('{row['id']}').nextElementSibling.id"
    assert shown.execute_script(after) == f"{row['id']}-seeds"
    button.click()
    assert shown.find_elements(By.ID, f"{row['id']}-seeds") == []


def test_a_lost_seed_says_why(shown: webdriver.Chrome) -> None:
    pick(shown, "task", "digits")
    pick(shown, "budget", "isoparameters 2")
    (row,) = [row for row in rows(shown) if row["method"] == "TensLoRA depth"]
    shown.find_element(By.CSS_SELECTOR, f"#{row['id']} .open").click()
    assert "diverged" in shown.find_element(By.ID, f"{row['id']}-seeds").text
    assert "4/5" in shown.find_element(By.ID, row["id"]).text


def test_every_seed_has_a_dot_on_demand(shown: webdriver.Chrome, analysis: Analysis) -> None:
    assert shown.find_elements(By.CSS_SELECTOR, ".track s") == []
    shown.find_element(By.NAME, "dots").click()
    finished = int((analysis.study.seeds["status"] == "FINISHED").sum())
    assert len(shown.find_elements(By.CSS_SELECTOR, ".track s")) == finished
    shown.find_element(By.NAME, "dots").click()
    assert shown.find_elements(By.CSS_SELECTOR, ".track s") == []


def test_dots_of_equal_seeds_do_not_hide_one_another(
    browser: webdriver.Chrome, tmp_path: Path, new_store: NewStore
) -> None:
    uri = store(tmp_path, new_store, told=lambda *_: Result(score=0.5))
    write_report(uri, ["small"], tmp_path / "out", ["html"])
    browser.get((tmp_path / "out" / "index.html").as_uri())
    browser.find_element(By.NAME, "dots").click()
    tracks = browser.find_elements(By.CSS_SELECTOR, ".track")
    assert len(tracks) == 2
    for track in tracks:
        one, other = (dot.location for dot in track.find_elements(By.TAG_NAME, "s"))
        assert (one["x"], one["y"]) == (other["x"], other["y"] + 3)


def test_a_link_to_a_row_shows_it_whatever_is_filtered(shown: webdriver.Chrome) -> None:
    pick(shown, "task", "digits")
    hidden = shown.find_element(By.CSS_SELECTOR, "#board tr[data-task=textile]").get_attribute("id")
    shown.execute_script(f"location.hash = '#{hidden}'")
    assert hidden in {row["id"] for row in rows(shown)}
    assert shown.find_element(By.ID, f"{hidden}-seeds").is_displayed()


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out_at_any_width(shown: webdriver.Chrome, width: int) -> None:
    _size(shown, width)
    assert shown.execute_script("return document.documentElement.scrollWidth") <= width


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(shown: webdriver.Chrome, theme: str) -> None:
    pick_theme = Select(shown.find_element(By.ID, "theme"))
    pick_theme.select_by_value(theme)
    colour = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    paper = _luminance(shown.execute_script(colour, "body", "backgroundColor"))
    assert (paper > 0.5) == (theme == "light")
    for element, least in (("body", 7), (".lead", 4.5), ("nav a", 4.5), (".warn", 4.5), ("figure svg", 7)):
        ink = _luminance(shown.execute_script(colour, element, "color"))
        ratio = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert ratio >= least, (element, ratio)
    pick_theme.select_by_value("")


def test_ids_are_unique_and_everything_has_a_name(shown: webdriver.Chrome) -> None:
    twice = shown.execute_script(
        """const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
        return ids.filter((id, i) => ids.indexOf(id) !== i)"""
    )
    assert twice == []
    nameless = shown.execute_script(
        """return [...document.querySelectorAll('button, select, input, figure svg, .scroll')].filter(e =>
        !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    dead = shown.execute_script(
        """return [...document.querySelectorAll('a[href^="#"]')].filter(a =>
        !document.getElementById(a.getAttribute('href').slice(1))).map(a => a.outerHTML)"""
    )
    assert dead == []


def test_the_page_can_be_read_without_javascript(browser: webdriver.Chrome, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get("about:blank")
        browser.get(page.as_uri())
        assert not browser.find_element(By.ID, "filters").is_displayed()
        assert browser.find_element(By.CSS_SELECTOR, "#board tbody tr").is_displayed()
        assert browser.find_element(By.CSS_SELECTOR, "#figure-score-vs-parameters-0 svg").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
