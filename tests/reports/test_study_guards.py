"""Tests the guards of studies: nothing trained, a failed reference, and rates at the edge of a window."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tensorbench.cli.tables import print_tables
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.analysis import analyse
from tensorbench.reports.answers import answer, window_advice
from tensorbench.reports.blocks import Block
from tensorbench.reports.inference.effects import Answer
from tensorbench.reports.reading import read
from tensorbench.reports.report import write_report
from tensorbench.reports.summary import Summary, summarise
from tensorbench.store.store import Store

from ..stored import Result, write
from .made_up_studies import NAME, plan_of

NewStore = Callable[[Path], str]

QKV = "TensLoRA qkv_depth"
METHODS: list[Any] = ["converged_head", "lora", {"method": "tenslora", "variant": "qkv_depth"}]
#: A method's quality at its best rate, and the place of that rate in widths of the window from its centre.
Quality = Callable[[Row, Trial], tuple[float, float]]


def stored(folder: Path, new_store: NewStore, plan: Plan, quality: Quality, examples: int = 1000) -> str:
    """Stores made-up results: a parabola over rates with noise, by the quality of each trial's method."""

    def result(trial: Trial, row: Row) -> Result:
        best, optimum = quality(row, trial)
        place = row.studies.trials[trial.seed].offset / row.studies.decades if row.studies else optimum
        own = random.Random(trial.id)
        score = best - 0.3 * (place - optimum) ** 2 + own.gauss(0, 0.004)
        right = max(0, min(examples, round(examples * score)))
        labels = np.arange(examples) % 2
        answers = np.where(np.arange(examples) < right, labels, 1 - labels)
        loss = {Measure.SELECTED_LOSS: 2 - score, Measure.GUESSING_LOSS: 1.49}
        return Result(score=right / examples, labels=labels, answers=answers, measures=loss)

    uri = new_store(folder)
    write(uri, plan, result)
    return uri


def block_of(uri: str) -> Block:
    (block,) = analyse(read(uri, [NAME])).blocks
    return block


def summary_of(uri: str) -> tuple[Summary, str]:
    """The summary of a run, and what the terminal shows of it."""
    store, printed = Store.existing(uri, NAME), io.StringIO()
    plan = store.plan()
    assert plan is not None
    summary = summarise(store, plan)
    print_tables(*summary.tables("toy"), console=Console(file=printed, width=300))
    return summary, printed.getvalue()


def verdict_on(block: Block, method: str = QKV) -> tuple[Answer, str, str]:
    (entrant,) = (entrant for entrant in block.entrants if entrant.method == method)
    verdict = entrant.differences[block.k].verdict
    return verdict.answer, verdict.side, verdict.reason


# --- nothing trained ---


