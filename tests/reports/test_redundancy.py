"""Tests reports of redundancy analyses stored beside the trials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tensorbench.methods import UserError
from tensorbench.records import Wired
from tensorbench.records.record import Record
from tensorbench.records.redundancy import ComponentWorth, Redundancy, Spectrum
from tensorbench.records.words import YES, Artifact, Tag
from tensorbench.reports import figures
from tensorbench.reports.reading import read
from tensorbench.reports.redundancy import read as read_redundancy
from tensorbench.reports.report import write_report

from ..fixtures import NewStore
from ..stored import Result, write
from .made_up import SMALL, plan_of


def analysis(record: Record) -> Redundancy:
    return Redundancy(
        trial_id=record.trial_id,
        run_id=record.run_id,
        method="<of> att",
        ranks=(2, 2, 2),
        metric="accuracy",
        norm=1.0,
        modes={"input": Spectrum(singular_values=(3.0, 1.0, 0.1), effective_rank=1.8, rank_99=2)},
        components=(
            ComponentWorth(layer=0, projection="query", head=1, share=0.4, drop=0.02),
            ComponentWorth(layer=1, projection="value", head=None, share=0.1, drop=None),
        ),
    )


def analysed(uri: str, content: Wired | None = None) -> Record:
    """Writes a store with a redundancy analysis, and returns the analysed run."""
    store = write(uri, plan_of(**SMALL), lambda trial, row: Result(score=0.6))
    record = store.records()[0]
    store.keep(record.run_id, Artifact.REDUNDANCY, content or analysis(record))
    store.tag(record.run_id, Tag.REDUNDANCY, YES)
    return record


def test_the_page_shows_analyses_with_names_escaped(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    record = analysed(uri)
    (stored,) = read_redundancy(read(uri, ["small"]))
    assert (stored.run_id, stored.effective_ranks) == (record.run_id, {"input": 1.8})
    (drawn,) = figures.spectra(0, stored)
    done = write_report("small", out=tmp_path / "out", store=uri, log=False)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;of&gt; att" in page
    assert "<of> att" not in page
    assert f"figures/{drawn.name}.svg" in done.files
    (content,) = json.loads((tmp_path / "out" / "report.json").read_text())["redundancy"]
    assert content["run_id"] == record.run_id


def test_an_artifact_of_another_form_is_named(tmp_path: Path, new_store: NewStore) -> None:
    class Half(Wired):
        name: str

    uri = new_store(tmp_path)
    record = analysed(uri, Half(name="half"))
    message = rf"redundancy\.json of run {record.run_id} .* is broken.*field 'trial_id' is required"
    with pytest.raises(UserError, match=message):
        read_redundancy(read(uri, ["small"]))
