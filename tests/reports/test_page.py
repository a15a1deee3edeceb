"""Tests a report's page in a real browser: selecting, sorting, links, and no requests to the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.reading import read
from tensorbench.store.store import Store

from ..stored import Result, write
from .browsing import MARKS, opened, page_of, pick, rows, seen
from .made_up import SMALL, NewStore, plan_of, result, store

pytestmark = MARKS


def test_nothing_is_asked_of_the_network_and_nothing_goes_wrong(
    browser: webdriver.Chrome, page: Path
) -> None:
    for log in ("browser", "performance"):
        browser.get_log(log)  # Discards log entries of other tests' pages.
    drawn = opened(browser, page)
    drawn.find_element(By.ID, "dots").click()
    drawn.find_element(By.CSS_SELECTOR, ".open").click()
    assert [entry for entry in drawn.get_log("browser") if entry["level"] != "INFO"] == []
    urls = re.findall(r'"url":"((?:https?|file|wss?):[^"]*)"', str(drawn.get_log("performance")))
    assert {url for url in urls if not url.endswith("/index.html")} == set()
    text = page.read_text()
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(["']?http""", text)
    assert len(text) < 1_500_000


def test_every_table_sorts_by_the_keyboard(shown: webdriver.Chrome) -> None:
    unsorted = shown.execute_script(
        """return [...document.querySelectorAll('table:not(.unsorted)')].filter(t =>
        !t.tHead || [...t.tHead.rows[0].cells].some(h => !h.querySelector('button.sorter')))
        .map(t => t.outerHTML.slice(0, 200))"""
    )
    assert unsorted == []
    # Step times on a shared machine are not comparable.
    (times,) = shown.find_elements(By.CSS_SELECTOR, "table.unsorted")
    assert "ms/step" in (times.get_attribute("textContent") or "")
    assert not times.find_elements(By.CSS_SELECTOR, "button.sorter")
    assert "ms/step" not in shown.find_element(By.ID, "results").find_element(By.XPATH, "..").text
    board = shown.find_element(By.CSS_SELECTOR, ".board")
    scores = "return [...arguments[0].tBodies[0].rows].map(r => Number(r.cells[1].dataset.v))"
    best_first = shown.execute_script(scores, board)
    method, score = board.find_elements(By.CSS_SELECTOR, "thead th")[:2]
    # The headings are one tab stop; the arrow key moves to the next.
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
    # Differences sort by their signed value.
    heat = shown.find_element(By.CSS_SELECTOR, ".heat table")
    heat.find_elements(By.CSS_SELECTOR, "thead button")[1].click()
    means = [
        row.find_elements(By.TAG_NAME, "td")[0].text for row in heat.find_elements(By.CSS_SELECTOR, "tr")[1:]
    ]
    values = [float(mean.replace("−", "-").strip("†")) for mean in means]
    assert values == sorted(values, reverse=True)
    assert min(values) < 0 < max(values)


def test_heads_stay_in_reach_where_a_column_is_hidden(shown: webdriver.Chrome) -> None:
    heat = shown.find_element(By.CSS_SELECTOR, ".heat table")
    heat.find_element(By.TAG_NAME, "button").send_keys(Keys.ARROW_RIGHT)
    assert shown.switch_to.active_element.text == "mean"
    pick(shown, "task", "digits")
    (stop,) = heat.find_elements(By.CSS_SELECTOR, "thead [tabindex='0']")
    assert stop.text == "Method"


def test_ranks_sort_by_the_rank_and_not_by_its_interval_too(shown: webdriver.Chrome) -> None:
    ranks = shown.find_element(By.XPATH, "//summary[.='Ranks in numbers']/..//table")
    cells = "return [...arguments[0].querySelectorAll('tbody tr')].map(r => r.cells[2])"
    # Gives the rows ranks and intervals as with ten or more methods.
    shown.execute_script(
        """[...arguments[0].querySelectorAll('tbody tr')].forEach((row, i) => {
        const told = [['9', '9 to 10'], ['11', '1 to 11'], ['10', '10 to 12']][i % 3];
        row.cells[2].innerHTML = told.join('<small>');
        })""",
        ranks,
    )
    ranks.find_elements(By.CSS_SELECTOR, "thead button")[2].click()
    shown_ranks = [
        int(cell.get_property("firstChild")["textContent"]) for cell in shown.execute_script(cells, ranks)
    ]
    assert shown_ranks == sorted(shown_ranks, reverse=True)


def test_one_selector_controls_tables_and_figures_and_is_in_the_address(drawn: webdriver.Chrome) -> None:
    assert len(rows(drawn)) == 36
    assert len(seen(drawn, "figure[data-budget]")) == len(
        drawn.find_elements(By.CSS_SELECTOR, "figure[data-budget]")
    )
    pick(drawn, "task", "digits")
    assert {row["task"] for row in rows(drawn)} == {"digits"}
    # The answer then concerns that task alone, and so do the columns of differences.
    answers = seen(drawn, ".answer tbody th")
    assert len(answers) == 4
    assert all("digits · tiny-random-vit" in answer for answer in answers)
    assert seen(drawn, ".heat [data-task=textile], .heat thead [data-scope=all]") == []
    pick(drawn, "budget", "isorank 2")
    pick(drawn, "family", "tenslora")
    selected = {"TensLoRA att", "TensLoRA qkv", "TensLoRA depth"}
    assert {row["method"] for row in rows(drawn)} == set(seen(drawn, ".heat tbody th")) == selected
    assert drawn.find_element(By.ID, "shown").text == "3 of 36 results"
    assert {
        *seen(drawn, "figure[data-budget='isoparameters 2']"),
        *seen(drawn, ".answer [data-budget='fixed size']"),
    } == set()
    assert seen(drawn, "figure[data-budget='isorank 2']") != []
    drawn.find_element(By.NAME, "method").send_keys("QKV")
    assert [row["method"] for row in rows(drawn)] == ["TensLoRA qkv"]
    # The address gives the same view to anyone who opens it.
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