@pytest.fixture(scope="module")
def unlearnable(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    """Two CSV files of 96 texts whose labels nothing can learn. By luck LoRA scores twelve points more."""
    folder = tmp_path_factory.mktemp("unlearnable")
    tasks = []
    for name in ("reviews", "letters"):
        lines = (f"{name} number {number} of many,{number * 7 % 5 % 2}" for number in range(96))
        (folder / f"{name}.csv").write_text("body,stars\n" + "\n".join(lines) + "\n")
        tasks.append({"name": name, "csv": str(folder / f"{name}.csv"), "text": "body", "label": "stars"})
    plan = plan_of(
        tasks=tasks,
        backbones=["tiny-random-bert"],
        methods=METHODS[1:],
        floor="auto",
        training={"batch_size": 16},
    )
    assert {row.family for row in plan.rows} == {"lora", "tenslora", "converged_head"}
    means = {"LoRA": 0.58, QKV: 0.46, "converged head": 0.5}
    return stored(folder, new_store, plan, lambda row, trial: (means[row.title], 0.0), examples=50)


def test_page_and_terminal_open_with_nothing_trained_and_give_no_verdict(
    unlearnable: str, tmp_path: Path
) -> None:
    block = block_of(unlearnable)
    (entrant,) = block.compared
    difference = entrant.differences[block.k]
    # Without the guard, the interval would give a verdict.
    assert difference.interval is not None
    assert difference.interval[1] < -block.threshold
    assert verdict_on(block) == (Answer.NONE, "", "nothing trained on reviews, letters")
    assert {verdict.reason for verdict in difference.verdicts} == {"nothing trained"}
    said = answer(block)
    assert said.startswith("Nothing trained on reviews, letters: ")
    assert said.endswith(f"no verdict is given on {QKV}.")
    assert said.count("trials of tuning") == 1
    summary, printed = summary_of(unlearnable)
    assert printed.startswith("Nothing trained")
    assert summary.overview(NAME).notes[0].startswith("Nothing trained")
    write_report(NAME, out=tmp_path / "out", store=unlearnable, formats=["html", "md", "latex"], log=False)
    page = (tmp_path / "out" / "index.html").read_text()
    answered = page.split('class="answered"><b>')[1].split("</b>")[0]
    assert answered.startswith("Nothing trained")
    assert "no verdict: nothing trained" in page
    for text in (printed, answered, (tmp_path / "out" / "tables" / "tables.md").read_text()):
        for word in ("significantly", "by more than 1 point", "practically equivalent"):
            assert word not in text


def test_one_task_that_nothing_learnt_withholds_the_mean_and_leaves_the_others(
    tmp_path: Path, new_store: NewStore
) -> None:
    def quality(row: Row, trial: Trial) -> tuple[float, float]:
        edge = {"LoRA": 0.0, QKV: 0.06, "converged head": -0.03}[row.title]
        return (0.5 + edge / 6 if row.task == "digits" else 0.8 + edge), 0.0

    block = block_of(stored(tmp_path, new_store, plan_of(methods=METHODS), quality))
    assert verdict_on(block) == (Answer.NONE, "", "nothing trained on digits")
    on = {
        setting.task: verdict
        for entrant in block.compared
        for setting, verdict in zip(block.settings, entrant.differences[block.k].verdicts, strict=True)
    }
    assert (on["digits"].answer, on["movie-sentiment"].side) == (Answer.NONE, "better")


# --- the reference and the head ---


@pytest.mark.parametrize(
    ("edges", "sentence"),
    [
        ({"LoRA": -0.02, QKV: 0.05}, "LoRA (isoparameters 2) scored no better than a head on digits"),
        ({"LoRA": -0.02, QKV: -0.05}, "No adapter beats the converged head on digits"),
    ],
)
def test_a_reference_no_better_than_a_head_gives_no_verdict(
    tmp_path: Path, new_store: NewStore, edges: dict[str, float], sentence: str
) -> None:
    changes = {"methods": METHODS, "tasks": ["digits"], "backbones": ["tiny-random-vit"]}
    uri = stored(
        tmp_path, new_store, plan_of(**changes), lambda row, trial: (0.8 + edges.get(row.title, 0.0), 0.0)
    )
    block = block_of(uri)
    assert verdict_on(block) == (Answer.NONE, "", "LoRA is no better than a head")
    assert answer(block).startswith(sentence)
    assert summary_of(uri)[1].startswith(sentence)


# --- collapsed studies ---


def test_studies_whose_kept_trials_collapsed_come_first_and_are_never_equivalent(
    tmp_path: Path, new_store: NewStore
) -> None:
    changes = {
        "methods": ["head_only", *METHODS[1:]],
        "tasks": ["digits"],
        "backbones": ["tiny-random-vit"],
        "tuning": {"studies": 5, "points": 4},
    }
    collapsing = {14_000, 14_001, 14_002, 14_003}

    def quality(row: Row, trial: Trial) -> tuple[float, float]:
        if row.title == QKV and trial.seed in collapsing:
            return 0.51, 0.0
        return {"head only": 0.75}.get(row.title, 0.8), 0.0

    block = block_of(stored(tmp_path, new_store, plan_of(**changes), quality))
    assert block.guards[0].startswith(f"{QKV} on digits: 1 of 5 kept trials collapsed; with 5 studies")
    assert verdict_on(block)[0] is not Answer.WITHIN


# --- the edge of a window ---


def at(optima: dict[str, float], edges: dict[str, float]) -> Quality:
    return lambda row, trial: (0.8 + edges.get(row.title, -0.1), optima.get(row.title, 0.0))


ONE_TASK: dict[str, Any] = {
    "methods": METHODS,
    "tasks": ["digits"],
    "backbones": ["tiny-random-vit"],
    "tuning": {"studies": 5, "points": 8},
}


@pytest.mark.parametrize(
    ("optima", "edges", "judged", "method"),
    [
        ({}, {QKV: -0.05}, "worse", None),
        ({QKV: 0.6}, {QKV: -0.05}, "", QKV),
        ({QKV: -0.6}, {QKV: -0.05}, "", QKV),
        # Beyond its window it could only be better still.
        ({QKV: 0.6}, {QKV: 0.1}, "better", QKV),
        ({"LoRA": 0.6}, {QKV: 0.05}, "", "LoRA"),
        ({"LoRA": 0.6}, {QKV: -0.15}, "worse", "LoRA"),
    ],
)
def test_best_rates_at_an_edge_make_a_score_a_lower_bound(
    tmp_path: Path,
    new_store: NewStore,
    optima: dict[str, float],
    edges: dict[str, float],
    judged: str,
    method: str | None,
) -> None:
    uri = stored(tmp_path, new_store, plan_of(**ONE_TASK), at(optima, {"LoRA": 0.0} | edges))
    block = block_of(uri)
    said, side, reason = verdict_on(block)
    assert side == judged
    assert [edge.method for edge in block.edges] == ([method] if method else [])
    printed = summary_of(uri)[1]
    if method:
        end = "upper" if optima[method] > 0 else "lower"
        sentence = (
            f"The best rates of {method} lie at the {end} edge of its window: its score is a lower bound."
        )
        assert answer(block).endswith(sentence)
        assert sentence in printed
    if not judged:
        assert (said, reason) == (Answer.UNDECIDED, f"the best rates of {method} lie at an edge")
        assert f"undecided: the best rates of {method} lie at an edge" in printed


def test_equal_methods_are_not_called_equivalent_where_one_is_a_lower_bound(
    tmp_path: Path, new_store: NewStore
) -> None:
    block = block_of(
        stored(tmp_path, new_store, plan_of(**ONE_TASK), at({QKV: 0.6}, {"LoRA": 0.0, QKV: 0.01}))
    )
    assert verdict_on(block)[0] is Answer.UNDECIDED


def test_run_proposes_a_window_that_holds_the_best_rates(tmp_path: Path, new_store: NewStore) -> None:
    quality = at({QKV: 0.6}, {"LoRA": 0.0, QKV: 0.05})
    tuning = {"studies": 3, "points": 8, "lr": {"around": 1e-3, "decades": 2}}
    one = stored(tmp_path, new_store, plan_of(**ONE_TASK | {"tuning": tuning}), quality)
    (advice,) = window_advice(analyse(read(one, [NAME])))
    assert advice.endswith("lr: {around: 3.16e-3, decades: 3}")
    summary, printed = summary_of(one)
    assert advice in printed
    assert advice in summary.overview(NAME).notes
    # With a centre of its own, its row gets another.
    (tmp_path / "own").mkdir()
    own = ONE_TASK | {"tuning": tuning, "methods": [*METHODS[:2], METHODS[2] | {"centre": 5e-4}]}
    (advice,) = window_advice(
        analyse(read(stored(tmp_path / "own", new_store, plan_of(**own), quality), [NAME]))
    )
    assert QKV in advice
    assert advice.endswith("centre: 5e-3")
