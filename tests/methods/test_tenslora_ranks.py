"""Tests TensLoRA's ranks under a budget: the paper's heuristic, edge cases, CP and tensor train."""

from __future__ import annotations

from itertools import accumulate
from random import Random
from typing import Any

import pytest

from tensorbench.baselines.lora import LoRA
from tensorbench.methods import create
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.errors import UserError
from tensorbench.methods.sizes import nearest, nearest_rank
from tensorbench.methods.tenslora import VARIANTS, TensLoRA

from .test_tenslora import CONSTRUCTIONS

BASE = Geometry(768, 12, 12, 3072)
#: The parameters of LoRA r=4 on this geometry.
LORA = 221_184


@pytest.mark.parametrize(
    ("variant", "ranks", "count"),
    [
        ("att", (7, 4, 12), 220_032),
        ("qkv", (12, 12, 3), 226_476),
        ("depth", (37, 37, 12), 220_212),
        ("att_qkv", (19, 5, 12, 3), 221_820),
        ("att_depth", (38, 8, 12, 12), 221_280),
        ("qkv_depth", (60, 60, 3, 12), 221_913),
        ("att_qkv_depth", (37, 12, 12, 3, 12), 221_289),
    ],
)
def test_isoparameter_ranks_of_the_heuristic(variant: str, ranks: tuple[int, ...], count: int) -> None:
    fitted = create("tenslora", variant=variant).fit(BASE, LORA)
    assert (fitted.size, fitted.count(BASE)) == (ranks, count)


def test_input_and_output_may_differ_by_one_where_that_comes_nearer() -> None:
    method = create("tenslora", variant="qkv")
    assert method.fit(BASE, LORA, uneven=True).size in {(12, 11, 3), (11, 12, 3)}
    assert method.fit(BASE, 226_476, uneven=True).size == (12, 12, 3)
    assert method.fit(BASE, 214_000, uneven=True).size == (12, 11, 3)


@pytest.mark.parametrize("variant", ["qkv_depth", "att_qkv_depth"])
def test_the_first_bonds_of_a_train_may_be_one_larger(variant: str) -> None:
    method = create("tenslora", variant=variant, factorization="tt")
    bonds = len(method.rank_names)
    sizes = [(r + 1,) * k + (r,) * (bonds - k) for r in range(1, 120) for k in range(bonds)]
    counts = [method.with_size(size).count(BASE) for size in sizes]
    for budget in range(LORA, LORA + 20_000, 1_999):
        best = min(abs(count - budget) for count in counts)
        assert abs(method.fit(BASE, budget, uneven=True).count(BASE) - budget) == best


def test_rank_limits() -> None:
    limits = {
        factorization: create("tenslora", variant="qkv_depth", factorization=factorization).rank_limits(BASE)
        for factorization in ("tucker", "cp", "tt")
    }
    assert limits == {"tucker": (768, 768, 3, 12), "cp": (768 * 3 * 12,), "tt": (768, 3 * 768, 768)}


# --- ranks in part ---


@pytest.mark.parametrize(
    ("ranks", "size"),
    [
        ({"layer": 1}, (117, 117, 3, 1)),
        ({"layer": 0.5}, (76, 76, 3, 6)),
        # Half of three is two: shares are rounded, halves to the even number.
        ({"projection": 0.5}, (69, 69, 2, 12)),
        ({"projection": 1, "layer": 1}, (133, 133, 1, 1)),
        ({"input": 100}, (100, 33, 3, 12)),
        # The budget would set 60, and 117 beside one rank for the layers.
        ({"input": "1.5x"}, (90, 38, 3, 12)),
        ({"output": "0.5x", "layer": 1}, (187, 58, 3, 1)),
    ],
)
def test_ranks_given_by_name_stay_and_the_budget_sets_the_others(
    ranks: dict[str, Any], size: tuple[int, ...]
) -> None:
    method = create("tenslora", variant="qkv_depth", ranks=ranks)
    assert method.size is None
    assert type(method).model_validate_json(method.model_dump_json()) == method
    fitted = method.fit(BASE, LORA)
    assert fitted.size == size
    assert abs(fitted.count(BASE) / LORA - 1) < 0.02
    # The same ranks in a list are the same trial.
    assert fitted.stored() == create("tenslora", variant="qkv_depth", ranks=list(size)).stored()


