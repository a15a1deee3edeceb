"""Tests that chosen and consistently forged results of studies do not verify."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench.checks.verify import verify
from tensorbench.records.measures import Measure
from tensorbench.store.store import Store

from ...packs import packed
from ..toy_runs import SHORT, run_inline
from ..toy_suites import VISION, plan
from .forged import Forged, best_studies

#: The rows of the plan.
HEAD, LORA, TENSLORA = range(3)

STUDY: dict[str, Any] = {
    **{key: value for key, value in VISION.items() if key not in ("seeds", "training")},
    "methods": ["head_only", {"method": "lora", "centre": 4e-3}, {"method": "tenslora", "variant": "att"}],
    "training": SHORT,
    "tuning": {"studies": 3, "points": 3, "lr": {"around": 5e-3}},
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Path:
    folder = tmp_path_factory.mktemp("study")
    store = Store.create(new_store(folder), "toy")
    run_inline(store, plan(STUDY))
    return packed(store.uri, "toy", folder)


def cherry_picked(forged: Forged) -> None:
    """Keeps the two studies with the best test scores of one method, as if they were all."""
    best = sorted(best_studies((trial for trial in forged.trials if trial.row == LORA), 2))
    forged.keep(lambda trial: trial.study in best)
    for trial in forged.trials:
        trial.renumber(best.index(trial.study))
    forged.plan_studies(2)


def the_last_study_gone(forged: Forged) -> None:
    forged.keep(lambda trial: trial.study < 2)
    forged.plan_studies(2)


def a_study_gone(forged: Forged) -> None:
    forged.keep(lambda trial: trial.study != 1)


def a_study_of_a_method_gone(forged: Forged) -> None:
    forged.keep(lambda trial: (trial.row, trial.study) != (LORA, 2))


def a_point_gone(forged: Forged) -> None:
    forged.trials.remove(forged.of(LORA, 1)[2])


def a_point_of_all_gone(forged: Forged) -> None:
    forged.keep(lambda trial: trial.place["point"] < 2)
    for row in forged.rows:
        row["studies"]["points"] = 2


def studies_renumbered(forged: Forged) -> None:
    for trial in forged.trials:
        trial.renumber((trial.study + 1) % 3)


def points_swapped(forged: Forged) -> None:
    first, second = forged.of(LORA, 0)[:2]
    first.renumber(0, 1)
    second.renumber(0, 0)


def a_foreign_seed(forged: Forged) -> None:
    forged.of(LORA, 0)[1].trial["seed"] = 77


def results_of_another_study(forged: Forged) -> None:
    for worse, better in zip(forged.of(LORA, 0), forged.of(LORA, 1), strict=True):
        worse.result_of(better)


def a_centre_times_three(forged: Forged) -> None:
    forged.rows[LORA]["studies"]["centre"] *= 3
    for trial in forged.trials:
        if trial.row == LORA:
            offset = trial.place["offset"]
            trial.rate(float(f"{3 * 4e-3 * 10**offset:.3e}"))


def a_rate(forged: Forged) -> None:
    forged.of(LORA, 1)[0].rate(4.4e-3)


def a_head_rate(forged: Forged) -> None:
    forged.rows[LORA]["studies"]["head_lr"] = 1e-3
    for trial in forged.trials:
        if trial.row == LORA:
            trial.trial["recipe"]["head_lr"] = 1e-3


def a_wider_window(forged: Forged) -> None:
    for row in forged.rows:
        row["studies"]["decades"] *= 2
    for trial in forged.trials:
        offset = round(2 * trial.place["offset"], 4)
        trial.rate(float(f"{forged.rows[trial.row]['studies']['centre'] * 10**offset:.3e}"), offset)


def runs_gone(forged: Forged) -> None:
    """Leaves out the worst half of a method's runs. The plan names them still."""
    own = [trial for trial in forged.trials if trial.row == LORA]
    for trial in sorted(own, key=lambda trial: trial.metrics[Measure.SCORE])[: len(own) // 2]:
        trial.ran = False


def a_method_gone(forged: Forged) -> None:
    forged.keep(lambda trial: trial.row != TENSLORA)


def a_method_more(forged: Forged) -> None:
    forged.suite["suite"]["methods"].pop()
    forged.rewrite_suites(lambda suite: suite.update(methods=suite["methods"][:2]))


def a_task_gone(forged: Forged) -> None:
    forged.suite["suite"]["tasks"].append({"task": "textile"})


def a_backbone_gone(forged: Forged) -> None:
    forged.suite["suite"]["backbones"].append({"name": "minilm-l6"})


def more_steps_for_one_method(forged: Forged) -> None:
    for trial in forged.trials:
        trial.trial["recipe"]["steps"] += trial.row == LORA


def another_batch_for_all(forged: Forged) -> None:
    for trial in forged.trials:
        trial.trial["recipe"]["batch_size"] = 8


def a_default_changed_for_one_method(forged: Forged) -> None:
    for trial in forged.trials:
        if trial.row == LORA:
            trial.trial["recipe"]["weight_decay"] = 0.1


def a_field_hidden_from_the_id(forged: Forged) -> None:
    for trial in forged.trials:
        if trial.row == LORA:
            trial.trial["recipe"]["warmup"] = 0.9
            trial.trial["idle"] = ["warmup"]


def another_option(forged: Forged) -> None:
    for trial in forged.trials:
        if trial.row == TENSLORA:
            trial.trial["method"]["scale"] = 2.0


def scored_on_validation(forged: Forged) -> None:
    for trial in forged.trials:
        trial.trial["evaluate"] = "validation"


def fewer_examples(forged: Forged) -> None:
    for trial in forged.trials:
        trial.trial["task"]["train_size"] = 40


def the_suite_shortened_afterwards(forged: Forged) -> None:
    """The plan and its suite have two studies. The trials were started from a suite of three."""
    the_last_study_gone(forged)
    forged.suite["suite"]["tuning"]["studies"] = 2


def a_method_dropped_from_the_suite(forged: Forged) -> None:
    a_method_gone(forged)
    forged.suite["suite"]["methods"].pop()


#: Consistent forgeries, and a part of what a finding about each says.
FORGERIES: dict[Callable[[Forged], None], str] = {
    cherry_picked: "seeds of the suite",
    the_last_study_gone: "seeds of the suite",
    a_study_gone: "trials of studies",
    a_study_of_a_method_gone: "trials of studies",
    a_point_gone: "trials of studies",
    a_point_of_all_gone: "tuning points of the suite",
    studies_renumbered: "place of trial",
    points_swapped: "place of trial",
    a_foreign_seed: "seed of trial",
    results_of_another_study: "outputs",
    a_centre_times_three: "tuning centre of the suite",
    a_rate: "rates of trial",
    a_head_rate: "tuning head_lr",
    a_wider_window: "place of trial",
    runs_gone: "plan, its trials",
    a_method_gone: "row TensLoRA att",
    a_method_more: "the row",
    a_task_gone: "task textile",
    a_backbone_gone: "backbone minilm-l6",
    more_steps_for_one_method: "training steps of the suite",
    another_batch_for_all: "training batch_size of the suite",
    a_default_changed_for_one_method: "training weight_decay",
    a_field_hidden_from_the_id: "fields without effect",
    another_option: "method scale of the suite",
    scored_on_validation: "evaluate of the suite",
    fewer_examples: "task train_size of the suite",
    the_suite_shortened_afterwards: "that started trials",
    a_method_dropped_from_the_suite: "that started trials",
}


def test_a_pack_that_is_packed_again_verifies(pack: Path, tmp_path: Path) -> None:
    result = verify(str(Forged(pack).write(tmp_path / "same.tensorbench.zip")))
    assert result.ok, [*result.faults, *result.unchecked]
    assert "toy holds studies 0 to 2 of 3 planned" in result.notes


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.__name__)
def test_forged_results_do_not_verify(pack: Path, tmp_path: Path, forgery: Callable[[Forged], None]) -> None:
    forged = Forged(pack)
    forgery(forged)
    result = verify(str(forged.write(tmp_path / "forged.tensorbench.zip")))
    assert [fault for fault in result.faults if FORGERIES[forgery] in fault.what], result


@pytest.mark.parametrize(
    "method",
    [
        {"method": "peft", "version": 1, "type": "PEANUT", "rank": 2, "config": {"depth": 10**7}},
        {"method": "loretta_rep", "version": 1, "rank": 2, "width": 10**18},
    ],
    ids=["depth", "width"],
)
def test_a_method_that_would_be_built_without_end_is_not_built(
    pack: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    forged = Forged(pack)
    for trial in forged.trials:
        if trial.row == LORA:
            trial.trial["method"] = method
    result = verify(str(forged.write(tmp_path / "forged.tensorbench.zip")))
    assert {each.what for each in result.unchecked if "plan" not in each.what} == {"trial id"}
    assert not result.ok
