"""What differs among trials that one table puts side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.plan.rows import Row
from bench.plan.trial import Trial
from methods import UserError
from reports import mixtures
from reports.reading import read
from reports.report import write_report
from reports.study import Study

from ..stored import Result, write
from .made_up import SMALL, NewStore, plan_of, result, store


def test_one_suite_is_no_mixture(study: Study) -> None:
    # Only the rate of full fine-tuning differs, which its row names.
    assert mixtures.find(study) == []


def test_trials_that_measure_something_else_are_refused_unless_asked_for(
    tmp_path: Path, new_store: NewStore
) -> None:
    uri = store(tmp_path, new_store)
    other = SMALL | {"name": "other", "evaluate": "validation", "training": {"epochs": 3}}
    write(uri, plan_of(**other), result)
    with pytest.raises(UserError, match=r"evaluate differs on digits.*test \(small\); validation \(other\)"):
        write_report(uri, ["small", "other"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = write_report(uri, ["small", "other"], tmp_path / "out", ["html"], mixed=True)
    assert {m.what for m in done.mixtures if m.serious} == {"evaluate"}
    assert "training epochs" in {m.what for m in done.mixtures if not m.serious}
    assert "These scores do not compare." in (tmp_path / "out" / "index.html").read_text()
    # Both experiments' LoRA stand there, told apart.
    assert {"LoRA", "LoRA · other"} <= set(done.analysis.study.cells["method"])


def test_other_rates_are_flagged_between_experiments(tmp_path: Path, new_store: NewStore) -> None:
    uri = store(tmp_path, new_store)
    write(uri, plan_of(**SMALL | {"name": "other", "training": {"lr": 0.25}}), result)
    (rate, _) = [m for m in mixtures.find(read(uri, ["small", "other"])) if m.what.endswith("lr")]
    assert (rate.what, rate.serious) == ("training lr", False)
    assert rate.values["0.25"] == "other"


def test_other_library_versions_are_flagged(tmp_path: Path, new_store: NewStore) -> None:
    def told(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        assert made is not None
        return dataclasses.replace(made, tags={"provenance.version_torch": f"2.{trial.seed}"})

    found = mixtures.find(read(store(tmp_path, new_store, told=told), ["small"]))
    assert [str(m) for m in found] == ["version of torch differs: 2.0 (2 trials); 2.1 (2 trials)"]
