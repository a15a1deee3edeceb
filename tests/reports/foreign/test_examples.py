"""Tests scores of single examples beside a table of runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tensorbench import load_results
from tensorbench.methods import UserError

from .made_up_tables import difference, table


def answered(folder: Path, rng: np.random.Generator, examples: int = 200) -> tuple[Path, Path]:
    """A table of two methods with four seeds, and a folder with the answers of their runs."""
    lines, answers = [], []
    hard = rng.normal(size=examples)
    for method, level in (("LoRA", 0.0), ("a", 0.3)):
        for seed in range(4):
            right = (rng.normal(size=examples) + level > hard).astype(int)
            lines.append(f"{method},t,{seed},{right.mean():.3f}")
            answers += [f"{method},t,{seed},e{number},{each}" for number, each in enumerate(right)]
    (folder / "answers").mkdir()
    file = table(folder, lines)
    table(folder / "answers", answers, "method,task,seed,example,score", "a.csv")
    return file, folder / "answers"


def test_scores_of_examples_enter_the_interval(tmp_path: Path) -> None:
    file, folder = answered(tmp_path, np.random.default_rng(0))
    alone, crossed = load_results(file), load_results(file, examples=str(folder))
    assert difference(crossed)["difference"] == pytest.approx(difference(alone)["difference"], abs=0.001)
    part = crossed.analysis.blocks[0].compared[0].differences[1].effect.parts[0]
    assert part.count == 200
    assert part.examples > 0
    assert len(crossed.predictions) == 8 * 200


def test_examples_whose_mean_is_not_the_score_are_not_used(tmp_path: Path) -> None:
    file, folder = answered(tmp_path, np.random.default_rng(0))
    frame = pd.read_csv(file)
    results = load_results(frame.assign(score=frame["score"] / 2), examples=str(folder))
    assert any("mean of the examples is not the score of row 0" in note for note in results.notes)
    assert results.analysis.blocks[0].compared[0].differences[1].effect.parts[0].count is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("b,t,0,e0,1", "no run has method b"),
        ("a,t,0,e0,1", "example 'e0' of this run occurs twice"),
        ("a,t,0,new,7", "not from 0 to 1"),
    ],
)
def test_examples_that_fit_no_run_are_refused(tmp_path: Path, line: str, said: str) -> None:
    file, folder = answered(tmp_path, np.random.default_rng(0))
    with (folder / "a.csv").open("a", encoding="utf-8") as answers:
        answers.write(line + "\n")
    with pytest.raises(UserError, match=rf"a\.csv, line 1602: .*{said}"):
        load_results(file, examples=str(folder))
