"""Tests the points of equal tuning: they cover the grids evenly, after each method's published point."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from math import log, prod
from statistics import correlation
from typing import Any

import pytest

from tensorbench.methods import create
from tensorbench.plan.choosing import HEAD_LR_GRID, LR_GRID, SCALE_GRID
from tensorbench.plan.settings import Grids, Setting, design, points, published

from ..toy_suites import TEXT, plan

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
DEFAULT: Grids = {"lr": LR_GRID, "scale": SCALE_GRID, "head_lr": HEAD_LR_GRID}
#: Grids of usual sizes. Some pairs of sizes have a common factor. Going through two such grids in step would
#: repeat the same pairs of values.
TUNED: dict[str, Grids] = {
    "default": DEFAULT,
    "6x3": {"lr": RATES, "scale": SCALE_GRID},
    "6x4": {"lr": RATES, "head_lr": HEAD_LR_GRID},
    "6x3x4": {"lr": RATES, "scale": SCALE_GRID, "head_lr": HEAD_LR_GRID},
}
TUNED |= {
    f"{name} with {len(core)} cores": {**grids, "core_lr": core}
    for name, grids in TUNED.items()
    for core in ((1.0, 4.0, 16.0), (1.0, 4.0, 8.0, 16.0))
}
SIZES = [sizes for axes in (1, 2, 3) for sizes in product((1, 2, 3, 4, 6), repeat=axes)] + [(7, 4, 3, 4)]
OPTIONS: dict[str, dict[str, Any]] = {"tenslora": {"variant": "qkv_depth"}}
PUBLISHED = ("tenslora", "fact_tt", "fact_tk", "cara", "lorta")


def method(name: str) -> Any:
    return create(name, **OPTIONS.get(name, {}))


def spread(cells: list[tuple[int, ...]], sizes: tuple[int, ...], *axes: int) -> int:
    """Counts the combinations of values on these axes. Returns the largest minus the smallest count."""
    counts = Counter(tuple(cell[axis] for axis in axes) for cell in cells)
    every = [counts[values] for values in product(*(range(sizes[axis]) for axis in axes))]
    return max(every) - min(every)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_a_design_is_nested_covers_the_grid_and_is_even_at_every_length(sizes: tuple[int, ...]) -> None:
    full = design(sizes, prod(sizes))
    assert sorted(full) == list(product(*map(range, sizes)))
    assert full[0] == tuple(size // 2 for size in sizes)
    for count in range(1, len(full) + 1):
        cells = full[:count]
        if count in (1, 8, len(full)):
            assert design(sizes, min(count, len(full))) == cells
        for axis, size in enumerate(sizes):
            assert spread(cells, sizes, axis) <= 2
            assert len({cell[axis] for cell in cells}) == min(count, size)
        for first_axis, second_axis in combinations(range(len(sizes)), 2):
            assert spread(cells, sizes, first_axis, second_axis) <= 3


def test_a_design_is_the_same_everywhere() -> None:
    cells = [(3, 1, 2), (2, 0, 1), (4, 2, 0), (5, 1, 3), (1, 2, 2), (6, 0, 0), (0, 1, 1), (3, 0, 3)]
    assert design((7, 3, 4), 8) == cells


@pytest.mark.parametrize("count", [8, 12, 16, 24])
@pytest.mark.parametrize("name", TUNED)
def test_no_two_axes_are_tied(name: str, count: int) -> None:
    grids = TUNED[name]
    settings = points(grids, grids, count, Setting())
    logs = {axis: [log(getattr(setting, axis)) for setting in settings] for axis in grids}
    assert all(abs(correlation(logs[a], logs[b])) < 0.31 for a, b in combinations(grids, 2))


def test_a_rate_meets_another_scale_when_it_comes_again() -> None:
    grids = TUNED["6x3"]
    met = [(setting.lr, setting.scale) for setting in points(grids, grids, 18, Setting())]
    assert len(set(met[:12])) == 12
    assert {Counter(lr for lr, _ in met[:12])[rate] for rate in RATES} == {2}
    assert len(set(met)) == 18


@pytest.mark.parametrize("name", [*PUBLISHED, "lora"])
def test_the_published_point_comes_before_those_that_all_methods_share(name: str) -> None:
    first = published(method(name))
    shared = points(DEFAULT, DEFAULT, 84, Setting())
    assert len(set(shared)) == 84
    stated = first.model_dump(exclude_none=True)
    settings = points(DEFAULT, DEFAULT, 100, first)
    assert settings[0] == shared[0].model_copy(update=stated)
    assert settings[1:] == [setting for setting in shared if setting != settings[0]]
    assert [points(DEFAULT, DEFAULT, count, first) for count in (1, 8, 84)] == [
        settings[:1],
        settings[:8],
        settings[:84],
    ]


@pytest.mark.parametrize("axes", [("lr",), ("head_lr",), ("lr", "head_lr"), ("lr", "scale"), ()])
def test_a_method_without_an_axis_has_the_points_without_it(axes: tuple[str, ...]) -> None:
    grids = TUNED["default with 3 cores"]
    full = points(grids, grids, 24, Setting())
    most = prod(len(grids[axis]) for axis in axes)
    settings = points(grids, axes, 100, Setting())
    assert len(set(settings)) == len(settings) == most
    without = [Setting(**setting.model_dump(include=set(axes))) for setting in full]
    assert list(dict.fromkeys(without)) == settings[: len(set(without))]


def test_published_points_equal_their_sources() -> None:
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
        (first,) = points(DEFAULT, DEFAULT, 1, published(create("lorta", scale=scale)))
        assert (first.lr, first.scale, first.head_lr) == (1e-2, factor, 1e-3)


def test_untuned_axes_are_not_in_a_point() -> None:
    first = published(method("tenslora"))
    assert points({"scale": SCALE_GRID}, ["scale"], 1, first) == [Setting(scale=1)]
    assert points({"lr": (1e-3, 1e-2)}, ["lr"], 2, first)[0] == Setting(lr=5e-4)


def rates(registered: str, made: Any) -> list[tuple[float, float | None]]:
    (row,) = [row for row in made.of(None).rows if row.family == registered]
    return [(candidate.setting.lr, candidate.setting.head_lr) for candidate in row.candidates]


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
    spent = {row.family: row.tuning.trials for row in made.of(None).rows if row.tuning}
    assert spent == dict.fromkeys(spent, 8) | {"head_only": 4}
    shared = rates("lora", made)
    assert {lr for lr, _ in shared} == set(LR_GRID)
    for without_scale in ("full", "peft", "lotr"):
        assert rates(without_scale, made) == shared
    assert rates("tenslora", made) == [(5e-4, 5e-4), *shared[:7]]
    assert rates("lorta", made) == [(1e-2, 1e-3), *shared[:7]]
    assert rates("fact_tt", made) == [(1e-3, 1e-3), *shared[:7]]
    assert [head for _, head in rates("head_only", made)] == [head for _, head in shared[:4]]


def test_a_choice_outside_of_the_grid_is_at_its_edge() -> None:
    grids = {"lr": LR_GRID, "head_lr": HEAD_LR_GRID}
    assert Setting(lr=5e-4, head_lr=5e-4).edges(grids) == ("head_lr",)
    assert Setting(lr=1e-1, head_lr=3e-3).edges(grids) == ("lr",)
    assert Setting(lr=1e-1).edges({"lr": (1e-1,)}) == ()
