"""The page in a real browser: it answers on its first screen, selects, sorts, prints, and asks nothing of the
network.

Needs chromium and its driver (Debian: apt-get install chromium chromium-driver).
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator, Sequence
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
from bench.plan.make import make_plan
from bench.suite.suite import Suite
from methods.validation import validate
from reports.analysis import Analysis, analyse
from reports.drawing import Drawn, Looks, styled
from reports.figures.cost import PARAMETERS, score_against
from reports.page import render
from reports.reading import read

from ..benchmarks.large_store import STUDY, VARIANTS, study_result
from ..stored import Result, write
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
def plain(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same page without figures, which a browser opens in a quarter of the time."""
    return _page(analysis, tmp_path_factory.mktemp("plain"))


def _page(analysis: Analysis, folder: Path, drawn: Sequence[Drawn] = ()) -> Path:
    file = folder / "index.html"
    file.write_text(render(analysis, drawn, [], [], []))
    return file


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
def shown(browser: webdriver.Chrome, plain: Path) -> webdriver.Chrome:
    """Without figures."""
    return _opened(browser, plain)


@pytest.fixture
def drawn(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    """With figures."""
    return _opened(browser, page)


def _opened(browser: webdriver.Chrome, page: Path, width: int = 1200, height: int = 900) -> webdriver.Chrome:
    _size(browser, width, height)
    browser.get("about:blank")
    browser.get(page.as_uri())
    return browser


def _size(browser: webdriver.Chrome, width: int, height: int = 900) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def rows(browser: webdriver.Chrome) -> list[dict[str, Any]]:
    """The rows of results that can be seen, in their order."""
    found: list[dict[str, Any]] = browser.execute_script(
        """return [...document.querySelectorAll('.board tbody tr[data-method]')]
        .filter(r => r.getClientRects().length).map(r => ({id: r.id, ...r.dataset}))"""
    )
    return found


def seen(browser: webdriver.Chrome, selector: str) -> list[str]:
    """The texts of the elements that can be seen."""
    found: list[str] = browser.execute_script(
        """return [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length)
        .map(e => e.innerText.trim())""",
        selector,
    )
    return found


def pick(browser: webdriver.Chrome, name: str, value: str) -> None:
    Select(browser.find_element(By.NAME, name)).select_by_visible_text(value)


def test_nothing_is_asked_of_the_network_and_nothing_goes_wrong(drawn: webdriver.Chrome, page: Path) -> None:
    drawn.find_element(By.ID, "dots").click()
    drawn.find_element(By.CSS_SELECTOR, ".open").click()
    assert [entry for entry in drawn.get_log("browser") if entry["level"] != "INFO"] == []
    asked = re.findall(r'"url":"((?:https?|file|wss?):[^"]*)"', str(drawn.get_log("performance")))
    assert {url for url in asked if not url.endswith("/index.html")} == set()
    # What draws figures has addresses of documentation in it, and asks none of them.
    plotly = (Path(reports.__file__).parent / "vendor" / "plotly-basic.min.js").read_text()
    assert page.read_text().count(plotly) == 1
    text = page.read_text().replace(plotly, "")
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(["']?http""", text)
    assert len(text) < 1_500_000


def test_a_point_tells_its_seeds_when_it_is_pointed_at(drawn: webdriver.Chrome) -> None:
    figure = drawn.find_element(By.ID, "figure-score-vs-parameters-1")
    static = figure.find_element(By.CSS_SELECTOR, ".scroll svg")
    drawn.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    waiting = WebDriverWait(drawn, 30)
    point = waiting.until(lambda _: figure.find_elements(By.CSS_SELECTOR, ".live .points path"))[-1]
    assert not static.is_displayed()
    ActionChains(drawn).move_to_element(point).perform()
    told = waiting.until(lambda _: figure.find_elements(By.CSS_SELECTOR, ".hoverlayer .hovertext"))[0].text
    assert "seed 0: " in told
    assert "seed 4: " in told
    # What is printed is the static one.
    drawn.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert static.is_displayed()
    assert not point.is_displayed()
    drawn.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert [entry for entry in drawn.get_log("browser") if entry["level"] != "INFO"] == []


def test_every_table_sorts_by_the_keyboard(shown: webdriver.Chrome) -> None:
    unsorted = shown.execute_script(
        """return [...document.querySelectorAll('table')].filter(t =>
        !t.tHead || [...t.tHead.rows[0].cells].some(h => !h.querySelector('button.sorter')))
        .map(t => t.outerHTML.slice(0, 200))"""
    )
    assert unsorted == []
    board = shown.find_element(By.CSS_SELECTOR, ".board")
    scores = "return [...arguments[0].tBodies[0].rows].map(r => Number(r.cells[1].dataset.v))"
    best_first = shown.execute_script(scores, board)
    method, score = board.find_elements(By.CSS_SELECTOR, "thead th")[:2]
    # The heads are one stop; the arrow goes on to the next.
    method.find_element(By.TAG_NAME, "button").send_keys(Keys.ARROW_RIGHT)
    shown.switch_to.active_element.send_keys(Keys.ENTER)
    assert score.get_attribute("aria-sort") == "descending"
    assert shown.execute_script(scores, board) == best_first == sorted(best_first, reverse=True)
    shown.switch_to.active_element.send_keys(Keys.ENTER)
    assert score.get_attribute("aria-sort") == "ascending"
    assert shown.execute_script(scores, board) == sorted(best_first)
    method.find_element(By.TAG_NAME, "button").click()
    names = [row.text for row in board.find_elements(By.CSS_SELECTOR, "tbody .open")]
    assert names == sorted(names, key=str.lower)
    assert score.get_attribute("aria-sort") is None
    # Differences have signs of their own.
    heat = shown.find_element(By.CSS_SELECTOR, ".heat table")
    heat.find_elements(By.CSS_SELECTOR, "thead button")[1].click()
    means = [
        row.find_elements(By.TAG_NAME, "td")[0].text for row in heat.find_elements(By.CSS_SELECTOR, "tr")[1:]
    ]
    values = [float(mean.replace("−", "-").strip("†")) for mean in means]
    assert values == sorted(values, reverse=True)
    assert min(values) < 0 < max(values)


def test_one_selector_is_for_tables_and_figures_and_stands_in_the_address(drawn: webdriver.Chrome) -> None:
    assert len(rows(drawn)) == 36
    assert len(seen(drawn, "figure[data-budget]")) == len(
        drawn.find_elements(By.CSS_SELECTOR, "figure[data-budget]")
    )
    pick(drawn, "task", "digits")
    assert {row["task"] for row in rows(drawn)} == {"digits"}
    # The answer is then of that task alone, and so are the columns of the differences.
    answers = seen(drawn, ".answer tbody th")
    assert len(answers) == 4
    assert all("digits · tiny-random-vit" in answer for answer in answers)
    assert seen(drawn, ".heat [data-task=textile], .heat thead [data-scope=all]") == []
    pick(drawn, "budget", "isorank 2")
    pick(drawn, "family", "tenslora")
    wanted = {"TensLoRA att", "TensLoRA qkv", "TensLoRA depth"}
    assert {row["method"] for row in rows(drawn)} == set(seen(drawn, ".heat tbody th")) == wanted
    assert drawn.find_element(By.ID, "shown").text == "3 of 36 results"
    assert {
        *seen(drawn, "figure[data-budget='isoparameters 2']"),
        *seen(drawn, ".answer [data-budget='own size']"),
    } == set()
    assert seen(drawn, "figure[data-budget='isorank 2']") != []
    drawn.find_element(By.NAME, "method").send_keys("QKV")
    assert [row["method"] for row in rows(drawn)] == ["TensLoRA qkv"]
    # The address gives the same view to whoever follows it.
    address = drawn.current_url
    drawn.get("about:blank")
    drawn.get(address)
    assert [row["method"] for row in rows(drawn)] == ["TensLoRA qkv"]
    assert Select(drawn.find_element(By.NAME, "task")).first_selected_option.text == "digits"
    pick(drawn, "backbone", "tiny-random-bert")
    assert rows(drawn) == []
    drawn.find_element(By.CSS_SELECTOR, "button[name=clear]").click()
    assert len(rows(drawn)) == 36
    assert "?" not in drawn.current_url


def test_methods_are_chosen_by_what_they_can_do(shown: webdriver.Chrome) -> None:
    assert set(seen(shown, ".board tr[data-family=lora] .can")) == {"–"}
    assert set(seen(shown, ".board tr[data-family=tenslora] .can")) == {"M E Z"}
    pick(shown, "capability", "trained biases")
    assert {row["family"] for row in rows(shown)} == {"full"}
    pick(shown, "capability", "exports as LoRA")
    wanted = {"TensLoRA att", "TensLoRA qkv", "TensLoRA depth"}
    assert {row["method"] for row in rows(shown)} == set(seen(shown, ".heat tbody th")) == wanted
    assert "capability=exports+as+LoRA" in shown.current_url


def test_the_main_table_has_means_and_claims(shown: webdriver.Chrome) -> None:
    heads = seen(shown, "[aria-labelledby=table] thead th")
    assert heads.count("mean\naccuracy") == 1
    claimed = seen(shown, "[aria-labelledby=table] [data-method='TensLoRA att'] td:last-child")
    assert sum(mean.endswith("↑") for mean in claimed) == 4


def test_the_chance_that_one_is_better_is_shown_for_all_pairs(
    shown: webdriver.Chrome, analysis: Analysis
) -> None:
    (block,) = [block for block in analysis.blocks if block.budget == "isorank 2"]
    better = block.ranking.better
    told = seen(shown, ".part[data-budget='isorank 2'] .pairs tbody td")
    wanted = [
        "·" if i == j else f"{100 * better[i, j]:.0f}" for i in range(len(better)) for j in range(len(better))
    ]
    assert told == wanted


def test_the_keyboard_is_at_the_first_verdict_at_once(shown: webdriver.Chrome) -> None:
    stops = 0
    in_answer = "return !!document.activeElement.closest('#answer')"
    while not shown.execute_script(in_answer):
        shown.switch_to.active_element.send_keys(Keys.TAB)
        stops += 1
        assert stops <= 3
    # What stands before them is no verdict: the heads of the table are one stop.
    assert (
        shown.execute_script(
            "return document.querySelectorAll('.answer thead button[tabindex=\"0\"]').length"
        )
        == 1
    )


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
    shown.find_element(By.CSS_SELECTOR, ".board thead button").click()
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
    shown.find_element(By.ID, "dots").click()
    finished = int((analysis.study.seeds["status"] == "FINISHED").sum())
    assert len(shown.find_elements(By.CSS_SELECTOR, ".track s")) == finished
    shown.find_element(By.ID, "dots").click()
    assert shown.find_elements(By.CSS_SELECTOR, ".track s") == []


def test_dots_of_equal_seeds_do_not_hide_one_another(
    browser: webdriver.Chrome, tmp_path: Path, new_store: NewStore
) -> None:
    uri = store(tmp_path, new_store, told=lambda *_: Result(score=0.5))
    _opened(browser, _page(analyse(read(uri, ["small"])), tmp_path))
    browser.find_element(By.ID, "dots").click()
    tracks = browser.find_elements(By.CSS_SELECTOR, ".board .track")
    assert len(tracks) == 2
    for track in tracks:
        one, other = (dot.location for dot in track.find_elements(By.TAG_NAME, "s"))
        assert (one["x"], one["y"]) == (other["x"], other["y"] + 3)


def test_a_link_to_a_row_shows_it_whatever_is_filtered(shown: webdriver.Chrome) -> None:
    pick(shown, "task", "digits")
    hidden = shown.find_element(By.CSS_SELECTOR, ".board tr[data-task=textile]").get_attribute("id")
    shown.execute_script(f"location.hash = '#{hidden}'")
    assert hidden in {row["id"] for row in rows(shown)}
    assert shown.find_element(By.ID, f"{hidden}-seeds").is_displayed()


@pytest.mark.parametrize("width", [390, 1366])
def test_nothing_is_cut_off_at_any_width(drawn: webdriver.Chrome, width: int) -> None:
    _size(drawn, width)
    assert drawn.execute_script("return document.documentElement.scrollWidth") <= width
    # What is wider scrolls in a frame of its own, which says so.
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
    assert (frames != []) == (width == 390)
    marks = drawn.execute_script("return document.querySelectorAll('.forest .better b').length")
    assert marks > 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Path:
    """The page of 20 methods, 4 tasks and 3 budgets, with those of its figures that are of parameters."""
    folder = tmp_path_factory.mktemp("large")
    uri = new_store(folder)
    # In place of methods of peft, which takes seconds to import, and of three of the seeds.
    others = {"method": "tenslora", "init": "normal", "each": {"variant": VARIANTS[:6]}}
    suite = STUDY | {"methods": [*STUDY["methods"][:-1], others], "seeds": [0, 1]}
    write(uri, make_plan(validate(Suite, suite, "suite")), study_result)
    analysis = analyse(read(uri, ["study"]))
    with styled():
        figures = score_against(analysis, PARAMETERS, Looks(cell.family for cell in analysis.study.all_cells))
    return _page(analysis, folder, figures)


def test_a_large_study_is_answered_on_the_first_screen_and_on_ten_sheets(
    browser: webdriver.Chrome, large: Path
) -> None:
    _opened(browser, large, 1366, 768)
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    assert browser.execute_script(bottom, ".answer") < 500
    assert browser.execute_script(bottom, ".heat tbody tr:nth-child(4)") < 768
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 1366
    assert [line.split("\n")[0] for line in seen(browser, ".answer tbody th")] == [
        "isorank 4",
        "isoparameters 2",
        "isoparameters 4",
        "own size",
    ]
    # The heads of a long table stay below the selector.
    tops = browser.execute_script(
        """document.querySelectorAll('.board tbody tr')[8].scrollIntoView();
        const edge = (selector) => document.querySelector(selector).getBoundingClientRect();
        return [edge('#selector').top, edge('#selector').bottom, edge('.board thead th').top]"""
    )
    assert tops[0] == 0
    assert tops[2] == pytest.approx(tops[1], abs=1)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pages = base64.b64decode(printed["data"]).count(b"/Type /Page\n")
    # Two sheets more are for figures of the other costs.
    assert 4 <= pages <= 10


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
        ("nav a", 4.5),
        (".claim.better", 4.5),
        (".warn", 4.5),
        ("figure svg", 7),
    ):
        ink = _luminance(drawn.execute_script(colour, element, "color"))
        ratio = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert ratio >= least, (element, ratio)
    pick_theme.select_by_value("")


def test_ids_are_unique_and_everything_has_a_name(drawn: webdriver.Chrome) -> None:
    twice = drawn.execute_script(
        """const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
        return ids.filter((id, i) => ids.indexOf(id) !== i)"""
    )
    assert twice == []
    nameless = drawn.execute_script(
        """return [...document.querySelectorAll('button, select, input, figure svg, .scroll')].filter(e =>
        !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    dead = drawn.execute_script(
        """return [...document.querySelectorAll('a[href^="#"]')].filter(a =>
        !document.getElementById(a.getAttribute('href').slice(1))).map(a => a.outerHTML)"""
    )
    assert dead == []


def test_the_page_can_be_read_without_javascript(browser: webdriver.Chrome, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get("about:blank")
        browser.get(page.as_uri())
        assert not browser.find_element(By.ID, "selector").is_displayed()
        assert browser.find_element(By.CSS_SELECTOR, ".board tbody tr").is_displayed()
        assert browser.find_element(By.CSS_SELECTOR, "#figure-score-vs-parameters-0 svg").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
