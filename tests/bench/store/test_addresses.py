"""A store's address: its password is shown nowhere, and a plain one finds the driver that is installed."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.store.db import utils

from bench.search.storage import open_storage
from bench.store import trained
from bench.store.connect import connect, shown_uri, state_folder, with_driver
from methods import UserError


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://me:se/cr@et@host:5432/db", "postgresql://host:5432/db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://host:5000/a/b", "http://host:5000/a/b"),
        ("postgresql://host/db?user=secret&password=secret", "postgresql://host/db?user=***&password=***"),
        (
            "postgresql://host/db?sslmode=require&sslpassword=secret&connect_timeout=3",
            "postgresql://host/db?sslmode=require&sslpassword=***&connect_timeout=3",
        ),
        ("mysql+pymysql://host/db?passwd=secret%26more", "mysql+pymysql://host/db?passwd=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("http://host/mlflow?access_token=secret", "http://host/mlflow?access_token=***"),
        ("http://host/?API-Key=secret&p%61ssword=secret", "http://host/?API-Key=***&p%61ssword=***"),
        ("cannot reach http://host/?token=secret: refused", "cannot reach http://host/?token=*** refused"),
        ("postgresql:///db?host=/var/run/one", "postgresql:///db?host=/var/run/one"),
        ('FATAL:  role "me" does not exist', "FATAL:  role *** does not exist"),
        ("Access denied for user 'me'@'host'", "Access denied for user ***@'host'"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown


def test_messages_and_folders_do_not_show_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path))
    one, other = (f"postgresql://host/db?password=secret{i}" for i in (1, 2))
    assert "secret" not in str(state_folder(one))
    # A changed password leaves what waits for the store where it is.
    assert state_folder(one) == state_folder(other)
    for uri in ("ftp://host/?password=secret", "sqlite:///file.db?password=secret"):
        with pytest.raises(UserError) as told:
            connect(uri, create=True)
        assert "secret" not in str(told.value)


def test_a_run_that_cannot_be_read_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "http://me:secret@host/"

    def refuse(**_: object) -> None:
        raise OSError(f"no answer from {uri}")

    client: Any = SimpleNamespace(search_experiments=refuse)
    monkeypatch.setattr(trained, "connect", lambda *_, **__: client)
    with (
        pytest.raises(UserError, match="cannot be read from http://host/: no answer from") as told,
        trained.stored_trial(uri, "0123"),
    ):
        pass
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("uri", "used"),
    [
        ("postgresql://host/db", "postgresql+psycopg2://host/db"),
        ("postgresql+psycopg://host/db", "postgresql+psycopg://host/db"),
        ("mysql+pymysql://host/db", "mysql+pymysql://host/db"),
        ("http://host/postgresql://", "http://host/postgresql://"),
    ],
)
def test_plain_postgresql_means_the_driver_of_the_extra(uri: str, used: str) -> None:
    assert with_driver(uri) == used


def test_a_plain_postgresql_storage_is_asked_and_not_refused() -> None:
    where = "postgresql://127.0.0.1:9/x"
    with pytest.raises(UserError, match=rf"(?s){re.escape('127.0.0.1:9/x')}: .*Connection refused"):
        open_storage(where)


def test_a_postgresql_server_that_is_down_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError("MLflow asks again")

    monkeypatch.setattr(utils.time, "sleep", wait)
    with pytest.raises(UserError, match=rf"{re.escape('127.0.0.1:9/x')}.*Connection refused"):
        connect("postgresql://me:secret@127.0.0.1:9/x", create=True)
