"""Tests which files a report writes and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tensorbench.methods import UserError
from tensorbench.records.words import RunKind
from tensorbench.reports.report import MANIFEST, write_report
from tensorbench.store.connect import StoreError
from tensorbench.store.store import Store

from ..messages import naming
from .made_up import NAME, Call


def test_every_format_is_written_and_logged_on_the_suites_run(rich: str, written: Path) -> None:
    files = json.loads((written / MANIFEST).read_text())
    assert {"index.html", "report.json", "tables/tables.md", "tables/tables.tex", "tables/cells.csv"} <= set(
        files
    )
    figures = {Path(name).stem for name in files if name.startswith("figures/")}
    assert {f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")} <= set(files)
    assert {
        "score-vs-parameters-0",
        "score-vs-parameters-2",
        "score-vs-memory-1",
        "training-curves-5",
    } <= figures
    assert not any("time" in name for name in figures)
    opened = Store.existing(rich, NAME)
    suite_run = opened.records(RunKind.SUITE)[-1].run_id
    logged = {file.path for file in opened.client.list_artifacts(suite_run, "report")}
    assert {"report/index.html", "report/report.json", "report/tables", "report/figures"} == logged


def test_the_report_of_a_store_that_can_only_be_read_is_written_and_not_logged(
    call: Call, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("read-only file system")

    # Nothing is read-only to root.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr(Store, "keep_folder", refuse)
    ended = call("report", "small", "--store", small, "--out", tmp_path / "out", "--format", "json")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "report.json").exists()
    assert "suite run of small" in ended.out
    monkeypatch.undo()
    monkeypatch.setattr(Store, "keep_folder", refuse)
    ended = call("report", "small", "--store", small, "--out", tmp_path / "other", "--format", "json")
    assert ended.code == 2


def test_formats_can_be_picked(small: str, tmp_path: Path) -> None:
    done = write_report(small, ["small"], tmp_path / "out", ["json", "md"], log=False)
    assert set(done.files) == {"report.json", "tables/tables.md"}
    with pytest.raises(UserError, match=naming("'pdf'", "csv, html")):
        write_report(small, ["small"], tmp_path / "other", ["pdf"])
    assert not (tmp_path / "other").exists()


def test_a_folder_in_use_needs_force_which_spares_what_is_not_the_reports(small: str, tmp_path: Path) -> None:
    write_report(small, ["small"], tmp_path, ["json", "md"], log=False)
    mine = tmp_path / "tables" / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(UserError, match="--force"):
        write_report(small, ["small"], tmp_path, ["json"], log=False)
    write_report(small, ["small"], tmp_path, ["json"], log=False, force=True)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "tables" / "tables.md").exists()
    assert (tmp_path / "report.json").exists()
    (tmp_path / MANIFEST).write_text("5")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(small, ["small"], tmp_path, ["json"], log=False, force=True)


def test_an_experiment_that_is_not_there_gets_the_nearest_name(call: Call, rich: str, tmp_path: Path) -> None:
    ended = call("report", "rihc", "--store", rich, "--out", tmp_path / "out")
    assert ended.code == 2
    assert "no experiment 'rihc'" in ended.err
    assert "'rich'" in ended.err
    assert not (tmp_path / "out").exists()


def test_the_command_lists_its_files_and_notes(call: Call, small: str, tmp_path: Path) -> None:
    ended = call(
        "report", "small", "--store", small, "--out", tmp_path / "out", "--format", "csv", "--no-log"
    )
    assert ended.code == 0
    assert "note: 2 seeds" in ended.out
    assert "files to" in ended.out
