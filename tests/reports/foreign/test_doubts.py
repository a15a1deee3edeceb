"""Tests that absent runs, copies, unequal effort and scores at chance weaken verdicts on foreign tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tensorbench import load_results
from tensorbench.methods import UserError
from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.studies import CompleteStudies, filled

from ...messages import naming
from .made_up_tables import HEADING, table

RUNS = [f"{method},{task},{seed},{7 + seed}.5" for method in "AB" for task in "xy" for seed in range(3)]


def grid(gains: dict[str, float], tasks: int = 4, seeds: int = 5, noise: float = 0.007) -> pd.DataFrame:
    """Runs of methods with these gains over a common level."""
    rng = np.random.default_rng(0)
    lines = [
        (method, f"t{task}", seed, 0.7 + 0.03 * task + gain + rng.normal(0, noise))
        for method, gain in gains.items()
        for task in range(tasks)
        for seed in range(seeds)
    ]
    return pd.DataFrame(lines, columns=["method", "task", "seed", "score"])


def without_the_worst(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """Leaves out New's worst runs on each task."""
    worst = frame[frame["method"] == "New"].sort_values("score").groupby("task").head(count)
    return frame.drop(worst.index)


def copied(frame: pd.DataFrame, times: int) -> pd.DataFrame:
    seeds = frame["seed"].nunique()
    return pd.concat([frame.assign(seed=frame["seed"] + seeds * number) for number in range(times)])


def tries(frame: pd.DataFrame, **counts: int) -> pd.DataFrame:
    return frame.assign(trials=frame["method"].map(counts))


def rates(**counts: int) -> pd.DataFrame:
    """Methods of equal scores that tried these numbers of learning rates from 1e-4 to 1e-2."""
    rng = np.random.default_rng(0)
    lines = [
        (method, seed, rate, score + rng.normal(0, 0.002), score)
        for method, count in counts.items()
        for seed in range(5)
        for rate in np.logspace(-4, -2, count)
        for score in [0.8 - 0.02 * (np.log10(rate) + 3) ** 2 + rng.normal(0, 0.002)]
    ]
    return pd.DataFrame(lines, columns=["method", "seed", "lr", "score", "validation"])


def thinned(frame: pd.DataFrame) -> pd.DataFrame:
    """Leaves Bad two runs on one task."""
    return frame[(frame["method"] != "Bad") | (frame["task"] != "t1") | (frame["seed"] < 2)]


def verdict_on(results: Any, method: str) -> Verdict:
    (block,) = results.analysis.blocks
    (found,) = (e.differences[block.k].verdict for e in block.compared if e.method == method)
    return found


#: A table, options, the method, and its verdict with what the reason says.
Tables = list[tuple[Callable[[], pd.DataFrame], dict[str, Any], str, Word, str]]
TABLES: Tables = [
    # Equal methods: the best runs of one look better.
    (lambda: without_the_worst(grid({"LoRA": 0, "New": 0}), 2), {}, "New", Word.INCONCLUSIVE, "8 runs"),
    # Its absent runs cannot undo a large gain.
    (lambda: without_the_worst(grid({"LoRA": 0, "New": 0.15}), 1), {}, "New", Word.BETTER, ""),
    # The reference's absent runs may have been good.
    (lambda: grid({"LoRA": 0, "New": 0.02}).drop(index=[0, 1]), {}, "New", Word.BETTER, ""),
    (
        lambda: grid({"LoRA": 0, "New": 0}).drop(index=[0, 1, 5, 6, 10, 15]),
        {},
        "New",
        Word.INCONCLUSIVE,
        "6 runs",
    ),
    # One thin task is left out of the mean.
    (lambda: thinned(grid({"LoRA": 0, "Bad": -0.04, "C": 0})), {}, "Bad", Word.WORSE, ""),
    (
        lambda: tries(grid({"LoRA": 0, "New": 0.02}), LoRA=3, New=30),
        {},
        "New",
        Word.INCONCLUSIVE,
        "30 against",
    ),
    (lambda: tries(grid({"LoRA": 0, "New": 0}), LoRA=3, New=30), {}, "New", Word.INCONCLUSIVE, "30"),
    # Better with less effort, or with as much, is better.
    (lambda: tries(grid({"LoRA": 0, "New": 0.02}), LoRA=30, New=3), {}, "New", Word.BETTER, ""),
    (lambda: tries(grid({"LoRA": 0, "New": 0.02}), LoRA=3, New=3), {}, "New", Word.BETTER, ""),
    (lambda: grid({"LoRA": 0, "New": 0}, 1), {"chance": 0.7}, "New", Word.NONE, "neither is above chance"),
    (lambda: grid({"LoRA": 0, "New": 0.1}), {"chance": {"t1": 0.73}}, "New", Word.BETTER, ""),
    (lambda: copied(grid({"LoRA": 0, "New": 0}, seeds=2), 5), {}, "New", Word.NONE, "copies"),
    # Four rates against eight are compared after four trials.
    (lambda: rates(LoRA=4, New=8), {}, "New", Word.EQUIVALENT, ""),
]


