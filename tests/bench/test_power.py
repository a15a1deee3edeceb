"""Tests the smallest differences that a suite can find, without and with stored results."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tensorbench.cli.tables import print_tables
from tensorbench.methods import UserError
from tensorbench.plan.pairs import Part
from tensorbench.reports.analysis import analyse
from tensorbench.reports.inference.power import Response, of_stored
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection
from tensorbench.run.power import ASSUMED, DISAGREEMENT, Power, power, powers
from tensorbench.tasks import TASKS

from ..fixtures import Call
from ..messages import naming
from ..packs import packed
from ..reports import made_up_studies
from ..reports.made_up import plan_of, result
from ..stored import write as store
from .toy_runs import SHORT
from .toy_suites import TEXT, UNSEEDED, plan, write

SIMILARITY = Path(__file__).parents[1] / "data" / "similarity.csv"


def test_every_budget_has_a_line_for_several_noise_levels(tmp_path: Path) -> None:
    lines = powers(plan_of(), f"sqlite:///{tmp_path / 'none.db'}")
    assert [(line.budget, line.sd) for line in lines[: len(ASSUMED)]] == [
        ("isorank 2", pytest.approx(sd)) for sd in ASSUMED
    ]
    isorank = next(line for line in lines if line.budget == "isorank 2" and line.sd == pytest.approx(0.007))
    # Four methods besides LoRA, in three settings.
    assert (isorank.design.claims, isorank.design.settings, isorank.design.seeds) == (4, 3, 5)
    assert not isorank.stored


@pytest.mark.parametrize(("sd", "said"), [(None, "of 0.65 points, unless"), (0.02, "of 2 points;")])
def test_the_assumed_noise_of_studies_is_said(sd: float | None, said: str, tmp_path: Path) -> None:
    planned = made_up_studies.plan_of(**made_up_studies.ONE_TASK)
    notes = power(planned, f"sqlite:///{tmp_path / 'none.db'}", sd=sd).notes
    assert any(said in note for note in notes)
    # Test examples alone vary too much for any number of studies.
    assert "a dash: not even 1,000 do" in notes[0]


def test_assumed_noise_has_the_test_examples_of_each_task(tmp_path: Path) -> None:
    movies = {"task": "movie-sentiment", "test_size": 100}
    tasks = [movies, {"task": "amazon-sentiment", "metric": "accuracy"}]
    every = TASKS.get("amazon-sentiment").sizes
    assert every is not None
    nowhere = f"sqlite:///{tmp_path / 'none.db'}"

    def first_power(**changes: Any) -> Power:
        planned = plan(TEXT, methods=["lora", "lotr"], **{"tasks": tasks} | changes)
        return powers(planned, nowhere, sd=0.007)[0]

    both_tasks = first_power()
    assert both_tasks.design.examples == pytest.approx(DISAGREEMENT * (1 / 100 + 1 / every[2]) / 4)
    assert both_tasks.uncounted == ()
    assert first_power(tasks=tasks[:1]).design.examples == pytest.approx(DISAGREEMENT / 100)
    # Over test examples Matthews' correlation varies twice as much as accuracy. Seeds with their own splits
    # already include test examples.
    matthews = first_power(tasks=[movies | {"metric": "matthews"}])
    assert matthews.design.examples == pytest.approx(4 * DISAGREEMENT / 100)
    assert first_power(tasks=[movies | {"split": "per_seed"}]).design.examples == 0


def test_tasks_whose_test_examples_are_not_known_are_named(tmp_path: Path) -> None:
    columns = {"text": ["first", "second"], "label": "score", "target": "regression", "metric": "rmse"}
    planned = plan(TEXT, tasks=[{"name": "similar", "csv": str(SIMILARITY), **columns}], methods=["lora"])
    arguments = planned, f"sqlite:///{tmp_path / 'none.db'}", 0.007
    assert [(line.uncounted, line.design.examples) for line in powers(*arguments)] == [(("similar",), 0.0)]
    assert any("similar" in note for note in power(*arguments).notes)


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_keeps_what_is_found(tmp_path: Path, width: int) -> None:
    arguments = plan_of(), f"sqlite:///{tmp_path / 'none.db'}"
    first_power, shown = powers(*arguments)[0], io.StringIO()
    print_tables(power(*arguments), console=Console(file=shown, width=width))
    first = next(line for line in shown.getvalue().splitlines() if line.startswith(" isorank"))
    numbers = (first_power.sd, first_power.design.finds, first_power.design.margin)
    assert {f"{100 * number:.2f}" for number in numbers} <= {*first.split()}
    assert "…" not in shown.getvalue()


def test_sizes_of_one_method_are_methods_of_their_own(tmp_path: Path) -> None:
    planned = plan(methods=[{"method": "lora", "each": {"rank": [1, 2, 3]}}, "head_only"], budgets=[])
    (line,) = powers(planned, f"sqlite:///{tmp_path / 'none.db'}", sd=0.007)
    # One of the three is the reference of the others, as in a report, and the head is no comparison.
    assert line.design.claims == 2


def test_stored_runs_give_the_noise(tmp_path: Path, new_store: Callable[[Path], str]) -> None:
    uri = new_store(tmp_path)
    store(uri, plan_of(seeds=[0, 1, 2]), result)
    planned = plan_of()
    isorank = next(line for line in powers(planned, uri) if line.budget == "isorank 2")
    assert isorank.stored
    assert isorank.design.seeds == 5
    assert isorank.design.examples > 0
    assert powers(planned, uri, sd=0.01)[0].sd == pytest.approx(0.01)
    with pytest.raises(UserError, match=r"'runs\.csv' is not supported"):
        powers(planned, "runs.csv")


def test_the_noise_is_that_of_the_plans_trials_in_any_experiment_or_pack(
    tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    """A plan under another name, with a method more than the stored studies and one fewer."""
    uri, variant = new_store(tmp_path), {"method": "tenslora", "variant": "qkv_depth"}
    store(uri, made_up_studies.plan_of(methods=["lora", variant, "full"]), made_up_studies.result)
    planned = made_up_studies.plan_of(name="extended", methods=["lora", variant, "lotr"])
    common = Selection(methods=["LoRA", "TensLoRA qkv_depth"])
    (block,) = analyse(read(uri, [made_up_studies.NAME], common)).blocks
    assert block.design is not None
    sizes = {"tasks": 2, "studies": 4, "points": 4, "k": 4, "claims": 2}
    expected = of_stored(block.design, Response(decades=1), **sizes)
    (line,) = powers(planned, uri)
    assert line.design == expected
    assert line.source.startswith(f"64 trials of {made_up_studies.NAME} (LoRA, TensLoRA qkv_depth)")
    assert line.source in power(planned, uri).notes[1]
    (line,) = powers(planned, str(packed(uri, made_up_studies.NAME, tmp_path)))
    assert line.design == expected
    # Fewer new studies do not make the stored ones fewer.
    (line,) = powers(planned.select(Part(studies=[0, 1, 2])), uri, whole=planned)
    assert line.design == of_stored(block.design, Response(decades=1), **sizes | {"studies": 3})


def test_metrics_have_lines_of_their_own(tmp_path: Path) -> None:
    planned = plan_of(
        tasks=["movie-sentiment", "tweet-sentiment"],
        methods=["lora", "lotr"],
        backbones=["tiny-random-bert"],
        budgets=[{"isorank": 2}],
    )
    lines = powers(planned, f"sqlite:///{tmp_path / 'none.db'}", sd=0.007)
    assert [(line.metric, line.threshold, line.design.settings) for line in lines] == [
        ("accuracy", 0.01, 1),
        ("matthews", 0.02, 1),
    ]
    with_thresholds = powers(
        planned, f"sqlite:///{tmp_path / 'none.db'}", 0.007, {"accuracy": 0.02, "matthews": 0.1}
    )
    assert [line.threshold for line in with_thresholds] == [0.02, 0.1]
    with pytest.raises(UserError, match="several metrics"):
        powers(planned, f"sqlite:///{tmp_path / 'none.db'}", 0.007, 0.01)


def test_scores_with_units_have_a_line_for_each_task(tmp_path: Path) -> None:
    columns = {"text": ["first", "second"], "label": "score", "target": "regression", "metric": "rmse"}
    tasks = [{"name": name, "csv": str(SIMILARITY), **columns} for name in ("one", "other")]
    planned, nowhere = plan(TEXT, tasks=tasks, methods=["lora", "lotr"]), f"sqlite:///{tmp_path / 'none.db'}"
    lines = powers(planned, nowhere, sd=0.007)
    assert [(line.metric, line.task, line.design.settings) for line in lines] == [
        ("rmse", "one", 1),
        ("rmse", "other", 1),
    ]
    # A threshold in units cannot be compared with assumed noise, which is relative to the score.
    with pytest.raises(UserError, match=naming("'one'", "assumed noise")):
        powers(planned, nowhere, 0.007, {"rmse": 0.5})
    of_text = {"backbones": ["tiny-random-bert"], "methods": ["lora", "lotr"], "training": {"batch_size": 8}}
    studied = made_up_studies.plan_of(tasks=tasks, **of_text)
    with pytest.raises(UserError, match=naming("'one'", "assumed noise")):
        powers(studied, nowhere, threshold={"rmse": 0.5})


def test_the_command_shows_the_power_and_writes_json(call: Call, tmp_path: Path) -> None:
    suite, uri = write(tmp_path, seeds=[0, 1, 2]), f"sqlite:///{tmp_path / 'none.db'}"
    shown = call("plan", suite, "--store", uri, "--power", "--sd", "0.007", "--threshold", "0.02")
    assert shown.code == 0
    assert " for 2" in shown.out
    assert "80% of the time" in shown.out
    assert "no run collapses" in shown.out
    document = json.loads(call("plan", suite, "--store", uri, "--power", "--sd", "0.007", "--json").out)
    assert [line["sd"] for line in document["power"]] == [pytest.approx(0.007)]
    assert "power" not in json.loads(call("plan", suite, "--store", uri, "--json").out)


def test_looks_expect_fewer_trials_than_all(tmp_path: Path, call: Call) -> None:
    tuning = {"studies": 8, "points": 4, "looks": {"after": [3, 5, 8], "margin": 40}}
    suite = write(tmp_path, UNSEEDED, methods=["lora", "lotr", "lora_xs"], training=SHORT, tuning=tuning)
    nowhere = f"sqlite:///{tmp_path / 'none.db'}"
    ended = call("plan", suite, "--store", nowhere, "--power", "--sd", "0.001", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    equal = document["looks"][0]
    assert equal["true difference"] == "0"
    assert float(equal["coverage"].rstrip("%")) > 95
    assert 36 <= int(equal["trials"]) < 96
    assert any("96" in note for note in document["forecast"]["notes"])
    assert document["power"][0]["trials_of_tuning"] == 4


def test_a_margin_that_no_design_shows_is_told_before_work_starts(tmp_path: Path, call: Call) -> None:
    tuning = {"studies": 3, "points": 2, "looks": {"after": [3], "k": 1, "margin": 0.01}}
    suite = write(tmp_path, UNSEEDED, methods=["lora", "lotr"], training=SHORT, tuning=tuning)
    ended = call("plan", suite, "--store", f"sqlite:///{tmp_path / 'none.db'}", "--power")
    assert re.search(naming("tuning.looks.margin", 0.01, "a margin of"), ended.out.replace("\n", " "))
    refused = call("plan", suite, "--power", "--threshold", "0.02")
    assert re.search(naming("threshold", "tuning.looks.margin", 0.01), refused.err)
