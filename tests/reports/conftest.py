"""One store and one report, shared by all tests that only read them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from tensorbench.plan.rows import Plan
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.reading import read
from tensorbench.reports.report import Composed, compose, write_report
from tensorbench.reports.results import Results
from tensorbench.reports.selection import Selection

from ..fixtures import NewStore
from ..stored import write
from .browsing import CHROMIUM, DRIVER, opened
from .made_up import NAME, SMALL, Analysed, Composes, Stored, plan_of, result

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def rich(stored: Stored) -> str:
    """The URI of a store with all of the made-up results. Tests change no result."""
    return stored(result, plan_of())


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Stored:
    """A function that writes the results of plans to a store of its own, and returns the store's address."""

    def make(result: Any, *plans: Plan) -> str:
        uri = new_store(tmp_path_factory.mktemp("stored"))
        for plan in plans:
            write(uri, plan, result)
        return uri

    return make


@pytest.fixture(scope="session")
def analysed(stored: Stored) -> Analysed:
    """A function that writes the results of plans, and returns their analysis, or that of a selection."""

    def make(result: Any, *plans: Plan, selection: Selection | None = None) -> Analysis:
        return analyse(read(stored(result, *plans), [plan.suite.name for plan in plans], selection))

    return make


@pytest.fixture(scope="session")
def composed(stored: Stored) -> Composes:
    """A function that writes the results of plans, and returns their report in memory."""

    def make(result: Any, *plans: Plan, formats: Sequence[str] = ("html", "md")) -> Composed:
        return compose(read(stored(result, *plans), [plan.suite.name for plan in plans]), formats)

    return make


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A function that imports a module of docs/ by its name."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module


@pytest.fixture(scope="session")
def results(rich: str) -> Results:
    return read(rich, [NAME])


@pytest.fixture(scope="session")
def written(rich: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the full report in every format."""
    folder = tmp_path_factory.mktemp("report") / "out"
    write_report(NAME, out=folder, store=rich)
    return folder


@pytest.fixture(scope="session")
def analysis(results: Results) -> Analysis:
    return analyse(results)


@pytest.fixture(scope="session")
def small(stored: Stored) -> str:
    """The URI of a store with the suite `SMALL`. Tests change no result."""
    return stored(result, plan_of(**SMALL))


@pytest.fixture(scope="session")
def page(written: Path) -> Path:
    return written / "index.html"


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as chrome:
        yield chrome


@pytest.fixture
def drawn(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    """The report's page with its figures, opened in a browser."""
    return opened(browser, page)
