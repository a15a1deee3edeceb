"""Tests that reports read packs like stores and escape every text of a pack."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import tensorbench
from tensorbench.methods import UserError
from tensorbench.reports.report import write_report
from tensorbench.reports.site import packs_in, site_files
from tensorbench.store.opening import unpack

from ..fixtures import Call, NewStore
from ..messages import naming
from ..packs import changed, edit_json, edit_runs, packed
from .made_up import SMALL, Stored, plan_of, result

OTHER: dict[str, Any] = SMALL | {"name": "other", "methods": ["lora"], "budgets": [{"isorank": 4}]}

TABLES = ("csv", "md", "latex", "json")


@pytest.fixture(scope="module")
def pack(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(small, "small", tmp_path_factory.mktemp("pack"))


def tables(uri: str, name: str, folder: Path) -> dict[str, bytes]:
    done = write_report(name, out=folder, store=uri, formats=TABLES)
    return {file: (folder / file).read_bytes() for file in done.files}


def test_the_tables_are_the_same_byte_for_byte(
    small: str, pack: Path, tmp_path: Path, new_store: NewStore
) -> None:
    expected = tables(small, "small", tmp_path / "store")
    assert {"tables/trials.csv", "tables/cells.csv", "tables/tables.md", "report.json"} <= expected.keys()
    nowhere = f"sqlite:///{tmp_path / 'none.db'}"
    assert tables(nowhere, str(pack), tmp_path / "pack") == expected
    other = new_store(tmp_path)
    unpack(pack, store=other)
    assert tables(other, "small", tmp_path / "other") == expected


def test_the_commands_take_packs(small: str, pack: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "again.tensorbench.zip"
    done = call("pack", "small", "--store", small, "--out", file)
    assert done.code == 0, done.err
    assert re.search(r"\b4 trials of small .*again\.tensorbench\.zip \(0\.\d MiB\)", done.out)
    assert file.read_bytes() == pack.read_bytes()
    out = tmp_path / "report"
    done = call("report", file, "--out", out, "--format", "csv", "--store", "sqlite:///none.db")
    assert done.code == 0, done.err
    assert "suite run" not in done.out
    assert len((out / "tables" / "trials.csv").read_text().splitlines()) == 5
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for written, there in ((4, 0), (0, 4)):
        merged = call("unpack", file, pack, "--store", uri)
        assert re.search(naming("small", written, there), merged.out), merged.err


def test_several_experiments_in_one_pack(small: str, tmp_path: Path, stored: Stored) -> None:
    other = stored(result, plan_of(**OTHER))
    packs = [packed(small, "small", tmp_path), packed(other, "other", tmp_path)]
    both = tensorbench.pack(*packs, out=tmp_path / "both.tensorbench.zip")
    assert both.trials == {"other": 2, "small": 4}
    done = write_report(str(both.path), out=tmp_path / "report", formats=["csv"])
    assert done.analysis.results.title == "other, small"


@pytest.mark.parametrize("value", ["[1]", '{"a": []}'])
def test_tags_that_cannot_be_read_are_refused_with_their_run(value: str, pack: Path, tmp_path: Path) -> None:
    def change(runs: list[dict[str, Any]]) -> None:
        for run in runs:
            run["tags"]["final_ranks"] = value

    changed(pack, tmp_path / "bad.tensorbench.zip", edit_runs(change))
    message = rf"tag final_ranks of run \w+ .* in .*bad.tensorbench.zip cannot be read: '{re.escape(value)}'"
    with pytest.raises(UserError, match=message):
        write_report(str(tmp_path / "bad.tensorbench.zip"), out=tmp_path / "out", formats=["md"])
    (tmp_path / "results").mkdir()
    (tmp_path / "bad.tensorbench.zip").rename(tmp_path / "results" / "bad.tensorbench.zip")
    with pytest.raises(UserError, match=message):
        site_files(packs_in(tmp_path / "results"))


NAMES = ("method", "title", "task", "backbone", "budget")
EVIL = "=cmd|'/C calc'!A0<script>alert(1)</script>"


def test_names_of_a_pack_are_escaped_in_the_page_and_in_csv(pack: Path, tmp_path: Path) -> None:
    def rename(plan: dict[str, Any]) -> None:
        for row in plan["rows"]:
            row.update(dict.fromkeys(NAMES, EVIL + row["title"]))
        plan["closing"] = EVIL

    evil = changed(pack, tmp_path / "evil.tensorbench.zip", edit_json("plan.json", rename))
    write_report(str(evil), out=tmp_path / "out", formats=["html", "csv", "md"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    # A page may be published, so it must not reveal where the pack was.
    assert "evil.tensorbench.zip" in page
    assert str(tmp_path) not in page
    assert EVIL not in (tmp_path / "out" / "tables" / "tables.md").read_text()
    for table in (tmp_path / "out" / "tables").glob("*.csv"):
        assert not re.search(r"(^|,|\")=cmd", table.read_text(), re.M), table
    assert "'=cmd" in (tmp_path / "out" / "tables" / "cells.csv").read_text()