@pytest.mark.parametrize("factorization", ["tucker", "tt", "cp"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_ranks_that_the_rule_allows_come_nearer(variant: str, factorization: str) -> None:
    """Compares with all that it allows, in turn without and with a rank that is given."""
    random = Random(f"{variant} {factorization}")
    for number in range(12):
        heads, layers = random.randint(2, 6), random.randint(2, 9)
        geometry = Geometry(heads * random.randint(4, 16), heads, layers, 64)
        free = create("tenslora", variant=variant, factorization=factorization)
        assert isinstance(free, TensLoRA)
        budget = random.randint(15, 40) * 2 * geometry.hidden * layers
        limits = dict(zip(free.rank_names, free.rank_limits(geometry), strict=True))
        given: dict[str, int] = {}
        if number % 2 and factorization != "cp":  # which has no other rank
            name = random.choice(free.rank_names)
            given = {name: random.randint(1, min(4, limits[name] or 1))}
        fitted = free.model_copy(update={"ranks": given or None}).fit(geometry, budget)
        assert fitted.size is not None
        of_name = dict(zip(free.rank_names, fitted.size, strict=True))
        ends = {"input", "output", "head_size"} & limits.keys() if factorization == "tucker" else {*limits}
        whole = {mode: size for mode, size in limits.items() if mode not in ends} | given
        assert whole.items() <= of_name.items()
        # The ranks of a train are equal, even where fewer would suffice.
        largest = max(limits[mode] or 1 for mode in ends) if factorization == "tucker" else 600
        pairs = [(rank, rank) for rank in range(1, largest + 1)]
        if "head_size" in ends and not given.keys() & ends:
            pairs = [(r, s) for s in range(1, geometry.head_size + 1) for r in range(s + 1, 5 * s + 1)]
        allowed = [
            {mode: wide if mode == "input" else narrow for mode in ends} | given for wide, narrow in pairs
        ]
        if factorization == "tucker":
            allowed = [ranks for ranks in allowed if all(ranks[mode] <= limits[mode] for mode in ends)]  # type: ignore[operator]
        counts = [
            free.with_size([({**whole, **ranks})[mode] for mode in free.rank_names]).count(geometry)
            for ranks in allowed
        ]
        assert abs(fitted.count(geometry) - budget) == min(abs(count - budget) for count in counts)


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ({"layr": 1}, r"takes 4 \(input, output, projection, layer\), got layr"),
        ({"layer": 0}, "should be a rank.*1.5x"),
        ({"layer": True}, "should be a number, not true"),
        ({"layer": 1.0}, "should be 1 for rank 1, or the mode's size"),
        ({"layer": 1.5}, "should be a rank"),
        ({"layer": "0x"}, "should be a rank"),
        ({"layer": "9" * 400 + "x"}, "should be a rank"),
        ({"layer": "half"}, "should be a rank"),
        ({}, "at least 1"),
        ({"input": 3, "output": 3, "projection": 3, "layer": 3}, "list all of them"),
        ([3, 3, 3], "takes 4"),
    ],
)
def test_ranks_that_are_none_are_refused(ranks: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"(?s)ranks.*{said}"):
        create("tenslora", variant="qkv_depth", ranks=ranks)


def test_ranks_in_part_need_a_budget_of_parameters_that_holds_them() -> None:
    method = create("tenslora", variant="qkv_depth", ranks={"layer": 1})
    with pytest.raises(UserError, match="ranks are free; give them, or a budget"):
        method.count(BASE)
    with pytest.raises(UserError, match="budget of parameters, not of ranks"):
        method.isorank(4)
    smallest = 2 * 768 + 3 + 12 + 1
    assert method.fit(BASE, smallest).size == (1, 1, 1, 1)
    with pytest.raises(UserError, match=f"{smallest - 1:,}.*{smallest:,} with every other rank 1"):
        method.fit(BASE, smallest - 1)
    for name, rank in (("layer", 13), ("layer", 10**400), ("projection", "1.5x"), ("input", "20x")):
        large = create("tenslora", variant="qkv_depth", ranks={name: rank})
        with pytest.raises(UserError, match=f"rank of {name} is .*, accepted is at most"):
            large.fit(BASE, LORA)


