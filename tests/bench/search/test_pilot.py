"""Tests pilots: they choose on validation alone, can be resumed, and write a suite that runs unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tensorbench
import tensorbench.training.loop
import tensorbench.training.trial
from tensorbench.methods import UserError
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import load_suite
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Record
from tensorbench.records.words import Status, Tag
from tensorbench.run.search.chooser import Choices, Chooser, Steps
from tensorbench.run.search.pilot import vertex
from tensorbench.run.search.ranks import choosers_of
from tensorbench.store.store import Store
from tensorbench.tasks.splits import PreparedData

from ...fixtures import Call, NewStore
from ...messages import naming
from ..toy_suites import DIGITS, UNSEEDED, write
from . import scripted

PILOT: dict[str, Any] = {
    **UNSEEDED,
    "methods": ["head_only", "lora", {"method": "lotr", "centre": 2e-3}],
    "training": {"batch_size": 16, "epochs": 2},
    "tuning": {"studies": 2, "points": 2},
    "pilot": {
        "head_lr": {"rates": [1e-3, 3e-3, 1e-2], "seeds": [1000]},
        "epochs": {"methods": ["LoRA"], "seeds": [1000]},
        "centres": {"rates": [1e-3, 1e-2, 1e-1], "seeds": [1000]},
    },
}


def changed(**pilot: Any) -> dict[str, Any]:
    return {**PILOT, "pilot": {**PILOT["pilot"], **pilot}}


@dataclass
class Piloted:
    """A finished pilot, with the suite that it wrote."""

    suite: Path
    uri: str
    out: Path
    ended: Any


@pytest.fixture(scope="module")
def piloted(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, call: Call) -> Piloted:
    folder = tmp_path_factory.mktemp("pilot")
    suite, uri, out = write(folder, PILOT), new_store(folder), folder / "chosen.yaml"
    return Piloted(suite, uri, out, call("search", suite, "--store", uri, "--out", out))


def test_no_test_score_is_computed_or_stored(piloted: Piloted) -> None:
    assert piloted.ended.code == 0, piloted.ended.err
    records = Store.existing(piloted.uri, "toy").records()
    assert len(records) == 3 + 3 + 3
    assert {record.tags["evaluated"] for record in records} == {"validation"}


def test_a_plan_says_why_its_pilot_cannot_run(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    suite = write(tmp_path, PILOT, training={"batch_size": 16, "steps": 4})
    ended = call("plan", suite, "--store", new_store(tmp_path))
    assert ended.code == 0, ended.err
    assert re.search(naming("pilot.epochs", "'digits'", "steps"), ended.out)
    # The studies can run with steps.
    assert "tensorbench run" in ended.out
    assert "tensorbench search" not in ended.out


def test_no_test_split_is_scored(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[Any] = []
    splits: dict[str, list[Any]] = {"validation": [], "test": []}
    made, forward = PreparedData.__init__, tensorbench.training.loop.evaluate

    def remember(self: Any, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        for name, prepared in splits.items():
            prepared.append(getattr(self, name))

    def evaluate(backbone: Any, adapter: Any, split: Any, *further: Any) -> Any:
        scored.append(split)
        return forward(backbone, adapter, split, *further)

    monkeypatch.setattr(PreparedData, "__init__", remember)
    monkeypatch.setattr(tensorbench.training.loop, "evaluate", evaluate)
    monkeypatch.setattr(tensorbench.training.trial, "evaluate", evaluate)
    suite = write(tmp_path, changed(epochs=None, centres=None))
    assert tensorbench.search_suite(suite, store=new_store(tmp_path), out=tmp_path / "chosen.yaml").complete
    assert scored
    assert all(any(split is own_split for own_split in splits["validation"]) for split in scored)
    assert not any(split is own_split for split in scored for own_split in splits["test"])


def test_the_written_suite_has_the_choices_and_runs_unchanged(piloted: Piloted) -> None:
    chosen = load_suite(piloted.out)
    assert (chosen.name, chosen.pilot) == ("chosen", None)
    assert chosen.tasks[0].training["head_lr"] in (1e-3, 3e-3, 1e-2)
    assert chosen.tasks[0].training["epochs"] in (1, 2, 4)
    centres = [row.centre for row in chosen.methods]
    assert (centres[0], centres[2]) == (None, 2e-3)
    rows = {row.family: row.studies for row in make_plan(chosen).rows}
    assert rows["lora"] is not None
    assert rows["lora"].centre == centres[1]


def test_a_second_start_runs_nothing_and_chooses_the_same(piloted: Piloted, call: Call) -> None:
    before = piloted.out.read_text()
    ended = call("search", piloted.suite, "--store", piloted.uri, "--out", piloted.out)
    assert ended.code == 0
    assert "trials" not in ended.out
    assert len(Store.existing(piloted.uri, "toy").records()) == 9
    assert piloted.out.read_text() == before


def choose(base: dict[str, Any], loss: Callable[[Trial], float | None]) -> tuple[Choices, list[Trial]]:
    """Runs a pilot whose trials get their losses from `loss`. None means a failed trial."""

    def result(trial: Trial) -> tuple[float, float] | None:
        value = loss(trial)
        return None if value is None else (value, 0.5)

    return scripted.choose(load_suite(base), result)


class Nothing(Chooser):
    """Chooses nothing."""

    section = "pilot"

    def steps(self) -> Steps:
        yield from ()
        return Choices()


def best_at(head: float, epochs: int, lr: float) -> Callable[[Trial], float]:
    def loss(trial: Trial) -> float:
        recipe = trial.recipe
        if trial.method["method"] == "head_only":
            return abs(math.log10(recipe.lr / head))
        assert recipe.head_lr == head
        return abs((recipe.epochs or 0) - epochs) + (math.log10(recipe.lr / lr)) ** 2

    return loss


def test_each_step_has_what_the_steps_before_have_chosen() -> None:
    choices, ran = choose(PILOT, best_at(3e-3, 4, 1.4e-2))
    assert choices.complete
    assert choices.training == {"digits": {"head_lr": 3e-3, "epochs": 4}}
    assert choices.centres == {1: 1e-2}
    last = [trial for trial in ran if trial.method["method"] == "lora"][-3:]
    assert {(trial.recipe.head_lr, trial.recipe.epochs) for trial in last} == {(3e-3, 4)}
    assert {trial.evaluate for trial in ran} == {"validation"}


def test_a_pilot_without_steps_chooses_nothing() -> None:
    choices, ran = choose(changed(head_lr=None, epochs=None, centres=None), lambda trial: 1.0)
    assert (choices.complete, choices.lines, ran) == (True, [], [])


def test_a_choice_at_an_edge_says_so() -> None:
    inside, _ = choose(PILOT, best_at(3e-3, 2, 1e-2))
    edge, _ = choose(PILOT, best_at(1e-2, 2, 1e-1))
    assert [["edge" in line for line in choices.lines] for choices in (inside, edge)] == [
        [False, False, False, False],
        [True, False, False, True],
    ]


def test_the_converged_head_is_scored_beside_the_methods() -> None:
    base = {**changed(head_lr=None, centres=None), "methods": ["converged_head", "lora"]}
    choices, ran = choose(base, lambda trial: 1.0)
    assert len(ran) == 4
    assert "LoRA 0.5000" in choices.lines[1]
    assert "converged head 0.5000" in choices.lines[1]


def test_a_row_with_a_length_of_its_own_keeps_it() -> None:
    rows = ["head_only", "lora", {"method": "lotr", "training": {"epochs": 6}}]
    _, ran = choose({**PILOT, "methods": rows}, best_at(3e-3, 4, 1e-2))
    assert {trial.recipe.epochs for trial in ran if trial.method["method"] == "lotr"} == {6}


def test_a_centre_whose_window_studies_cannot_have_is_not_chosen() -> None:
    centres = {**PILOT["pilot"]["centres"], "rates": [1e-2, 1e-1, 1.0]}
    choices, _ = choose(changed(head_lr=None, epochs=None, centres=centres), best_at(3e-3, 2, 1.0))
    (line,) = choices.missing
    assert re.search(naming("LoRA on digits: centre 1:", "0.1 to 10", "decades"), line)
    assert choices.centres == {}


def test_a_method_s_rates_are_a_multiple_of_the_others() -> None:
    centres = {**PILOT["pilot"]["centres"], "multiples": {"LoRA": 10}}
    _, ran = choose(changed(head_lr=None, epochs=None, centres=centres), lambda trial: 1.0)
    assert [trial.recipe.lr for trial in ran] == [1e-2, 1e-1, 1.0]


def test_each_task_may_get_a_centre_of_its_own() -> None:
    centres = {**PILOT["pilot"]["centres"], "by_task": True}
    two = {
        **changed(head_lr=None, epochs=None, centres=centres),
        "tasks": [DIGITS, {**DIGITS, "task": "land-cover"}],
        "methods": [*PILOT["methods"], {"method": "lorta", "centre": {"digits": 3e-3}}],
    }
    best = {"digits": 1e-3, "land-cover": 1e-1}
    choices, ran = choose(two, lambda trial: best_at(3e-3, 2, best[trial.task.task])(trial))
    assert len(ran) == 9
    values = scripted.only_chooser(load_suite(two)).filled_in(choices, "chosen")
    assert [row.get("centre") for row in values["methods"]] == [None, best, 2e-3, best | {"digits": 3e-3}]
    rows = make_plan(load_suite(values)).rows
    assert {row.task: row.studies and row.studies.centre for row in rows if row.family == "lora"} == best


def test_the_centres_of_a_method_under_two_budgets_are_told_apart() -> None:
    budgets = [{"isoparameters": rank} for rank in (1, 2)]
    rows = [{"method": "lora", "budgets": [budget]} for budget in budgets]
    base = {**changed(head_lr=None, epochs=None), "methods": [*rows, {"method": "lotr", "budgets": budgets}]}
    choices, _ = choose(
        base, lambda trial: best_at(3e-3, 2, 1e-3 if trial.method["rank"] == 1 else 1e-2)(trial)
    )
    assert [choices.centres[row] for row in (0, 1)] == [1e-3, 1e-2]
    named = sorted(line.partition(" (")[0] for line in choices.lines)
    assert named == [
        *(f"LoRA under isoparameters {rank} on digits: centre {c}" for rank, c in ((1, 0.001), (2, 0.01))),
        "LoTR under isoparameters 2 and isoparameters 1 on digits: centre 0.01",
    ]


def test_nothing_is_chosen_if_all_trials_fail() -> None:
    choices, _ = choose(PILOT, lambda trial: None)
    assert (choices.complete, choices.centres, len(choices.missing)) == (False, {}, 3)


def test_a_trial_that_the_machine_lost_moves_no_choice() -> None:
    tags = {Tag.FAILURE: "out of memory", Tag.FAILURE_MESSAGE: "no space"}

    def records_of(trial: Trial) -> list[Record]:
        if trial.method["method"] == "lora" and trial.recipe.lr == 1e-2:
            return [Record("failed", trial.id, Status.FAILED, tags=tags)]
        return [scripted.record(trial, (1.0, 0.5))]

    suite = load_suite(changed(epochs=None))
    choices, _ = scripted.steps(scripted.only_chooser(suite), records_of)
    (line,) = choices.missing
    assert "LoRA" in line
    assert "out of memory: no space; `--retry-failed`" in line


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # Symmetric about 10 ** -2; a shifted vertex; a flat parabola.
        ({1e-3: 1.0, 1e-2: 0.0, 1e-1: 1.0}, 1e-2),
        ({1e-3: 1.0, 1e-2: 0.1, 1e-1: 0.2}, 3.162e-2),
        ({1e-3: 1.0, 1e-2: 1.0, 1e-1: 1.0}, 1e-3),
        # Optima at an edge, and beyond it by up to half a decade.
        ({1e-3: 0.0, 1e-2: 1.0, 1e-1: 2.0}, 1e-3),
        ({5e-4: 0.0, 5e-3: 1.0, 5e-2: 2.0}, 5e-4),
        ({5e-4: 2.0, 5e-3: 1.0, 5e-2: 0.0}, 5e-2),
        # A collapse does not bend the parabola, and beside a failure the lowest point counts.
        ({1e-3: 1.0, 1e-2: 0.0, 1e-1: 1.0, 1.0: 99.0}, 1e-2),
        ({1e-3: 1.0, 1e-2: 0.1, 1e-1: math.inf}, 1e-2),
    ],
)
def test_a_centre_is_the_vertex_through_the_lowest_loss(losses: dict[float, float], expected: float) -> None:
    assert vertex(losses) == expected


def test_the_vertex_is_that_of_the_parabola_whatever_the_spacing() -> None:
    rates = (1e-3, 4e-3, 1e-1)
    losses = {rate: 2 + (math.log10(rate) + 2.0) ** 2 for rate in rates}
    assert vertex(losses) == 1e-2


def test_a_pilots_suite_keeps_the_authors_fields() -> None:
    base = {**PILOT, "description": "as written", "tasks": [{**DIGITS, "training": {"warmup": 0.2}}]}
    suite = load_suite(base)
    choices = Choices({"digits": {"head_lr": 1e-2, "epochs": 3}}, {1: 1e-3})
    values = scripted.only_chooser(suite).filled_in(choices, "chosen")
    assert values["tasks"] == [{**DIGITS, "training": {"warmup": 0.2, "head_lr": 1e-2, "epochs": 3}}]
    assert values["methods"] == [
        {"method": "head_only"},
        {"method": "lora", "centre": 1e-3},
        {"method": "lotr", "centre": 2e-3},
    ]
    assert (values["name"], values["description"], "pilot" in values) == ("chosen", "as written", False)


def test_a_pilot_comes_before_a_search_which_its_suite_still_has() -> None:
    suite = load_suite({**PILOT, "search": {"trials": 2}})
    chooser = scripted.only_chooser(suite)
    assert chooser.section == "pilot"
    values = chooser.filled_in(Choices(), "chosen")
    assert ("pilot" in values, values["search"]) == (False, {"trials": 2})
    assert scripted.only_chooser(load_suite(values)).section == "search"


@pytest.mark.parametrize("out", ["toy.yaml", "chosen.txt", "a name.yaml", "nowhere/chosen.yaml"])
def test_a_file_that_could_not_be_written_is_refused_before_any_trial(out: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out"):
        tensorbench.search_suite(load_suite(PILOT), out=tmp_path / out)


def test_paths_that_begin_at_the_suite_s_folder_would_be_lost_elsewhere(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    for changes in ({"backbones": [{"local": "here"}]}, {"source": {"local": "data"}}):
        chooser = Nothing(load_suite(write(tmp_path / "one", {**PILOT, **changes})))
        chooser.check_target(tmp_path / "one" / "chosen.yaml")
        with pytest.raises(UserError, match="--out"):
            chooser.check_target(tmp_path / "other" / "chosen.yaml")


def test_a_length_that_is_too_short_for_a_method_is_refused_before_any_trial() -> None:
    pruned = {"method": "peft", "type": "ADALORA", "config": {"tinit": 2, "tfinal": 2}}
    training = {"batch_size": 16, "epochs": 9}
    suite = load_suite(
        {**changed(epochs={"seeds": [1000]}), "methods": ["head_only", pruned], "training": training}
    )
    with pytest.raises(UserError, match=naming("pilot.epochs", "epochs: 1", "AdaLoRA", "'digits'")):
        choosers_of(make_plan(suite))


def test_a_pilot_of_a_part_is_refused(tmp_path: Path, new_store: NewStore) -> None:
    part, out = tensorbench.Part(methods=["lora"]), tmp_path / "chosen.yaml"
    with pytest.raises(UserError, match=naming("a pilot chooses for the whole suite", "method lora")):
        tensorbench.search_suite(load_suite(PILOT), part=part, store=new_store(tmp_path), out=out)
    assert not out.exists()


def test_centres_on_a_task_that_is_left_out_are_refused() -> None:
    two = {**PILOT, "tasks": [*PILOT["tasks"], {**DIGITS, "task": "land-cover"}]}
    part = make_plan(load_suite(two)).select(tensorbench.Part(tasks=["land-cover"]))
    with pytest.raises(UserError, match=naming("pilot.centres", "'digits'")):
        choosers_of(part)


def test_nothing_is_chosen_if_a_trial_is_lost(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorbench.run.suites.execute", lambda *_, **__: None)
    with pytest.raises(UserError, match="has no result"):
        tensorbench.search_suite(load_suite(PILOT), store=new_store(tmp_path), out=tmp_path / "chosen.yaml")
    assert not (tmp_path / "chosen.yaml").exists()


def test_a_plan_counts_the_trials_of_a_pilot(tmp_path: Path, call: Call) -> None:
    out = call("plan", write(tmp_path, PILOT), "--json").out
    assert '"trials": 9' in out
