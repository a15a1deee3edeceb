"""How large the splits of a task are, and how many test examples are also in train.

Splits that the benchmark deals share no example. Official ones stay as they are, duplicates included.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.tasks.base import Task
from bench.tasks.pool import Sizes, Source, contents_at_hand, dealt, pool_of, same_contents
from bench.wire.measures import SplitSizes


def split_sizes(task: Task, sizes: Sizes, split_seed: int | None) -> SplitSizes | None:
    """The sizes of the splits, or of the parts of them that are used, where a task has been prepared."""
    if not contents_at_hand(task, per_seed=split_seed is not None):
        return None
    source = Source(task)
    if split_seed is None:
        parts = dealt(source)
    else:
        pool = pool_of(source)
        parts = {split: pool.kept[chosen] for split, chosen in pool.deal(task, split_seed).items()}
    train, validation, test = (part[:size] for part, size in zip(parts.values(), sizes, strict=True))
    repeated = _repeated(same_contents(source)["same"], train, test)
    return SplitSizes(len(train), len(validation), len(test), repeated)


def repeated_tests(task: Task, train: NDArray[np.int64], test: NDArray[np.int64]) -> int | None:
    """How many test examples are equal to one of train, by their ids; None where the cache does not tell.

    Equal are texts by the task's own normalisation (`Task.rules`), and images by their pixels.
    """
    if not contents_at_hand(task):
        return None
    found = same_contents(Source(task))
    order = np.argsort(found["ids"], kind="stable")
    train, test = (order[np.searchsorted(found["ids"], ids, sorter=order)] for ids in (train, test))
    return _repeated(found["same"], train, test)


def _repeated(same: NDArray[np.int64], train: NDArray[np.int64], test: NDArray[np.int64]) -> int:
    return int(np.isin(same[test], same[train]).sum())
