"""Tests TensLoRA's ranks under a budget: the paper's heuristic, edge cases, CP and tensor train."""

from __future__ import annotations

from itertools import accumulate

import pytest

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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("geometry", [Geometry(384, 6, 12, 1536), Geometry(96, 4, 5, 384)], ids=str)
def test_no_ranks_that_the_rule_allows_come_nearer(variant: str, geometry: Geometry) -> None:
    method = create("tenslora", variant=variant)
    assert isinstance(method, TensLoRA)
    shape = dict(zip(method.modes, method.shape(geometry), strict=True))
    small = [size for mode, size in shape.items() if mode in ("head", "projection", "layer")]
    unit = 2 * geometry.hidden * 3 * geometry.layers
    for budget in (4 * unit, 5 * unit + 17, 9 * unit):
        if "head" in shape:
            pairs = [
                (wide, narrow)
                for narrow in range(1, geometry.head_size + 1)
                for wide in range(narrow + 1, min(5 * narrow, geometry.hidden) + 1)
            ]
        else:
            pairs = [(rank, rank) for rank in range(1, geometry.hidden + 1)]
        counts = [method.model_copy(update={"ranks": (*pair, *small)}).count(geometry) for pair in pairs]
        best = min((abs(count - budget), count) for count in counts)
        fitted = method.fit(geometry, budget)
        assert (abs(fitted.count(geometry) - budget), fitted.count(geometry)) == best
        assert fitted.size is not None
        wide, narrow, *rest = fitted.size
        assert rest == small
        assert (1 < wide / narrow <= 5) if "head" in shape else wide == narrow


@pytest.mark.parametrize("factorization", ["cp", "tt"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_factorisations_share_one_rank(variant: str, factorization: str) -> None:
    method = create("tenslora", variant=variant, factorization=factorization)
    fitted = method.fit(BASE, LORA)
    assert fitted.size is not None
    (rank,) = set(fitted.size)
    for other in (rank - 1, rank + 1):
        assert abs(method.isorank(other).count(BASE) - LORA) >= abs(fitted.count(BASE) - LORA)


@pytest.mark.parametrize(("variant", "factorization", "targets"), CONSTRUCTIONS)
def test_small_budgets(variant: str, factorization: str, targets: str) -> None:
    method = create("tenslora", variant=variant, factorization=factorization, targets=targets)
    smallest = method.isorank(1).count(BASE)
    with pytest.raises(UserError, match=f"{smallest - 1:,}.*{smallest:,}"):
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


def test_the_nearest_rank_is_the_nearest_of_all() -> None:
    """For counts that grow unevenly, and stop growing at rank 20."""
    counts = list(accumulate(1 + rank**2 % 7 for rank in range(20)))

    def count(rank: int) -> int:
        return counts[min(rank, len(counts)) - 1]

    for budget in range(counts[-1] + 10):
        best = min(range(1, 21), key=lambda rank: (abs(count(rank) - budget), count(rank)))
        assert nearest_rank(count, budget) == best


def test_a_tie_goes_to_the_smaller_count() -> None:
    assert nearest([3, 1, 5], lambda rank: rank, 4) == 3
    assert nearest([5, 3], lambda rank: rank, 4) == 3
    assert nearest_rank(lambda rank: 2 * rank, 5) == 2
    assert nearest_rank(lambda rank: 2 * rank, 5, low=3) == 3
    assert nearest_rank(lambda rank: 2 * rank, 1000, high=7) == 7
    # Among ranks with equal counts the first.
    assert nearest_rank(lambda rank: min(rank, 3), 10) == 3