def test_numbers_over_all_tasks_say_so_when_one_is_selected(shown: webdriver.Chrome) -> None:
    pick(shown, "task", "digits")
    for section in ("reference", "ranks"):
        headings = seen(shown, f"[aria-labelledby={section}] .part > h3")
        assert headings
        assert all(heading.endswith("over 3 settings") for heading in headings)


def test_the_main_table_has_means_and_claims(shown: webdriver.Chrome) -> None:
    heads = seen(shown, "[aria-labelledby=table] thead th")
    assert heads.count("mean\naccuracy") == 1
    claimed = seen(shown, "[aria-labelledby=table] [data-method='TensLoRA att'] td:last-child")
    assert sum(mean.endswith("↑") for mean in claimed) == 4


def test_the_keyboard_is_at_the_first_verdict_at_once(shown: webdriver.Chrome) -> None:
    stops = 0
    in_answer = "return !!document.activeElement.closest('#answer')"
    while not shown.execute_script(in_answer):
        shown.switch_to.active_element.send_keys(Keys.TAB)
        stops += 1
        assert stops <= 3
    # The headings of the answer's table are one tab stop.
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
    # The suite to copy states the ids of its trials, and a click selects all of its text.
    suite = detail.find_element(By.CSS_SELECTOR, "pre.suite-lines")
    assert set(seeds["trial_id"]) <= set(re.findall(r"\w+", suite.get_attribute("textContent") or ""))
    assert suite.value_of_css_property("user-select") == "all"
    # The detail stays with its row when the table is sorted, and can be closed.
    shown.find_element(By.CSS_SELECTOR, ".board thead button").click()
    after = f"return document.getElementById('{row['id']}').nextElementSibling.id"
    assert shown.execute_script(after) == f"{row['id']}-seeds"
    button.click()
    assert shown.find_elements(By.ID, f"{row['id']}-seeds") == []


def test_a_run_is_linked_where_it_is_stored(
    browser: webdriver.Chrome, tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's experiment may differ from the experiment of its row."""
    link = property(lambda store: f"http://mlflow/#/experiments/{store.name}/runs/")
    monkeypatch.setattr(Store, "link", link)
    uri = new_store(tmp_path)
    write(uri, plan_of(**SMALL), lambda trial, row: result(trial, row) if row.title == "LoRA" else None)
    write(uri, plan_of(**SMALL | {"name": "other"}), result)
    opened(browser, page_of(analyse(read(uri, ["small", "other"])), tmp_path))
    for row in browser.find_elements(By.CSS_SELECTOR, ".board .open"):
        row.click()
    links = "return [...document.querySelectorAll(arguments[0])].map(a => a.href.split('/').at(-3))"
    for method, experiment in (("LoRA", "small"), ("TensLoRA att", "other")):
        addresses = browser.execute_script(links, f".board [data-method='{method}'] + .detail a")
        assert addresses == [experiment] * 2


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
    uri = store(tmp_path, new_store, result_of=lambda *_: Result(score=0.5))
    opened(browser, page_of(analyse(read(uri, ["small"])), tmp_path))
    browser.find_element(By.ID, "dots").click()
    tracks = browser.find_elements(By.CSS_SELECTOR, ".board .track")
    assert len(tracks) == 2
    for track in tracks:
        upper, lower = (dot.location for dot in track.find_elements(By.TAG_NAME, "s"))
        # Places are rounded to pixels.
        assert (upper["x"], upper["y"]) == (lower["x"], pytest.approx(lower["y"] + 3, abs=1))


def test_a_seed_has_the_score_that_tables_print(
    browser: webdriver.Chrome, tmp_path: Path, new_store: NewStore
) -> None:
    # 637 / 800 is a rounding tie at two digits of a percentage, and the validation score at six.
    uri = store(
        tmp_path, new_store, result_of=lambda *_: Result(score=0.79625, validation=[0.7091503267973857])
    )
    opened(browser, page_of(analyse(read(uri, ["small"])), tmp_path))
    # The standard deviation follows.
    score = seen(browser, ".board tbody .score")[0].split()[0]
    browser.find_element(By.CSS_SELECTOR, ".board .open").click()
    (seed, *_) = seen(browser, ".detail tbody tr")
    assert seed.split()[:3] == ["0", score, "70.92"]
    plot = browser.find_element(By.CSS_SELECTOR, ".detail .plot")
    assert plot.get_attribute("aria-label") == f"seed 0: {score}, seed 1: {score}"


def test_a_link_to_a_row_shows_it_whatever_is_filtered(shown: webdriver.Chrome) -> None:
    pick(shown, "task", "digits")
    hidden = shown.find_element(By.CSS_SELECTOR, ".board tr[data-task=textile]").get_attribute("id")
    shown.execute_script(f"location.hash = '#{hidden}'")
    assert hidden in {row["id"] for row in rows(shown)}
    assert shown.find_element(By.ID, f"{hidden}-seeds").is_displayed()
    # Following the link again shows the row again, although the address stays the same.
    pick(shown, "task", "digits")
    assert hidden not in {row["id"] for row in rows(shown)}
    shown.find_element(By.CSS_SELECTOR, f".rows a[href='#{hidden}']").click()
    assert hidden in {row["id"] for row in rows(shown)}


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