@pytest.mark.parametrize(("made", "options", "method", "word", "reason"), TABLES)
def test_verdicts_are_as_strong_as_the_table_allows(
    made: Callable[[], pd.DataFrame], options: dict[str, Any], method: str, word: Word, reason: str
) -> None:
    found = verdict_on(load_results(made(), **options), method)
    assert found.word is word
    assert reason in found.reason
    assert bool(reason) == bool(found.reason)


@pytest.mark.parametrize(
    ("made", "options", "said"),
    [
        (lambda: without_the_worst(grid({"LoRA": 0, "New": 0}), 2), {}, naming("Incomplete", "8 of 40 runs")),
        (lambda: tries(grid({"LoRA": 0, "New": 0}), LoRA=3, New=30), {}, naming("3 (LoRA)", "30 (New)")),
        (
            lambda: grid({"LoRA": 0, "New": 0}, 1),
            {"chance": 0.7},
            naming("(70.00) on t0", "LoRA, New"),
        ),
        (lambda: copied(grid({"LoRA": 0, "New": 0}, seeds=2), 5), {}, naming("Suspected", "seeds 0 and 2")),
    ],
)
def test_the_first_lines_say_what_is_doubtful(
    made: Callable[[], pd.DataFrame], options: dict[str, Any], said: str
) -> None:
    answer = load_results(made(), **options).answer
    assert re.search(said, answer)
    assert not answer.startswith("No method")


def test_a_thin_task_is_named() -> None:
    results = load_results(thinned(grid({"LoRA": 0, "Bad": -0.04, "C": 0})))
    assert "Bad (on 3 of 4 tasks)" in results.answer
    assert any("on t1: left out" in note for note in results.analysis.blocks[0].notes)


@pytest.mark.parametrize(
    ("left_out", "counted"),
    [
        ([], ""),
        (["B,x,1"], "1 of 12 runs"),
        (["B,x,1", "A,y,0"], "2 of 12 runs"),
        (["B,y"], "3 of 12 runs"),
    ],
)
def test_absent_runs_are_counted(tmp_path: Path, left_out: list[str], counted: str) -> None:
    lines = [line for line in RUNS if not line.startswith(tuple(left_out))]
    results = load_results(table(tmp_path, lines))
    assert ("Incomplete" in results.answer) == bool(counted)
    assert counted in results.answer
    missing = sum(cell.missing for cell in results.all_cells)
    assert missing == (0 if left_out == ["B,y"] else len(left_out))


def test_methods_at_budgets_of_their_own_lack_no_run(tmp_path: Path) -> None:
    lines = [f"{line},{line[0]}" for line in RUNS]
    assert "Incomplete" not in load_results(table(tmp_path, lines, f"{HEADING},budget")).answer


def test_ids_as_seeds_are_refused() -> None:
    number = np.arange(20_000)
    frame = pd.DataFrame({"method": number % 900, "seed": number, "score": 0.5})
    with pytest.raises(UserError, match=naming("18,000,000 runs", "20,000", "ids")):
        load_results(frame)


def test_a_tie_on_one_of_two_tasks_is_no_copy(tmp_path: Path) -> None:
    tied = [*RUNS, "A,x,7,7.5", "A,y,7,6.5", "B,x,7,7.5", "B,y,7,6.6"]
    assert "copies" not in load_results(table(tmp_path, tied)).answer


def test_chance_is_guessed_from_labels(tmp_path: Path) -> None:
    lines, answers, rng = [], [], np.random.default_rng(0)
    labels = ["no"] * 60 + ["yes"] * 40
    for method in ("LoRA", "a"):
        for seed in range(4):
            right = rng.random(100) < 0.6
            lines.append(f"{method},t,{seed},{right.mean()}")
            answers += [
                f"{method},t,{seed},{number},{label},{int(each)}"
                for number, (label, each) in enumerate(zip(labels, right, strict=True))
            ]
    (tmp_path / "answers").mkdir()
    table(tmp_path / "answers", answers, "method,task,seed,example,label,score")
    results = load_results(table(tmp_path, lines), examples=str(tmp_path / "answers"))
    assert "Not shown to be above chance (60.00) on t: LoRA, a." in results.answer


@pytest.mark.parametrize(
    ("chance", "said"), [({"u": 0.5}, naming("--chance", "u", "t0")), (101, naming("--chance", "101"))]
)
def test_a_wrong_chance_is_refused(chance: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_results(grid({"LoRA": 0}), chance=chance)


def test_filled_studies_have_the_given_score_in_each_trial() -> None:
    rng = np.random.default_rng(0)
    studies = CompleteStudies(
        losses=rng.random((3, 2)), scores=rng.random((3, 2)), by_example=rng.random((3, 2, 5))
    )
    more = filled(studies, [5, 7], 0.25)
    assert more.numbers == (0, 1, 2, 5, 7)
    assert more.by_example is not None
    assert (more.scores[3:] == 0.25).all()
    assert (more.by_example[3:] == 0.25).all()
    assert (more.scores[:3] == studies.scores).all()
