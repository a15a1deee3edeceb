"""Tests the learning rate of each step, and which examples are in each batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from tensorbench.tasks import ImageSplit, TextSplit
from tensorbench.training.loop import batches, rate

# --- the schedule ---


def rates(steps: int, warmup: int, peak: float = 1.0, floor: float = 0.1) -> list[float]:
    return [rate(step, steps, warmup, peak, floor) for step in range(steps)]


def test_the_rate_rises_linearly_then_falls_as_a_cosine_to_the_floor() -> None:
    assert rates(9, 4) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.55, 0.1 + 0.9 * (1 - 0.5**0.5) / 2, 0.1]
    )


def test_without_warmup_the_first_step_has_the_peak_and_the_last_the_floor() -> None:
    values = rates(50, 0)
    assert (values[0], values[-1]) == (1.0, pytest.approx(0.1))
    assert values == sorted(values, reverse=True)


def test_a_single_step_has_the_peak() -> None:
    assert rates(1, 0) == [1.0]


# --- batches ---


def texts(lengths: list[int]) -> TextSplit:
    sizes = torch.tensor(lengths)
    return TextSplit(
        tokens=torch.arange(int(sizes.sum()), dtype=torch.int32),
        starts=sizes.cumsum(0) - sizes,
        lengths=sizes,
        labels=torch.zeros(len(sizes), dtype=torch.int64),
        ids=torch.arange(len(sizes)),
        pad_id=0,
    )


def images(count: int) -> ImageSplit:
    white = torch.ones(1, 3, 1, 1)
    return ImageSplit(
        torch.zeros(count, 3, 2, 2, dtype=torch.uint8),
        torch.zeros(count).long(),
        torch.arange(count),
        white,
        white,
    )


LENGTHS = torch.randint(3, 200, (1003,), generator=torch.Generator().manual_seed(0)).tolist()


def order(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("split", [texts(LENGTHS), images(1003)], ids=["texts", "images"])
@pytest.mark.parametrize("seed", [None, 0])
def test_a_pass_has_every_example_once_in_batches_of_the_size(split: Any, seed: int | None) -> None:
    cut = list(batches(split, 16, None if seed is None else order(seed)))
    assert torch.cat(cut).sort().values.tolist() == list(range(1003))
    assert sorted(map(len, cut)) == [11] + [16] * 62


@pytest.mark.parametrize("split", [texts(LENGTHS), images(1003)], ids=["texts", "images"])
def test_the_order_is_the_generator_s(split: Any) -> None:
    def passes(seed: int) -> list[list[int]]:
        drawn = order(seed)
        return [torch.cat(list(batches(split, 16, drawn))).tolist() for _ in range(2)]

    assert passes(0) == passes(0)
    assert passes(0) != passes(1)
    assert passes(0)[0] != passes(0)[1]


def test_similar_lengths_share_a_batch_but_batches_come_in_any_order() -> None:
    split = texts(LENGTHS)
    cut = list(batches(split, 16, order()))
    longest = [int(split.lengths[batch].max()) for batch in cut]
    padded = sum(m * len(batch) for m, batch in zip(longest, cut, strict=True))
    assert padded < 1.1 * sum(LENGTHS)
    assert padded < 0.65 * max(LENGTHS) * len(LENGTHS)
    rising = sum(a < b for a, b in pairwise(longest))
    assert 0.3 < rising / len(longest) < 0.7


def test_examples_change_their_company_between_passes() -> None:
    split, drawn = texts(LENGTHS), order()
    first, second = ({frozenset(batch.tolist()) for batch in batches(split, 16, drawn)} for _ in range(2))
    assert not first & second
