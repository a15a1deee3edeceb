"""One store and one report for all tests that only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.analysis import Analysis, analyse
from reports.reading import read
from reports.report import write_report
from reports.study import Study

from ..stored import write
from .made_up import NAME, NewStore, plan_of, result, store


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    """URI of the store; read only."""
    uri = new_store(tmp_path_factory.mktemp("rich"))
    write(uri, plan_of(), result)
    return uri


@pytest.fixture(scope="session")
def study(rich: str) -> Study:
    return read(rich, [NAME])


@pytest.fixture(scope="session")
def written(rich: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the whole report, in every format."""
    folder = tmp_path_factory.mktemp("report") / "out"
    write_report(rich, [NAME], folder)
    return folder


@pytest.fixture(scope="session")
def analysis(study: Study) -> Analysis:
    return analyse(study)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    """URI of a store with `SMALL`; read only."""
    return store(tmp_path_factory.mktemp("small"), new_store)
