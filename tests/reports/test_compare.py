"""Tests the comparison of two experiments: changed settings, moved scores, and rows in only one of them."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from tensorbench.cli.comparison import print_comparison
from tensorbench.methods import UserError
from tensorbench.plan.rows import Row
from tensorbench.plan.trial import Trial
from tensorbench.reports.compare import Comparison, Move, compare
from tensorbench.reports.reading import read

from ..stored import Result, write
from .made_up import SMALL, Call, NewStore, plan_of, result

FIVE = SMALL | {"seeds": [0, 1, 2, 3, 4], "training": {"lr": 1e-3}}


def shifted(by: float) -> Callable[[Trial, Row], Result | None]:
    """A function like `result` that adds a little noise to all scores, and also this amount to TensLoRA's."""

    def result_of(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        assert made is not None
        noise = 0.001 * ((trial.seed * 7) % 3 - 1)
        return dataclasses.replace(made, score=made.score + noise + by * ("TensLoRA" in row.title))

    return result_of


def answered(more: int) -> Callable[[Trial, Row], Result | None]:
    """A function like `result` that adds this many correct answers, always on the same examples."""

    def result_of(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        assert made is not None
        labels, answers = np.asarray(made.labels), np.asarray(made.answers).copy()
        wrong = np.flatnonzero(answers != labels)[:more]
        answers[wrong] = labels[wrong]
        return dataclasses.replace(made, answers=answers, score=float((answers == labels).mean()))

    return result_of


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    """The URI of a store with two experiments of five seeds. Tests only read it."""
    made = new_store(tmp_path_factory.mktemp("compare"))
    write(made, plan_of(**FIVE | {"name": "before"}), result)
    more = {"name": "after", "training": {"lr": 2e-3}, "methods": [*FIVE["methods"], "lotr"]}
    write(made, plan_of(**FIVE | more), shifted(0.05))
    return made


def moves(comparison: Comparison) -> dict[str, Move]:
    return {move.method: move for move in comparison.moves}


def test_verdicts_are_what_the_simultaneous_intervals_say(uri: str) -> None:
    comparison = compare((uri, "before"), (uri, "after"))
    lora, att = moves(comparison)["LoRA"], comparison.moves[0]
    assert (att.method, att.verdict.split()[0], att.moved) == ("TensLoRA att", "better", True)
    assert (lora.verdict, lora.moved) == ("practically equivalent", False)
    assert att.difference == pytest.approx(0.05, abs=1e-3)
    assert [len(runs) for runs in att.runs] == [5, 5]
    # From seeds alone, because the stored predictions do not give these scores: Student's t for two
    # simultaneous claims.
    noise = np.array([0.001 * ((seed * 7) % 3 - 1) for seed in range(5)])
    half = stats.t.ppf((1 + 0.95**0.5) / 2, 4) * noise.std(ddof=1) / np.sqrt(5)
    assert lora.interval == pytest.approx((noise.mean() - half, noise.mean() + half))
    assert not lora.examples
    assert any("the score that" in note for note in comparison.notes)
    assert att.pairs == 5


def test_test_examples_count(tmp_path: Path, new_store: NewStore) -> None:
    made = new_store(tmp_path)
    write(made, plan_of(**FIVE | {"name": "before"}), result)
    write(made, plan_of(**FIVE | {"name": "after", "training": {"lr": 2e-3}}), answered(3))
    write(made, plan_of(**FIVE | {"name": "others", "seeds": [5, 6, 7, 8]}), answered(0))
    lora = moves(compare((made, "before"), (made, "after")))["LoRA"]
    assert lora.examples
    # Three more of 200 examples on every seed: seeds alone show no noise and would support no claim.
    assert lora.difference == pytest.approx(0.015)
    assert lora.interval is not None
    assert lora.interval[0] < 0.015 < lora.interval[1]
    apart = moves(compare((made, "before"), (made, "others")))["LoRA"]
    assert (apart.pairs, apart.seeds, apart.examples) == (0, (5, 4), True)
    assert apart.interval is not None
    x, y = (np.array([s.score for s in read(made, [n]).finished(0)]) for n in ("before", "others"))
    welch = stats.ttest_ind(y, x, equal_var=False).confidence_interval(0.95**0.5)
    assert apart.interval[1] - apart.interval[0] >= welch.high - welch.low


def test_a_metric_with_units_has_a_threshold_of_each_cell(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    """The threshold is a fraction of the cell's scores, stated in the text and the JSON."""

    def errors(scale: float) -> Callable[[Trial, Row], Result]:
        def result_of(trial: Trial, row: Row) -> Result:
            draw = np.random.default_rng(trial.seed)
            labels = draw.normal(size=100)
            answers = labels + scale * (2.0 if row.title == "LoRA" else 3.0) * draw.normal(size=100)
            score = float(np.sqrt(((answers - labels) ** 2).mean()))
            return Result(score=score, labels=labels, answers=answers, tags={"metric": "rmse", "unit": "kg"})

        return result_of

    made = new_store(tmp_path)
    write(made, plan_of(**FIVE | {"name": "before"}), errors(1.0))
    write(made, plan_of(**FIVE | {"name": "after", "training": {"lr": 2e-3}}), errors(0.8))
    document = json.loads(call("report", "after", "--against", "before", "--store", made, "--json").out)
    assert len(document["moves"]) == 2
    sizes = sorted(move["threshold"] for move in document["moves"])
    for move in document["moves"]:
        assert move["threshold"] == pytest.approx(0.01 * (move["before"] + move["after"]) / 2)
    ended = call("report", "after", "--against", "before", "--store", made)
    assert f"Thresholds: {sizes[0]:.3g} kg to {sizes[1]:.3g} kg of rmse" in " ".join(ended.out.split())
    with_threshold = call(
        "report", "after", "--against", "before", "--store", made, "--threshold", "rmse=0.5"
    )
    assert "Thresholds: 0.5 kg of rmse" in " ".join(with_threshold.out.split())


def test_cells_of_which_runs_collapsed_are_never_equivalent(tmp_path: Path, new_store: NewStore) -> None:
    def results_with(right: float) -> Callable[[Trial, Row], Result | None]:
        def of_trial(trial: Trial, row: Row) -> Result:
            low = trial.seed == 3 and row.title == "LoRA"
            noise = 0.001 * (right > 0.5) * (trial.seed % 3)
            return Result(score=0.9 - 0.3 * low + noise, answers=(), labels=())

        return of_trial

    made = new_store(tmp_path)
    write(made, plan_of(**FIVE | {"name": "before"}), results_with(0.5))
    write(made, plan_of(**FIVE | {"name": "after", "training": {"lr": 2e-3}}), results_with(0.6))
    compared = compare((made, "before"), (made, "after"))
    # The reason is shown beside the verdict.
    assert sum("1 of 5 runs collapsed" in note for note in compared.notes) == 1
    by_method = moves(compared)
    assert by_method["TensLoRA att"].verdict.endswith("practically equivalent")
    assert by_method["LoRA"].verdict.startswith("undecided")
    assert by_method["LoRA"].interval == pytest.approx(by_method["TensLoRA att"].interval)


def test_a_lost_run_costs_its_pair(tmp_path: Path, new_store: NewStore) -> None:
    def lost(trial: Trial, row: Row) -> Result | None:
        return None if trial.seed == 3 else shifted(0.05)(trial, row)

    made = new_store(tmp_path)
    write(made, plan_of(**FIVE | {"name": "before"}), result)
    write(made, plan_of(**FIVE | {"name": "after", "training": {"lr": 2e-3}}), lost)
    att = moves(compare((made, "before"), (made, "after")))["TensLoRA att"]
    assert (att.pairs, att.seeds, att.planned) == (4, (5, 4), (5, 5))
    assert att.moved
    assert att.before is not None
    assert att.after is not None
    assert att.difference == pytest.approx(att.after - att.before)


def test_scores_measured_differently_are_not_compared(
    call: Call, tmp_path: Path, new_store: NewStore
) -> None:
    made = new_store(tmp_path)
    write(made, plan_of(**FIVE | {"name": "before"}), result)
    other = {"name": "after", "tasks": [{"task": "digits", "test_size": 100}]}
    write(made, plan_of(**FIVE | other), shifted(0.05))
    for move in compare((made, "before"), (made, "after")).moves:
        assert (move.verdict, move.interval, move.difference) == ("measured otherwise", None, None)
        assert move.differs["test_size"] == ("null", "100")
    assert (
        "not compared, since test_size null → 100"
        in call("report", "after", "--against", "before", "--store", made).out
    )


def test_changes_and_rows_in_one_experiment_only_are_named(uri: str) -> None:
    comparison = compare((uri, "before"), (uri, "after"))
    assert [(c.what, c.before, c.after, c.cells) for c in comparison.changes] == [
        ("training lr", "0.001", "0.002", 2),
        ("training head_lr", "0.001", "0.002", 2),
    ]
    assert comparison.only == ([], ["LoTR · isorank 2 · digits · tiny-random-vit"])


def test_too_few_seeds_and_the_same_trials_are_said(tmp_path: Path, new_store: NewStore) -> None:
    made = new_store(tmp_path)
    write(made, plan_of(**SMALL | {"name": "a", "seeds": [0, 1]}), result)
    write(made, plan_of(**SMALL | {"name": "b", "seeds": [0, 1]}), result)
    write(made, plan_of(**SMALL | {"name": "c", "seeds": [2, 3]}), result)
    assert {move.verdict for move in compare((made, "a"), (made, "b")).moves} == {"same trials"}
    assert {move.verdict for move in compare((made, "a"), (made, "c")).moves} == {"no verdict"}


@pytest.mark.parametrize(("by", "verdict"), [(0.0, "same scores"), (0.05, "no verdict")])
def test_differences_without_spread_give_no_estimate_of_noise(
    by: float, verdict: str, tmp_path: Path, new_store: NewStore
) -> None:
    def result_of(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        return made and dataclasses.replace(made, score=made.score + by)

    made = new_store(tmp_path)
    write(made, plan_of(**FIVE | {"name": "before"}), result)
    write(made, plan_of(**FIVE | {"name": "after", "training": {"lr": 2e-3}}), result_of)
    for move in compare((made, "before"), (made, "after")).moves:
        assert (move.verdict, move.interval, move.moved) == (verdict, None, False)
        assert move.difference == pytest.approx(by)


def test_the_command_shows_the_comparison_and_writes_json(call: Call, uri: str) -> None:
    shown = call("report", "after", "--against", "before", "--store", uri)
    assert shown.code == 0
    assert "1 of 2 common cells" in shown.out
    wider = call("report", "after", "--against", "before", "--store", uri, "--threshold", "accuracy=0.2").out
    assert "practically equivalent" in " ".join(wider.split())
    assert "Only in after: LoTR" in shown.out
    content = json.loads(call("report", "after", "--against", "before", "--store", uri, "--json").out)
    assert content["moves"][0]["verdict"].startswith("better")
    assert len(content["moves"][0]["runs"][0][0]) == 32


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_keeps_methods_differences_and_verdicts(uri: str, width: int) -> None:
    names = ("results/before_the_change.tensorbench.zip", "results/after_the_change.tensorbench.zip")
    comparison = dataclasses.replace(compare((uri, "before"), (uri, "after")), names=names, changes=())
    shown = io.StringIO()
    print_comparison(Console(file=shown, width=width), comparison)
    for move in comparison.moves:
        line = next(line for line in shown.getvalue().splitlines() if line.startswith(f" {move.method[:8]}"))
        assert f"{100 * move.difference:+.2f}" in line
        assert line.split()[-1] in move.verdict
    assert "…" not in shown.getvalue()


def test_without_common_cells_nothing_is_said_to_be_equal(
    call: Call, tmp_path: Path, new_store: NewStore
) -> None:
    made = new_store(tmp_path)
    for name, method in (("a", "lora"), ("b", "lotr"), ("c", "lora")):
        write(made, plan_of(**SMALL | {"name": name, "methods": [method]}), result)
    equal = "Neither configuration nor provenance differs."
    shown = call("report", "b", "--against", "a", "--store", made).out
    assert ("share no cell" in shown, equal in shown) == (True, False)
    assert equal in call("report", "c", "--against", "a", "--store", made).out


def test_incomparable_experiments_are_refused(call: Call, uri: str) -> None:
    with pytest.raises(UserError, match="compared with itself"):
        compare((uri, "before"), (uri, "before"))
    ended = call("report", "afetr", "--against", "before", "--store", uri)
    assert ended.code == 2
    assert "'after'" in ended.err