@pytest.mark.parametrize(("variant", "factorization", "targets"), CONSTRUCTIONS)
def test_small_budgets(variant: str, factorization: str, targets: str) -> None:
    method = create("tenslora", variant=variant, factorization=factorization, targets=targets)
    smallest = method.isorank(1).count(BASE)
    with pytest.raises(UserError, match=f"{smallest - 1:,}.*{smallest:,} with every rank 1"):
        method.fit(BASE, smallest - 1)
    assert method.fit(BASE, smallest).count(BASE) == smallest


def test_small_modes_are_capped_as_little_as_needed() -> None:
    method = create("tenslora", variant="qkv_depth")
    for cap in range(1, 12):
        size = (1, 1, min(3, cap), cap)
        assert method.fit(BASE, method.with_size(size).count(BASE)).size == size


@pytest.mark.parametrize(
    ("variant", "budget", "size"),
    [
        ("att", 60_840, (2, 1, 6)),
        ("att_qkv", 20_352, (2, 1, 4, 3)),
        ("att_depth", 5_142, (2, 1, 3, 3)),
        ("att_qkv_depth", 1_720, (2, 1, 2, 2, 2)),
    ],
)
def test_small_modes_are_capped_for_the_smallest_pair_that_the_rule_allows(
    variant: str, budget: int, size: tuple[int, ...]
) -> None:
    fitted = create("tenslora", variant=variant).fit(BASE, budget)
    assert fitted.size == size
    assert abs(fitted.count(BASE) / budget - 1) < 0.05


def test_with_a_given_end_modes_are_capped_for_equal_ends() -> None:
    fitted = create("tenslora", variant="att_qkv", ranks={"head_size": 1}).fit(Geometry(24, 4, 2, 96), 100)
    assert fitted.size == (1, 1, 2, 2)


def test_the_nearest_rank_is_the_nearest_of_all() -> None:
    """For counts that grow unevenly, and stop growing at rank 20."""
    counts = list(accumulate(1 + rank**2 % 7 for rank in range(20)))

    def count(rank: int) -> int:
        return counts[min(rank, len(counts)) - 1]

    for budget in range(counts[-1] + 10):
        best = min(range(1, 21), key=lambda rank: (abs(count(rank) - budget), count(rank)))
        assert nearest_rank(count, budget) == best


def test_a_count_that_falls_is_refused_unless_it_grows_up_to_the_limit() -> None:
    for count in (lambda rank: -rank, lambda rank: rank * (64 - rank)):
        with pytest.raises(UserError, match="count falls"):
            nearest_rank(count, 10_000)

    class Falling(LoRA):
        def rank_limits(self, geometry: Geometry) -> tuple[int | None, ...]:
            return (geometry.hidden,)

        def count_at(self, geometry: Geometry, rank: int) -> int:
            return rank * (2 * geometry.hidden - rank)

    for budget in range(47, 700):
        best = min(range(1, 25), key=lambda rank: abs(rank * (48 - rank) - budget))
        assert Falling().fit(Geometry(24, 4, 2, 96), budget).rank == best


def test_a_tie_goes_to_the_smaller_count() -> None:
    assert nearest([3, 1, 5], lambda rank: rank, 4) == 3
    assert nearest([5, 3], lambda rank: rank, 4) == 3
    assert nearest_rank(lambda rank: 2 * rank, 5) == 2
    assert nearest_rank(lambda rank: 2 * rank, 5, low=3) == 3
    assert nearest_rank(lambda rank: 2 * rank, 1000, high=7) == 7
    # Among ranks with equal counts the first.
    assert nearest_rank(lambda rank: min(rank, 3), 10) == 3
