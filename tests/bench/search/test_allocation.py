"""Tests allocations: the sweep of each mode, the path to the heuristic's ranks, and the importance."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorbench.plan.make import cells
from tensorbench.records.record import latest
from tensorbench.search.allocation import RankAllocation, log_spaced, path
from tensorbench.search.importance import importances

from ..toy_suites import suite
from .toy_searches import Call, NewStore, run


def test_an_allocation_sweeps_every_mode_walks_the_path_and_compares(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    section = {"ranks": 2, "path": 3, "isorank": 1, "seeds": [5, 6], "epochs": 1, "modes": ["input", "layer"]}
    made = run(tmp_path, new_store, call, search=None, allocation=section, training={"batch_size": 16})
    assert made.ended.code == 0, made.ended.err
    allocation, chosen = made.artifact("allocation"), latest(made.store.records())
    assert {point["mode"] for point in allocation["points"]} == {"input", "layer"}
    for point in allocation["points"]:
        assert point["ranks"][allocation["modes"].index(point["mode"])] == point["rank"]
        assert point["parameters"] <= allocation["asked"] == 768
    for line in (*allocation["points"], *allocation["path"], allocation["heuristic"], allocation["best"]):
        records = [chosen[id_] for id_ in line["trials"].values()]
        assert [record.tags["seed"] for record in records] == ["5", "6"]
        assert {(r.status, r.tags["phase"], r.tags["evaluated"]) for r in records} == {
            ("FINISHED", "allocation", "validation")
        }
    assert allocation["path"][0]["ranks"] == [1, 1, 1, 1]
    assert allocation["path"][-1]["ranks"] == allocation["heuristic"]["ranks"] == [7, 7, 3, 2]
    assert [line["label"] for line in allocation["final"]] == ["best allocation", "heuristic"]
    before = len(made.store.records())
    rerun = call("search", made.suite, "--store", made.uri)
    assert (rerun.code, len(made.store.records())) == (0, before)
    assert "one mode at" in rerun.out


def test_ranks_are_log_spaced_and_few() -> None:
    assert log_spaced(1, 144, 6) == [1, 3, 7, 20, 53, 144]
    assert log_spaced(1, 3, 6) == [1, 2, 3]
    assert log_spaced(1, 1, 6) == [1]
    assert path((4, 4, 4), (60, 3, 12), 3) == [(4, 4, 4), (15, 3, 7), (60, 3, 12)]


@pytest.mark.parametrize("modes", [None, ["input", "layer"]], ids=["all modes", "two"])
@pytest.mark.parametrize(("variant", "budget"), [("att_qkv_depth", 4), ("depth", 3)])
def test_no_point_of_a_path_exceeds_the_budget(variant: str, budget: int, modes: list[str] | None) -> None:
    made = suite(
        methods=[{"method": "tenslora", "variant": variant}],
        budgets=[{"isoparameters": budget}],
        allocation={"path": 8, "isorank": 4, "modes": modes},
    )
    ((_, cell),) = cells(made)
    assert made.allocation is not None
    allocation = RankAllocation(cell, made.allocation)
    start, end = (4,) * len(allocation.heuristic), allocation.heuristic
    assert max(map(allocation.space.count, path(start, end, 8))) > 1.04 * allocation.budget
    assert allocation.path[0] == start
    assert allocation.path[-1] == end
    assert len(set(allocation.path)) == len(allocation.path)
    assert max(map(allocation.space.count, allocation.path)) <= allocation.budget


def test_importance_finds_the_mode_that_matters() -> None:
    points = [((i, j), 0.5 + 0.1 * i) for i in (1, 2, 4, 8) for j in (1, 2, 4)]
    importance = importances(("input", "output"), points)
    assert set(importance) == {"fanova", "mean_decrease_impurity", "ped_anova"}
    for values in importance.values():
        assert values["input"] > 0.8
    assert importances(("input", "output"), points[:3]) == {}
    assert set(importances(("input", "output"), [((i, 3), v) for (i, _), v in points])["fanova"]) == {"input"}
