"""Tests rank vectors within a budget: none exceeds or wastes the budget, and a search can draw them all."""

from __future__ import annotations

from itertools import product
from typing import Any

import optuna
import pytest

from tensorbench.methods import Geometry, Method, UserError, create
from tensorbench.plan.recipe import AXES, Recipe, Setting
from tensorbench.run.search.space import RankSpace

from ...messages import naming
from ..toy_suites import plan

TINY = Geometry(6, 2, 2, 24)
MINILM = Geometry(384, 12, 6, 1536)

SIZED: list[dict[str, Any]] = [
    {"name": "tenslora", "variant": "att_qkv_depth"},
    {"name": "tenslora", "variant": "qkv_depth"},
    {"name": "tenslora", "variant": "att", "factorization": "tt"},
    {"name": "tenslora", "variant": "qkv", "factorization": "cp"},
    {"name": "lora"},
    {"name": "lorta"},
    {"name": "fact_tk"},
    {"name": "cara"},
    {"name": "peft", "type": "LOHA"},
]


def method(name: str, **options: Any) -> Method:
    return create(name, **options)


def space(options: dict[str, Any], geometry: Geometry, budget: int, **more: Any) -> RankSpace:
    template = method(**options)
    return RankSpace(template.fit(geometry, budget), geometry, budget, **more)


def raised(ranks: tuple[int, ...], index: int) -> tuple[int, ...]:
    return tuple(rank + (i == index) for i, rank in enumerate(ranks))


@pytest.mark.parametrize("options", SIZED, ids=str)
def test_a_sample_holds_the_budget_and_wastes_none_of_it(options: dict[str, Any]) -> None:
    budget = method("lora", rank=4).count(MINILM)
    rank_space = space(options, MINILM, budget)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        ranks = rank_space.suggest(study.ask())
        sized = rank_space.method.with_size(ranks)
        assert sized.size == ranks
        assert sized.count(MINILM) <= budget
        if len(ranks) > 1:
            for i, limit in enumerate(rank_space.limits):
                assert ranks[i] == limit or rank_space.count(raised(ranks, i)) > budget


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("variant", ["qkv_depth", "att_depth"])
def test_the_vectors_are_those_of_a_search_through_all(variant: str, below: bool) -> None:
    budget = 90
    rank_space = space({"name": "tenslora", "variant": variant}, TINY, budget, below=below)
    full = rank_space.method.rank_limits(TINY)
    fitting = {
        ranks
        for ranks in product(*(range(1, int(limit or 0) + 1) for limit in full))
        if rank_space.count(ranks) <= budget
    }
    if not below:
        fitting = {
            ranks for ranks in fitting if not any(raised(ranks, i) in fitting for i in range(len(ranks)))
        }
    listed = list(rank_space.vectors())
    assert len(listed) == len(set(listed))
    assert set(listed) == fitting


@pytest.mark.parametrize("options", SIZED[:2] + SIZED[4:5], ids=str)
@pytest.mark.parametrize("below", [False, True])
def test_every_vector_is_reached_by_its_parameters(options: dict[str, Any], below: bool) -> None:
    rank_space = space(options, TINY, 120, below=below)
    for ranks in rank_space.vectors():
        assert rank_space.suggest(optuna.trial.FixedTrial(rank_space.parameters(ranks))) == ranks


def test_ranks_follow_the_weights() -> None:
    rank_space = space({"name": "tenslora", "variant": "qkv_depth"}, MINILM, 55_296)
    wide, narrow, *_ = ranks = rank_space.ranks((4, 1, 1, 1))
    assert 3 < wide / narrow < 5
    assert rank_space.count(ranks) <= 55_296 < rank_space.count(raised(ranks, 1))


def test_modes_that_are_not_searched_keep_their_rank() -> None:
    rank_space = space(
        {"name": "tenslora", "variant": "qkv_depth"}, MINILM, 55_296, modes=["input", "output"]
    )
    assert rank_space.method.size == (38, 38, 3, 6)
    assert {ranks[2:] for ranks in rank_space.vectors()} == {(3, 6)}


def test_a_budget_below_the_smallest_vector_is_refused() -> None:
    with pytest.raises(UserError, match=naming(100, "smallest", 778)):
        RankSpace(create("tenslora", variant="qkv_depth"), MINILM, 100)


# --- what is searched beside ranks ---


@pytest.mark.parametrize("head_lr", [None, 1e-2])
def test_a_cell_is_searched_by_what_it_has(head_lr: float | None) -> None:
    core, none = {"method": "tenslora", "variant": "att"}, {"method": "head_only"}
    rows = [core, {**core, "factorization": "cp"}, {"method": "peft", "type": "LOHA"}, none]
    made = plan(methods=rows, training={"batch_size": 16, "steps": 2, "head_lr": head_lr}, floor="none")
    grids = dict.fromkeys(AXES, (0.001, 0.01))
    # Rows without a budget come first.
    head, with_core, without, loha = made.cells
    assert set(with_core.tunable(grids)) == set(AXES)
    assert set(without.tunable(grids)) == {"lr", "scale", "head_lr"}
    assert set(loha.tunable(grids)) == {"lr", "head_lr"}
    # The head alone is searched by its rate under either name, unless the suite fixes its rate.
    assert set(head.tunable(grids)) == {"head_lr"}
    assert set(head.tunable({"lr": (1e-3, 1e-2)})) == ({"lr"} if head_lr is None else set())


def test_a_setting_multiplies_the_scale_and_sets_the_rates() -> None:
    setting = Setting(lr=0.03, scale=10.0)
    scaled = setting.method(create("lora", rank=2, scale=4.0))
    assert scaled.identity()["scale"] == 40.0
    recipe = Recipe.model_validate({"lr": 1e-3, "steps": 7}).resolved("cpu")
    changed = setting.recipe(recipe, head_follows=True)
    assert (changed.lr, changed.head_lr, changed.steps) == (0.03, 0.03, 7)
    assert (setting.recipe(recipe, 3).steps, setting.recipe(recipe, 3).epochs) == (None, 3)
    assert setting.recipe(recipe).head_lr == 1e-3
    assert Setting(head_lr=0.2).recipe(recipe).lr == 1e-3
    with pytest.raises(UserError, match=naming("lr 1e-07", "lr_floor 1e-06")):
        Setting(lr=1e-7).recipe(recipe)
