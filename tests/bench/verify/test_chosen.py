"""Tests that chosen and consistently forged results of studies do not verify."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorbench.checks.verify import verify
from tensorbench.records.measures import Measure
from tensorbench.store.store import Store

from ...packs import packed
from ..toy_runs import SHORT, run_inline
from ..toy_suites import UNSEEDED, plan
from .forged import Forged, best_studies

#: The rows of the plan.
HEAD, LORA, TENSLORA = range(3)

STUDY: dict[str, Any] = {
    **UNSEEDED,
    "methods": [
        "head_only",
        {"method": "lora", "centre": {"digits": 4e-3}},
        {"method": "tenslora", "variant": "att"},
    ],
    "training": SHORT,
    "tuning": {"studies": 3, "points": 3, "lr": {"around": 5e-3}, "looks": {"after": [3], "k": 1}},
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Path:
    folder = tmp_path_factory.mktemp("study")
    store = Store.create(new_store(folder), "toy")
    run_inline(store, plan(STUDY))
    return packed(store.uri, "toy", folder)


def cherry_picked(forged: Forged) -> None:
    """Keeps the two studies with the best test scores of one method, as if they were all."""
    best = sorted(best_studies(forged.of(LORA), 2))
    forged.keep(lambda trial: trial.study in best)
    for trial in forged.trials:
        trial.renumber(best.index(trial.study))
    forged.plan_studies(2)


def results_of_another_study(forged: Forged) -> None:
    for worse, better in zip(forged.of(LORA, 0), forged.of(LORA, 1), strict=True):
        worse.result_of(better)


def a_point_of_all_gone(forged: Forged) -> None:
    forged.keep(lambda trial: trial.place["point"] < 2)
    for row in forged.rows:
        row["studies"]["points"] = 2


def points_swapped(forged: Forged) -> None:
    first, second = forged.of(LORA, 0)[:2]
    first.renumber(0, 1)
    second.renumber(0, 0)


def a_centre_times_three(forged: Forged) -> None:
    forged.rows[LORA]["studies"]["centre"] *= 3
    for trial in forged.of(LORA):
        trial.rate(float(f"{3 * 4e-3 * 10 ** trial.place['offset']:.3e}"))


def a_head_rate(forged: Forged) -> None:
    forged.rows[LORA]["studies"]["head_lr"] = 1e-3
    forged.change("recipe", row=LORA, head_lr=1e-3)


def a_wider_window(forged: Forged) -> None:
    for row in forged.rows:
        row["studies"]["decades"] *= 2
    for trial in forged.trials:
        offset = round(2 * trial.place["offset"], 4)
        trial.rate(float(f"{forged.rows[trial.row]['studies']['centre'] * 10**offset:.3e}"), offset)


def runs_gone(forged: Forged) -> None:
    """Leaves out the worst half of a method's runs. The plan names them still."""
    own = forged.of(LORA)
    for trial in sorted(own, key=lambda trial: trial.metrics[Measure.SCORE])[: len(own) // 2]:
        trial.ran = False


def a_method_more(forged: Forged) -> None:
    forged.suite["suite"]["methods"].pop()
    forged.rewrite_suites(lambda suite: suite.update(methods=suite["methods"][:2]))


def a_field_hidden_from_the_id(forged: Forged) -> None:
    forged.change("recipe", row=LORA, warmup=0.9)
    for trial in forged.of(LORA):
        trial.trial["idle"] = ["warmup"]


def the_last_study_gone(forged: Forged) -> None:
    forged.keep(lambda trial: trial.study < 2)
    forged.plan_studies(2)


def the_suite_shortened_afterwards(forged: Forged) -> None:
    """The plan and its suite have two studies. The trials were started from a suite of three."""
    the_last_study_gone(forged)
    forged.suite["suite"]["tuning"]["studies"] = 2


def a_method_dropped_from_the_suite(forged: Forged) -> None:
    forged.keep(lambda trial: trial.row != TENSLORA)
    forged.suite["suite"]["methods"].pop()


def a_look_of_the_plan(forged: Forged) -> None:
    for row in forged.rows:
        row["studies"]["looks"] = None


def a_margin_chosen_afterwards(forged: Forged) -> None:
    """The plan and its suite have another margin than the suite from which the trials were started."""
    forged.suite["suite"]["tuning"]["looks"]["margin"] = 4.0
    for row in forged.rows:
        row["studies"]["looks"]["margin"] = 4.0


#: Consistent forgeries, each with a part of what a finding about it says.
FORGERIES: dict[str, tuple[Callable[[Forged], object], str]] = {
    "studies chosen by test score": (cherry_picked, "seeds of the suite"),
    "the last study gone": (the_last_study_gone, "seeds of the suite"),
    "a study gone": (lambda forged: forged.keep(lambda trial: trial.study != 1), "trials of studies"),
    "a study of a method gone": (
        lambda forged: forged.keep(lambda trial: (trial.row, trial.study) != (LORA, 2)),
        "trials of studies",
    ),
    "a point gone": (lambda forged: forged.trials.remove(forged.of(LORA, 1)[2]), "trials of studies"),
    "a point of all gone": (a_point_of_all_gone, "tuning points of the suite"),
    "studies renumbered": (
        lambda forged: [trial.renumber((trial.study + 1) % 3) for trial in forged.trials],
        "place of trial",
    ),
    "points swapped": (points_swapped, "place of trial"),
    "a foreign seed": (lambda forged: forged.of(LORA, 0)[1].trial.update(seed=77), "seed of trial"),
    "results of another study": (results_of_another_study, "outputs"),
    "a centre times three": (a_centre_times_three, "tuning centre of the suite"),
    "a rate": (lambda forged: forged.of(LORA, 1)[0].rate(4.4e-3), "rates of trial"),
    "a head rate": (a_head_rate, "tuning head_lr"),
    "a wider window": (a_wider_window, "place of trial"),
    "runs gone": (runs_gone, "plan, its trials"),
    "a method gone": (
        lambda forged: forged.keep(lambda trial: trial.row != TENSLORA),
        "row TensLoRA att",
    ),
    "a method more": (a_method_more, "the row"),
    "a task gone": (
        lambda forged: forged.suite["suite"]["tasks"].append({"task": "textile"}),
        "task textile",
    ),
    "a backbone gone": (
        lambda forged: forged.suite["suite"]["backbones"].append({"name": "minilm-l6"}),
        "backbone minilm-l6",
    ),
    "more steps for one method": (
        lambda forged: forged.change("recipe", row=LORA, steps=SHORT["steps"] + 1),
        "training steps of the suite",
    ),
    "another batch for all": (
        lambda forged: forged.change("recipe", batch_size=8),
        "training batch_size of the suite",
    ),
    "a default changed for one method": (
        lambda forged: forged.change("recipe", row=LORA, weight_decay=0.1),
        "training weight_decay",
    ),
    "a field hidden from the id": (a_field_hidden_from_the_id, "fields without effect"),
    "another option": (
        lambda forged: forged.change("method", row=TENSLORA, scale=2.0),
        "method scale of the suite",
    ),
    "scored on validation": (
        lambda forged: [trial.trial.update(evaluate="validation") for trial in forged.trials],
        "evaluate of the suite",
    ),
    "fewer examples": (
        lambda forged: forged.change("task", train_size=40),
        "task train_size of the suite",
    ),
    "the suite shortened afterwards": (the_suite_shortened_afterwards, "that started trials"),
    "a look left out of the plan": (a_look_of_the_plan, "plan, looks of the suite"),
    "a margin chosen afterwards": (a_margin_chosen_afterwards, "that started trials"),
    "a method dropped from the suite": (a_method_dropped_from_the_suite, "that started trials"),
}


def test_a_pack_that_is_packed_again_verifies(pack: Path, tmp_path: Path) -> None:
    result = verify(str(Forged(pack).write(tmp_path / "same.tensorbench.zip")))
    assert result.ok, [*result.faults, *result.unchecked]
    assert "toy holds studies 0 to 2 of 3 planned" in result.notes


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_results_do_not_verify(pack: Path, tmp_path: Path, forgery: str) -> None:
    forged, (forge, finding) = Forged(pack), FORGERIES[forgery]
    forge(forged)
    result = verify(str(forged.write(tmp_path / "forged.tensorbench.zip")))
    assert [fault for fault in result.faults if finding in fault.what], result


def a_suite_without_fields(forged: Forged) -> None:
    forged.suite["suite"] = None


def a_field_of_a_later_version(forged: Forged) -> None:
    forged.rewrite_suites(lambda suite: suite.update(a_later_field=1))


def texts_replaced(text: str) -> Callable[[Forged], None]:
    def replace(forged: Forged) -> None:
        for trial in forged.trials:
            trial.config["start"]["suite"]["text"] = text

    return replace


UNREADABLE: dict[str, tuple[Callable[[Forged], object], dict[str, str]]] = {
    "a suite without fields": (a_suite_without_fields, {"the suite": "suite.json"}),
    "a field of a later version": (
        a_field_of_a_later_version,
        {"the suite": "'a_later_field'", "the suite that started trials": "'a_later_field'"},
    ),
    "no YAML": (texts_replaced("name: ["), {"the suite that started trials": "line 1"}),
    "no suite": (texts_replaced("toy"), {"the suite that started trials": "no fields"}),
}


@pytest.mark.parametrize("change", UNREADABLE)
def test_a_suite_that_this_version_cannot_read_is_named(
    pack: Path, tmp_path: Path, call: Callable[..., Any], change: str
) -> None:
    forged, (rewrite, reasons) = Forged(pack), UNREADABLE[change]
    rewrite(forged)
    ended = call("verify", forged.write(tmp_path / "forged.tensorbench.zip"), "--json")
    document = json.loads(ended.out)
    assert (ended.code, document["faults"]) == (3, []), ended.out
    # The hash of the trials' suite is the second word of its name.
    whys = {re.sub(r"suite \w{8} ", "suite ", each["what"]): each["why"] for each in document["unchecked"]}
    assert whys.keys() == reasons.keys()
    assert all(reasons[what] in why for what, why in whys.items())


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
    for trial in forged.of(LORA):
        trial.trial["method"] = method
    result = verify(str(forged.write(tmp_path / "forged.tensorbench.zip")))
    assert {each.what for each in result.unchecked if "plan" not in each.what} == {"trial id"}
    assert not result.ok
