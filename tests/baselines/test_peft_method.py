"""The size of peft's methods: counted by building them, and fitted to a budget."""

from __future__ import annotations

import pytest

from baselines import peft_method
from baselines.peft_method import Peft
from methods import Geometry, UserError, create

GEOMETRY = Geometry(hidden=24, heads=3, layers=5, mlp=96)


@pytest.mark.parametrize("kind", ["DORA", "VERA", "LOHA", "LOKR", "IA3", "FOURIERFT"])
def test_two_layers_tell_the_count_of_all(kind: str) -> None:
    method = create("peft", type=kind, targets="qkvo+mlp")
    sized = method.isorank(3)
    assert sized.count(GEOMETRY) == peft_method._count(sized.model_dump_json(), GEOMETRY)


@pytest.mark.parametrize("kind", ["DORA", "VERA", "LOHA", "LOKR", "FOURIERFT"])
@pytest.mark.parametrize("budget", [1_700, 3_001, 6_400])
def test_the_nearest_rank_is_the_nearest_of_all(kind: str, budget: int) -> None:
    method = Peft(type=kind)
    counts = [method.isorank(rank).count(GEOMETRY) for rank in range(1, 24)]
    if counts[0] > budget:
        with pytest.raises(UserError, match="below the smallest possible"):
            method.fit(GEOMETRY, budget)
        return
    fitted = method.fit(GEOMETRY, budget).count(GEOMETRY)
    best = min(abs(count - budget) for count in counts)
    # Beyond the ranks listed here a count may come nearer still.
    assert abs(fitted - budget) <= best
    assert fitted not in counts or fitted == min(c for c in counts if abs(c - budget) == abs(fitted - budget))
