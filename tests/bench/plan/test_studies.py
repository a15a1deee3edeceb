"""Tests studies in a plan, whose offsets are stratified and, like the seeds, equal for every method."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tensorbench.execution.estimate import longest_first
from tensorbench.methods import METHODS, Method, UserError
from tensorbench.methods.validation import validate
from tensorbench.plan.cells import offsets
from tensorbench.plan.choosing import Studies, Window
from tensorbench.plan.make import make_plan
from tensorbench.plan.pairs import Part
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Suite
from tensorbench.records.stored_plan import Row, StoredPlan, StudyPlan

from ..toy_suites import DIGITS, UNSEEDED

ROWS: list[Any] = ["head_only", "lora", {"method": "lotr", "centre": 2e-2}, "full"]


def suite(**changes: Any) -> Suite:
    base = {"training": {"batch_size": 16, "epochs": 2}, "tuning": {"studies": 3, "points": 4}}
    return validate(Suite, {**UNSEEDED, **base, **changes}, "toy suite")


def plan(**changes: Any) -> Plan:
    return make_plan(suite(**{"methods": ROWS, **changes}))


def by_method(made: Plan) -> dict[str, Row]:
    return {row.family: row for row in made.rows}


def of(row: Row) -> StudyPlan:
    assert row.studies is not None
    return row.studies


def test_one_line_in_a_suite_is_enough() -> None:
    made = make_plan(suite(tuning={"studies": 5, "points": 8}))
    (row,) = made.rows
    assert len(row.trials) == len(made.trials) == 40
    studies = of(row)
    assert (studies.studies, studies.points, studies.ks) == (5, 8, (1, 2, 4, 8, 16))
    assert {trial.evaluate for trial in made.trials} == {"test"}
    assert {trial.recipe.head_lr for trial in made.trials} == {3e-3}


def test_trials_run_study_by_study_so_that_a_stopped_run_has_treated_all_methods_alike() -> None:
    made = plan(tasks=[DIGITS, {**DIGITS, "task": "land-cover"}])
    study = {id_: of(row).trials[seed].study for row in made.rows for seed, id_ in row.trials.items()}
    order = [study[trial.id] for trial in made.trials]
    assert order == sorted(order)


def test_a_rank_is_accepted_up_to_its_limit() -> None:
    (cell,) = plan(methods=[{"method": "lotr", "rank": 2}], floor="none").cells
    (limit,) = cell.method.rank_limits(cell.info.geometry)
    assert limit is not None
    (row,) = plan(methods=[{"method": "lotr", "rank": limit}], floor="none").rows
    assert row.ranks == (limit,)
    with pytest.raises(UserError, match=f"rank is {limit + 1:,}, accepted is at most {limit:,}"):
        plan(methods=[{"method": "lotr", "rank": limit + 1}], floor="none")


def test_one_window_and_one_head_rate_for_all_adapters_whatever_their_papers_say() -> None:
    made = plan(methods=["lora", "lorta", "fact_tt", {"method": "tenslora", "variant": "att"}, "full"])
    adapters = [row for row in made.rows if row.family != "full"]
    assert len({METHODS.get(row.family).published_lr for row in adapters}) == 4
    assert {of(row).ends for row in adapters} == {(1e-4, 1e-2)}
    assert {of(row).head_lr for row in made.rows} == {3e-3}
    # Published rates differ, and the plan shows them beside the window.
    shown = {line["method"]: line for line in made.overview().lines}
    assert {shown[row.method]["lr"] for row in adapters} == {"1e-4 … 1e-2"}
    assert (shown["LoRTA"]["paper lr"], shown["LoRA"]["paper lr"]) == ("1e-2", "–")
    assert shown["full fine-tuning"]["lr"] == "1e-5 … 1e-3"


@pytest.mark.parametrize(
    ("row", "warned"),
    [
        ({"method": "lorta"}, "1e-4 … 1e-2"),  # Its published rate, 1e-2, is at the end.
        ({"method": "lorta", "centre": 2e-2}, ""),
        ({"method": "lorta", "centre": {"digits": 5e-4}}, "5e-5 … 5e-3"),
        ({"method": "fact_tt"}, ""),
        ({"method": "lora"}, ""),  # It has no published rate.
    ],
)
def test_a_window_without_the_published_rate_is_warned_about(row: dict[str, Any], warned: str) -> None:
    warnings = [note for note in plan(methods=[row]).notes if note.startswith("Warning: the window")]
    assert len(warnings) == bool(warned)
    assert all("LoRTA" in note and warned in note and "1e-2" in note for note in warnings)


@pytest.mark.parametrize(
    ("rows", "warned"),
    [
        ([{"method": "lorta", "rank": 2}], False),
        ([{"method": "lorta", "rank": 100}], True),
        ([{"method": "lorta", "rank": 2, "centre": 1.2e-5}, "lora"], True),
        ([{"method": "tenslora", "variant": "qkv_depth"}, "lora", "full", "lora_xs"], False),
    ],
)
def test_a_first_step_far_from_that_of_lora_is_warned_about(rows: list[Any], warned: bool) -> None:
    notes = plan(methods=rows).notes
    assert any(note.startswith("Warning: Adam's first step of LoRTA") for note in notes) == warned


def test_every_method_has_the_same_seeds_and_offsets_about_a_centre_of_its_own() -> None:
    made = plan()
    rows = by_method(made)
    assert {name: of(row).centre for name, row in rows.items()} == {
        "head_only": 3e-3,
        "lora": 1e-3,
        "lotr": 2e-2,
        "full": 1e-4,
    }
    places = [{seed: (t.study, t.point, t.offset) for seed, t in of(row).trials.items()} for row in made.rows]
    assert all(place == places[0] for place in places)
    by_id = {trial.id: trial for trial in made.trials}
    for row in made.rows:
        for seed, id_ in row.trials.items():
            place, trial = of(row).trials[seed], by_id[str(id_)]
            assert trial.recipe.lr == place.lr == float(f"{of(row).centre * 10**place.offset:.3e}")
            assert trial.recipe.head_lr == (place.lr if row.family == "head_only" else 3e-3)


def test_a_method_may_have_two_centres_if_a_label_tells_them_apart() -> None:
    made = make_plan(suite(methods=["lora", {"method": "lora", "centre": 2e-2, "label": "wide"}]))
    assert {row.method: of(row).centre for row in made.rows} == {"LoRA": 1e-3, "wide": 2e-2}


def test_a_method_may_have_a_centre_on_each_task() -> None:
    lora = {"method": "lora", "centre": {"digits": 2e-2}}
    made = make_plan(suite(tasks=[DIGITS, {**DIGITS, "task": "land-cover"}], methods=[lora], floor="none"))
    assert {row.task: of(row).centre for row in made.rows} == {"digits": 2e-2, "land-cover": 1e-3}


@pytest.mark.parametrize(("points", "decades"), [(8, 1.0), (5, 2.0)])
def test_one_offset_lies_in_each_stratum_of_the_window(points: int, decades: float) -> None:
    section = Studies.model_validate({"points": points, "lr": {"decades": decades}})
    for study in range(20):
        window_offsets = offsets(section, study, "toys")
        strata = [int((offset + decades / 2) / (decades / points)) for offset in window_offsets]
        assert sorted(strata) == list(range(points))
    orders = {
        tuple(sorted(range(points), key=offsets(section, study, "toys").__getitem__)) for study in range(20)
    }
    assert len(orders) > 10


def test_more_studies_keep_the_trials_of_fewer() -> None:
    three, six = plan(), plan(tuning={"studies": 6, "points": 4})
    few = {trial.id for trial in three.trials}
    assert few < {trial.id for trial in six.trials}
    assert few == {trial.id for trial in six.select(Part(studies=[0, 1, 2])).trials}


def test_offsets_seeds_and_ids_are_the_same_on_every_machine() -> None:
    window = Window(around=5e-3, decades=1)
    made = make_plan(suite(tuning={"studies": 3, "points": 4, "lr": window}))
    assert offsets(Studies(lr=window), 0, "toys")[:3] == [-0.1884, 0.3106, 0.1513]
    assert [trial.seed for trial in made.trials[:5]] == [10_000, 10_001, 10_002, 10_003, 11_000]
    assert [trial.recipe.lr for trial in made.trials[:4]] == [0.002799, 0.01445, 0.004406, 0.008846]
    assert [trial.id for trial in made.trials[:2]] == ["3fd8d02647895e2e", "10cc0113de7e1801"]


def test_a_trial_of_a_study_is_the_trial_of_a_suite_with_its_rates_and_seed() -> None:
    made = make_plan(suite())
    trial = made.trials[0]
    training = {"batch_size": 16, "epochs": 2, "lr": trial.recipe.lr, "head_lr": trial.recipe.head_lr}
    alone = make_plan(suite(tuning=None, seeds=[trial.seed], training=training))
    assert [other.id for other in alone.trials] == [trial.id]


def test_trials_run_study_by_study() -> None:
    made = plan()
    studies = made.suite.tuning
    assert studies is not None
    for order in (made.trials, longest_first(made, made.trials, ())):
        numbers = [studies.place(trial.seed)[0] for trial in order]
        assert all(earlier <= later for earlier, later in pairwise(numbers))


def test_a_fitted_head_is_a_single_trial_in_the_first_study() -> None:
    made = make_plan(suite(methods=["converged_head", "lora"]))
    row = by_method(made)["converged_head"]
    assert (list(row.trials), row.studies) == ([10_000], None)
    assert len(made.select(Part(studies=[0])).rows) == 2
    assert [row.family for row in made.select(Part(studies=[1])).rows] == ["lora"]


def test_a_task_has_a_head_rate_of_its_own() -> None:
    made = plan(tasks=[{**DIGITS, "training": {"head_lr": 1e-2}}])
    assert of(by_method(made)["lora"]).head_lr == 1e-2
    assert of(by_method(made)["head_only"]).centre == 1e-2


def test_a_suite_may_move_the_window_of_all_adapters() -> None:
    made = plan(methods=["lora", "lorta"], tuning={"studies": 2, "points": 2, "lr": {"around": 2e-3}})
    assert [of(row).centre for row in made.rows] == [2e-3] * 2


@pytest.mark.parametrize(
    ("studies", "points", "ks"),
    [(5, 8, (1, 2, 4, 8, 16)), (2, 8, (1, 2, 4, 8)), (3, 5, (1, 2, 4, 5, 8)), (2, 2, (1, 2))],
)
def test_k_goes_up_to_the_trials_that_a_jackknife_leaves(studies: int, points: int, ks: Any) -> None:
    assert Studies(studies=studies, points=points).ks == ks


def test_the_budgets_of_rows_count_towards_too_many_trials() -> None:
    own_budgets = {"method": "lora", "budgets": [{"isorank": rank} for rank in range(1, 201)]}
    with pytest.raises(UserError, match="at most 100,000"):
        make_plan(suite(methods=[own_budgets], tuning={"studies": 40, "points": 40}))


@pytest.mark.parametrize(
    ("chosen", "message"), [({"studies": [3]}, "study"), ({"studies": [0], "seeds": [11_000]}, "no row")]
)
def test_a_study_that_is_not_there_is_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan().select(Part(**chosen))


def test_a_suite_with_seeds_has_no_study_to_select() -> None:
    with pytest.raises(UserError, match="suite 'toy' has seeds and no studies"):
        make_plan(suite(tuning=None, seeds=[0])).select(Part(studies=[0]))


def test_the_stored_plan_says_of_each_seed_its_study_and_plans_without_are_read_too() -> None:
    stored = StoredPlan.model_validate_json(plan().stored().model_dump_json())
    assert [row.studies and row.studies.trials[11_002].study for row in stored.rows] == [1] * 4
    before = stored.rows[0].model_dump(exclude={"studies"})
    assert Row.model_validate(before).studies is None


def test_what_the_trials_of_a_cell_share_is_made_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    stored = Method.stored
    monkeypatch.setattr(Method, "stored", lambda self: made.append(self.name) or stored(self))
    few, many = (plan(tuning={"studies": studies, "points": 4}) for studies in (2, 20))
    assert len(many.trials) > 5 * len(few.trials)
    assert len(made) == len(few.rows) + len(many.rows)
    # Each has a dictionary of its own.
    assert len({id(trial.method) for trial in many.trials}) == len(many.trials)
