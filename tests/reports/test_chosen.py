"""Tests the choice of a configuration: by validation loss, whatever test scores say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.chosen import choose
from tensorbench.reports.reading import read

from ..messages import naming
from ..stored import Result, write
from .made_up import SMALL, NewStore, result, store
from .made_up_studies import NAME, plan_of

EXAMPLES = 1000
#: The offset at which a method's validation loss is lowest, in decades, and its test score.
TRUE = {"LoRA": (0.0, 0.9), "LoTR": (0.3, 0.8), "TensLoRA att": (-0.3, 0.7)}


def trained(trial: Trial, row: Row) -> Result:
    """LoTR has the lowest validation loss, and LoRA the best test score."""
    assert row.studies is not None
    best, score = TRUE[row.title]
    loss = (0.1 if row.title == "LoTR" else 0.2) + (row.studies.trials[trial.seed].offset - best) ** 2
    labels = np.arange(EXAMPLES) % 2
    answers = np.where(np.arange(EXAMPLES) < EXAMPLES * score, labels, 1 - labels)
    return Result(score=score, labels=labels, answers=answers, measures={Measure.SELECTED_LOSS: loss})


def analysed(folder: Path, new_store: NewStore, **changes: object) -> Analysis:
    uri = new_store(folder)
    methods = ["lora", "lotr", {"method": "tenslora", "variant": "att"}]
    suite = {"methods": methods, "tasks": ["digits"], "backbones": ["tiny-random-vit"], **changes}
    write(uri, plan_of(**suite, tuning={"studies": 5, "points": 8}), trained)
    return analyse(read(uri, [NAME]))


def test_validation_chooses_method_and_rate(tmp_path: Path, new_store: NewStore) -> None:
    chosen = choose(analysed(tmp_path, new_store))
    plan = chosen.cell.studies
    assert plan is not None
    assert (chosen.cell.method, chosen.trial.method["method"]) == ("LoTR", "lotr")
    assert np.log10(chosen.lr / plan.centre) == pytest.approx(0.3, abs=0.1)
    assert "5 tunings" in chosen.facts["learning rate"]
    # What is known of its score is said, and is worse than LoRA's.
    assert "−10.00 points" in chosen.facts["beside LoRA"]
    assert chosen.facts["rates within a point of the best"].endswith("by 40 trials")


def test_the_choice_may_be_among_some_methods(tmp_path: Path, new_store: NewStore) -> None:
    analysis = analysed(tmp_path, new_store)
    assert choose(analysis, ["tenslora", "LoRA"]).cell.method in ("LoRA", "TensLoRA att")
    with pytest.raises(UserError, match=naming("lota", "LoTR")):
        choose(analysis, ["lota"])


def test_a_recipe_is_of_one_task(tmp_path: Path, new_store: NewStore) -> None:
    analysis = analysed(tmp_path, new_store, tasks=["digits", "textile"])
    with pytest.raises(UserError, match=naming("digits", "textile", "--task")):
        choose(analysis)


def test_without_tuning_the_rate_is_the_suites(tmp_path: Path, new_store: NewStore) -> None:
    with pytest.raises(UserError, match="validation loss"):
        choose(analyse(read(store(tmp_path / "none", new_store), [SMALL["name"]])))

    def with_losses(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        loss = {"LoRA": 0.2, "TensLoRA att": 0.3}[row.title]
        return made and replace(made, measures={Measure.SELECTED_LOSS: loss})

    uri = store(tmp_path / "seeds", new_store, result_of=with_losses)
    chosen = choose(analyse(read(uri, [SMALL["name"]])))
    assert chosen.cell.method == "LoRA"
    assert chosen.lr == chosen.trial.recipe["lr"]
    assert "not tuned" in chosen.facts["learning rate"]
