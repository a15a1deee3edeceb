"""Tests the choice of a configuration: by validation loss, whatever test scores say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import Artifact
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.chosen import choose
from tensorbench.reports.reading import read
from tensorbench.store.artifacts import artifacts_of_run

from ..messages import naming
from ..stored import Result
from . import made_up
from .made_up import Analysed, answered
from .made_up_studies import ONE_TASK, plan_of

EXAMPLES = 1000
#: The offset at which a method's validation loss is lowest, in decades, and its test score.
TRUE = {"LoRA": (0.0, 0.9), "LoTR": (0.3, 0.8), "TensLoRA att": (-0.3, 0.7)}


def trained(trial: Trial, row: Row) -> Result:
    """LoTR has the lowest validation loss, and LoRA the best test score."""
    assert row.studies is not None
    best, score = TRUE[row.title]
    loss = (0.1 if row.title == "LoTR" else 0.2) + (row.studies.trials[trial.seed].offset - best) ** 2
    return answered(round(EXAMPLES * score), EXAMPLES, measures={Measure.SELECTED_LOSS: loss})


METHODS = ["lora", "lotr", {"method": "tenslora", "variant": "att"}]
SUITE: dict[str, Any] = ONE_TASK | {"methods": METHODS, "tuning": {"studies": 5, "points": 8}}


@pytest.fixture(scope="module")
def analysis(analysed: Analysed) -> Analysis:
    return analysed(trained, plan_of(**SUITE))


def test_validation_chooses_method_and_rate(analysis: Analysis) -> None:
    chosen = choose(analysis)
    plan = chosen.cell.studies
    assert plan is not None
    assert (chosen.cell.method, chosen.trial.method["method"]) == ("LoTR", "lotr")
    assert np.log10(chosen.lr / plan.centre) == pytest.approx(0.3, abs=0.1)
    assert "5 tunings" in chosen.facts["learning rate"]
    # What is known of its score is said, and is worse than LoRA's.
    assert "−10.00 points" in chosen.facts["beside LoRA"]
    assert chosen.facts["rates within a point of the best"].endswith("by 40 trials")
    # Only an adapter that is stored can be exported.
    trial_id = chosen.facts["lowest loss of a trial"]
    (seed,) = (seed for seed in chosen.cell.trials if seed.trial_id == trial_id)
    folder = artifacts_of_run(seed.record.artifacts)
    assert folder is not None
    (folder / Artifact.ADAPTER).touch()
    assert choose(analysis).facts["lowest loss of a trial"] == f"{trial_id}, whose model can be exported"


def test_a_best_rate_at_an_edge_is_said_beside_the_recipe(analysed: Analysed) -> None:
    def made(trial: Trial, row: Row) -> Result:
        """The same results, but the rates of LoTR are better the higher they are."""
        made = trained(trial, row)
        assert row.studies is not None
        loss = 0.1 - 0.05 * row.studies.trials[trial.seed].offset
        return replace(made, measures={Measure.SELECTED_LOSS: loss}) if row.title == "LoTR" else made

    chosen = choose(analysed(made, plan_of(**SUITE)))
    assert chosen.cell.method == "LoTR"
    assert "The best rates of LoTR lie at the upper edge" in chosen.facts["caution"]


def test_a_head_that_is_as_good_is_said_beside_the_recipe(analysed: Analysed) -> None:
    def made(trial: Trial, row: Row) -> Result:
        """No adapter learns anything, and the head does."""
        if row.title == "converged head":
            return answered(950, EXAMPLES)
        return replace(answered(EXAMPLES // 2, EXAMPLES), measures=trained(trial, row).measures)

    chosen = choose(analysed(made, plan_of(**SUITE | {"methods": [*METHODS, "converged_head"]})))
    assert "No adapter has a better mean than the converged head" in chosen.facts["caution"]
    assert "Nothing trained" in chosen.facts["caution"]


def test_the_choice_may_be_among_some_methods(analysis: Analysis) -> None:
    assert choose(analysis, ["tenslora", "LoRA"]).cell.method in ("LoRA", "TensLoRA att")
    with pytest.raises(UserError, match=naming("lota", "LoTR")):
        choose(analysis, ["lota"])


def test_a_recipe_is_of_one_task(analysed: Analysed) -> None:
    analysis = analysed(trained, plan_of(**SUITE | {"tasks": ["digits", "textile"]}))
    with pytest.raises(UserError, match=naming("digits", "textile", "--task")):
        choose(analysis)


def test_without_tuning_the_rate_is_the_suites(small: str, analysed: Analysed) -> None:
    with pytest.raises(UserError, match="validation loss"):
        choose(analyse(read(small, ["small"])))

    def with_losses(trial: Trial, row: Row) -> Result | None:
        made = made_up.result(trial, row)
        loss = {"LoRA": 0.2, "TensLoRA att": 0.3}[row.title]
        return made and replace(made, measures={Measure.SELECTED_LOSS: loss})

    chosen = choose(analysed(with_losses, made_up.plan_of(**made_up.SMALL)))
    assert chosen.cell.method == "LoRA"
    assert chosen.lr == chosen.trial.recipe["lr"]
    assert "not tuned" in chosen.facts["learning rate"]
