"""One store and one report, shared by all tests that only read them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.reading import read
from tensorbench.reports.report import write_report
from tensorbench.reports.results import Results

from ..stored import write
from .browsing import CHROMIUM, DRIVER, opened
from .made_up import NAME, NewStore, plan_of, result, store

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    """The URI of a store with all of the made-up results. Tests only read it."""
    uri = new_store(tmp_path_factory.mktemp("rich"))
    write(uri, plan_of(), result)
    return uri


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
def small(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    """The URI of a store with the suite `SMALL`. Tests only read it."""
    return store(tmp_path_factory.mktemp("small"), new_store)


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
