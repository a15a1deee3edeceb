"""The points of equal tuning: even on every axis, nested, and with what a method was published with."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from math import log, prod
from statistics import correlation
from typing import Any

import pytest

from bench.plan.make import TUNING_SEED
from bench.plan.settings import Grids, Setting, points, published
from bench.suite.choosing import HEAD_LR_GRID, LR_GRID, SCALE_GRID
from methods import create

from ..toy_suites import TEXT, plan

DEFAULT: Grids = {"lr": LR_GRID, "scale": SCALE_GRID, "head_lr": HEAD_LR_GRID}
#: Two, three and four values are where axes meet the same way again before all combinations were there.
GRIDS: list[Grids] = [DEFAULT, {"lr": LR_GRID, "head_lr": HEAD_LR_GRID}, {"head_lr": HEAD_LR_GRID}, {}] + [
    {axis: tuple(float(i + 1) for i in range(size)) for axis, size in zip(DEFAULT, sizes, strict=True)}
    for sizes in product((1, 2, 3, 4, 6), repeat=3)
]
OPTIONS: dict[str, dict[str, Any]] = {"tenslora": {"variant": "qkv_depth"}}
PUBLISHED = ("tenslora", "fact_tt", "fact_tk", "cara", "lorta")


def method(name: str) -> Any:
    return create(name, **OPTIONS.get(name, {}))


def even(some: list[Setting], grids: Grids) -> bool:
    counts = [[Counter(getattr(s, axis) for s in some)[v] for v in grid] for axis, grid in grids.items()]
    return all(max(count) - min(count) <= 1 for count in counts)


@pytest.mark.parametrize("grids", GRIDS, ids=lambda grids: "x".join(str(len(g)) for g in grids.values()))
@pytest.mark.parametrize("seed", [TUNING_SEED, 0])
def test_points_are_even_nested_different_and_cover_the_grids(grids: Grids, seed: int) -> None:
    size = prod(map(len, grids.values()))
    whole = points(grids, size, seed, Setting())
    assert len(set(whole)) == size
    assert points(grids, size + 1, seed, Setting()) == whole
    for count in range(1, size + 1):
        some = points(grids, count, seed, Setting())
        assert some == whole[:count]
        assert even(some, grids)


def test_another_seed_makes_other_points() -> None:
    assert points(DEFAULT, 8, 0, Setting()) != points(DEFAULT, 8, 1, Setting())


@pytest.mark.parametrize("seed", [TUNING_SEED, 0])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_rate_and_scale_are_in_from_the_first_point_on(name: str, seed: int) -> None:
    first = published(method(name))
    assert first.lr is not None
    whole = points(DEFAULT, 84, seed, first)
    assert len(set(whole)) == 84
    stated = first.model_dump(exclude_none=True)
    assert whole[0].model_dump(include=set(stated)) == stated
    on_grid = all(value in DEFAULT[axis] for axis, value in stated.items())
    assert on_grid == (name != "tenslora")
    for count in range(1, 85):
        some = points(DEFAULT, count, seed, first)
        assert some == whole[:count]
        # Evenness is meant for what lies on the grids.
        assert even(some if on_grid else some[1:], DEFAULT)


def test_what_was_published_is_what_the_sources_say() -> None:
    assert {name: published(method(name)) for name in PUBLISHED} == {
        "tenslora": Setting(lr=5e-4, scale=1, head_lr=5e-4),
        "fact_tt": Setting(lr=1e-3, head_lr=1e-3),
        "fact_tk": Setting(lr=1e-3, head_lr=1e-3),
        "cara": Setting(lr=1e-3, head_lr=1e-3),
        "lorta": Setting(lr=1e-2, scale=1, head_lr=1e-3),
    }
    assert published(create("lora")) == published(create("lotr")) == Setting()


def test_a_published_scale_is_relative_to_the_suites() -> None:
    for scale, factor in ((0.1, 10.0), (2.0, 0.5)):
        (first,) = points(DEFAULT, 1, 0, published(create("lorta", scale=scale)))
        assert (first.lr, first.scale, first.head_lr) == (1e-2, factor, 1e-3)


def test_what_is_not_tuned_is_not_in_a_point() -> None:
    first = published(method("tenslora"))
    assert points({"scale": SCALE_GRID}, 1, 0, first) == [Setting(scale=1)]
    assert points({"lr": (1e-3, 1e-2)}, 2, 0, first)[0] == Setting(lr=5e-4)


def test_the_default_points_reach_every_rate_and_join_no_two_axes() -> None:
    for name in (*PUBLISHED, "lora"):
        first = published(method(name))
        for count in range(7, 13):
            some = points(DEFAULT, count, TUNING_SEED, first)
            on_grid = [setting for setting in some if setting.lr in LR_GRID]
            assert {setting.lr for setting in on_grid} >= set(LR_GRID) or len(on_grid) < len(LR_GRID)
            logs = {axis: [log(getattr(s, axis)) for s in some] for axis in DEFAULT}
            assert all(abs(correlation(logs[a], logs[b])) < 0.3 for a, b in combinations(DEFAULT, 2))


def rates(registered: str, made: Any) -> list[tuple[float, float | None]]:
    (row,) = [row for row in made.of(None).rows if row.registered == registered]
    return [(one.setting.lr, one.setting.head_lr) for one in row.candidates]


def test_methods_share_their_points_as_far_as_they_can() -> None:
    names = [
        "lora",
        "lotr",
        "fact_tt",
        "lorta",
        {"method": "tenslora", "variant": "att"},
        "full",
        "head_only",
    ]
    made = plan(
        TEXT, backbones=["minilm-l6"], methods=[*names, {"method": "peft", "type": "IA3"}], tuning="equal"
    )
    spent = {row.registered: row.tuning.trials for row in made.of(None).rows if row.tuning}
    assert spent == dict.fromkeys(spent, 8) | {"head_only": 4}
    shared = rates("lora", made)
    assert {lr for lr, _ in shared} == set(LR_GRID)
    for without_scale in ("full", "peft", "lotr", "fact_tt"):
        assert rates(without_scale, made) == shared
    assert rates("tenslora", made) == [(5e-4, 5e-4), *shared[:7]]
    assert rates("lorta", made)[0] == (1e-2, 1e-3)
    assert len(set(rates("lorta", made)) & set(shared)) >= 5
    assert [head for _, head in rates("head_only", made)] == [head for _, head in shared[:4]]


def test_a_choice_outside_of_the_grid_is_at_its_edge() -> None:
    grids = {"lr": LR_GRID, "head_lr": HEAD_LR_GRID}
    assert Setting(lr=5e-4, head_lr=5e-4).edges(grids) == ("head_lr",)
    assert Setting(lr=1e-1, head_lr=3e-3).edges(grids) == ("lr",)
    assert Setting(lr=1e-1).edges({"lr": (1e-1,)}) == ()
