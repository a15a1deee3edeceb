"""Tests reports of properties in which trials of one table differ but should not."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path
from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports import recipes
from tensorbench.reports.analysis import analyse
from tensorbench.reports.reading import read, tabulate
from tensorbench.reports.report import write_report
from tensorbench.reports.results import Results

from ..messages import naming
from ..stored import Result
from .made_up import SMALL, Stored, plan_of, result


def test_one_suite_is_no_mixture(results: Results) -> None:
    # Only the rate of full fine-tuning differs, and its row names it.
    assert recipes.find_mixtures(results) == []


def test_trials_that_measure_something_else_are_refused_unless_asked_for(
    tmp_path: Path, stored: Stored
) -> None:
    other = SMALL | {"name": "other", "evaluate": "validation", "training": {"epochs": 3}}
    uri = stored(result, plan_of(**SMALL), plan_of(**other))
    with pytest.raises(UserError, match=naming("evaluate", "digits", "test (small)", "validation (other)")):
        write_report("small", "other", out=tmp_path / "out", store=uri)
    assert not (tmp_path / "out").exists()
    done = write_report("small", "other", out=tmp_path / "out", store=uri, formats=["html"], mixed=True)
    assert {m.what for m in done.mixtures if m.serious} == {"evaluate"}
    assert "training epochs" in {m.what for m in done.mixtures if not m.serious}
    page = (tmp_path / "out" / "index.html").read_text()
    pasted = html.unescape(
        re.findall(r"<summary>Markdown to paste</summary><pre>(.*?)</pre>", page, re.DOTALL)[0]
    )
    for text in (page[page.index("<main>") :], pasted):
        assert text.index("do not compare") < text.index("TensLoRA att")
    assert "evaluate differs on digits" in pasted.replace("\\", "")
    # LoRA of both experiments appears, with distinct labels.
    assert {"LoRA", "LoRA · other"} <= set(done.analysis.results.cells["method"])


@pytest.fixture(scope="module")
def two(stored: Stored) -> str:
    """The URI of a store with two experiments that differ only in their seeds. Tests only read it."""
    return stored(result, plan_of(**SMALL), plan_of(**SMALL | {"name": "other", "seeds": [2, 3]}))


def test_rows_of_which_one_has_the_trials_of_the_other_are_one(stored: Stored) -> None:
    more = SMALL | {"name": "more", "seeds": [0, 1, 2]}
    uri = stored(result, plan_of(**SMALL), plan_of(**more))
    for names in (["small", "more"], ["more", "small"]):
        results = read(uri, names)
        assert [(cell.method, cell.finished) for cell in results.all_cells] == [
            ("LoRA", 3),
            ("TensLoRA att", 3),
        ]
        (block,) = analyse(results).blocks
        assert [part.pairs for each in block.compared for part in each.differences[1].effect.parts] == [3]


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("protocol", 99),
        ("evaluate", "validation"),
        ("weights_hash", "of others"),
        ("data", {"task": "x" * 80, "data_hash": "of others"}),
        ("train_size", 7),
        ("validation_size", 7),
        ("test_size", 7),
    ],
)
def test_nothing_compares_what_is_measured_otherwise(two: str, what: str, value: Any) -> None:
    def changed(results: Results) -> Results:
        """The study with this field changed in the trials of its last experiment."""
        *earlier, last = results.experiments
        trials = {
            id_: trial.model_copy(
                update={"task": trial.task | {what: value}} if what.endswith("_size") else {what: value}
            )
            for id_, trial in last.trials.items()
        }
        experiments = (*earlier, dataclasses.replace(last, trials=trials))
        return dataclasses.replace(results, experiments=experiments, all_cells=tabulate(experiments))

    results = read(two, ["small", "other"])
    assert len(analyse(results).blocks) == 1
    mixed = changed(results)
    with pytest.raises(UserError, match=naming(what)):
        recipes.refuse_mixtures(recipes.find_mixtures(mixed))
    # Side by side, each is compared with its own experiment's reference.
    first, second = analyse(mixed).blocks
    assert not {e.method for e in first.entrants} & {e.method for e in second.entrants}
    assert any(f"{what} " in note and "no verdict" in note for note in second.notes)


def test_other_rates_are_flagged_between_experiments(stored: Stored) -> None:
    other = SMALL | {"name": "other", "training": {"lr": 0.25}}
    uri = stored(result, plan_of(**SMALL), plan_of(**other))
    (rate, _) = [m for m in recipes.find_mixtures(read(uri, ["small", "other"])) if m.what.endswith("lr")]
    assert (rate.what, rate.serious) == ("training lr", False)
    assert rate.values["0.25"] == "other"


def test_values_that_begin_alike_are_told_apart() -> None:
    first, second = (f"{'x' * 80}{end}" for end in "ab")
    said = recipes.in_words({"weights_hash": (first, second), "evaluate": (first, "test")})
    assert said == f"weights_hash {first} against {second}; evaluate {'x' * 57}… against test"


def test_other_library_versions_are_flagged(stored: Stored) -> None:
    def result_of(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        assert made is not None
        return dataclasses.replace(made, tags={"provenance.version_torch": f"2.{trial.seed}"})

    mixtures = recipes.find_mixtures(read(stored(result_of, plan_of(**SMALL)), ["small"]))
    assert len(mixtures) == 1
    assert re.search(naming("torch", "2.0 (2", "2.1 (2"), str(mixtures[0]))
