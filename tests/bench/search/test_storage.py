"""Tests that concurrent processes of one search take different trials."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import optuna

from tensorbench.search.storage import open_storage


def test_concurrent_requests_take_different_trials(tmp_path: Path) -> None:
    url, rounds = f"sqlite:///{tmp_path / 'optuna.db'}", 15
    study = optuna.create_study(storage=open_storage(url), study_name="one")
    for number in range(2 * rounds):
        study.enqueue_trial({"x": number})
    at_once = Barrier(2)

    def trial_numbers(storage: optuna.storages.BaseStorage) -> Iterator[int]:
        own = optuna.load_study(study_name="one", storage=storage)
        for _ in range(rounds):
            at_once.wait()
            yield own.ask().number

    with ThreadPoolExecutor(2) as pool:
        # Each thread has its own connections, like a separate process.
        taken = list(
            pool.map(lambda storage: list(trial_numbers(storage)), [open_storage(url), open_storage(url)])
        )
    assert sorted(taken[0] + taken[1]) == list(range(2 * rounds))
