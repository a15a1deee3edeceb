"""Tests trials that fail, are interrupted or retried: what is stored, and which trials run next."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorbench.execution.inline
import tensorbench.execution.perform
from tensorbench.execution.driver import failures, pending
from tensorbench.methods import UserError
from tensorbench.records.record import Record, latest
from tensorbench.records.words import Status
from tensorbench.store.store import Store
from tensorbench.training.trial import Resources

from ...fixtures import Call, NewStore
from ...messages import naming
from ...stored import begun
from ..toy_runs import SHORT, Ran, executed, raising, run, run_inline
from ..toy_suites import VISION, plan


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, call: Call) -> Ran:
    return run(
        tmp_path_factory.mktemp("failed"),
        new_store,
        call,
        VISION,
        methods=[{"method": "tenslora", "variant": "att", "training": {"lr": 1e30}}, "lora"],
        training={"lr": 5e-3, "batch_size": 16, "steps": 3, "warmup": 0},
    )


def test_a_diverging_trial_is_stored_with_its_reason_and_the_others_go_on(failed: Ran) -> None:
    assert failed.ended.code == 1
    bad, good = failed.by_method("TensLoRA att [lr=1e+30]"), failed.by_method("LoRA")
    assert (bad.status, good.status) == ("FAILED", "FINISHED")
    assert bad.tags["failure"] == "diverged"
    assert "nan at step" in bad.tags["failure_message"]
    assert "Diverged" in failed.artifact(bad, "traceback.txt").read_text()
    assert "score" not in bad.metrics


def test_the_terminal_shows_a_failure_in_line_and_table(failed: Ran) -> None:
    assert "✗ TensLoRA att" in failed.ended.out
    assert "nan at step" in failed.ended.out
    assert "0/1 ✗ diverged" in failed.ended.out
    assert re.search("1 trial.* failed.*`--retry-failed`", failed.ended.out)


def test_a_failure_is_retried_only_on_request_and_nothing_else_with_it(failed: Ran, call: Call) -> None:
    rerun = call("run", failed.suite, "--store", failed.uri)
    assert (rerun.code, len(failed.store.records())) == (1, 2)
    retried = call("run", failed.suite, "--store", failed.uri, "--retry-failed")
    assert "2 trials, 1 to run" in retried.out
    assert retried.code == 1
    methods = Counter(record.tags["method"] for record in failed.store.records())
    assert methods == {"TensLoRA att [lr=1e+30]": 2, "LoRA": 1}


def allocate(*_: Any) -> Any:
    return torch.empty(1 << 50)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (allocate, "out of memory"),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), "out of memory"),
        (raising(MemoryError()), "out of memory"),
        (raising(RuntimeError("std::bad_alloc")), "out of memory"),
        (raising(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")), "out of memory"),
        (raising(RuntimeError("CUDA error: out of memory")), "out of memory"),
        (raising(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling")), "out of memory"),
        (raising(RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")), "out of memory"),
        (raising(ValueError("a [bug]")), "error"),
        (raising(SystemExit(0)), "error"),
        (raising(GeneratorExit()), "error"),
    ],
)
def test_a_failure_is_named_and_the_next_trial_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch, broken: Any, reason: str
) -> None:
    made = plan(methods=["lora", "head_only"], training=SHORT)
    real = tensorbench.execution.perform.run_trial

    def run_trial(trial: Any, *rest: Any) -> Any:
        return broken() if trial.method["method"] == "lora" else real(trial, *rest)

    monkeypatch.setattr(tensorbench.execution.perform, "run_trial", run_trial)
    events = executed(store, made)
    assert [event.kind for event in events] == ["failed", "finished"]
    assert events[0].ending is not None
    assert events[0].ending.failure.startswith(reason)
    bad, good = store.records()
    assert (bad.status, bad.tags["failure"], good.status) == ("FAILED", reason, "FINISHED")
    if reason == "error":
        assert bad.tags["failure_message"] in ("ValueError: a [bug]", "SystemExit: 0", "GeneratorExit: ")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_needs_beyond_the_device_are_reported_before_any_trial(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    made = plan(training=SHORT)
    monkeypatch.setattr(Resources, "backbone", raising(error))
    with pytest.raises(UserError, match=naming("cpu", "memory")):
        tensorbench.execution.perform.prepare_all(list(made.trials), Resources("cpu"))
    monkeypatch.setattr(Resources, "backbone", raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        tensorbench.execution.perform.prepare_all(list(made.trials), Resources("cpu"))


def test_a_plug_in_that_ends_the_program_makes_no_success(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorbench.execution.inline, "prepare_all", raising(SystemExit(0)))
    ran = run(tmp_path, new_store, call, VISION, training=SHORT)
    assert (ran.ended.code, ran.store.records()) == (1, [])
    assert "sys.exit(0)" in ran.ended.err


def test_a_keyboard_interrupt_that_a_trial_raises_in_a_worker_is_a_failure() -> None:
    # Signals are blocked in a worker, so a KeyboardInterrupt in it comes from the trial itself.
    (trial,) = plan(training=SHORT).trials
    resources = Resources("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorbench.execution.perform, "run_trial", raising(KeyboardInterrupt()))
        ending = tensorbench.execution.perform.perform(trial, resources, lambda progress: None)
    assert (ending.status, ending.failure) == (Status.FAILED, "error: KeyboardInterrupt: ")


def test_a_killed_retry_is_retried_by_the_same_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(methods=["lora"], training=SHORT)
    for error in (ValueError(), KeyboardInterrupt()):
        with monkeypatch.context() as patch:
            patch.setattr(tensorbench.execution.perform, "run_trial", raising(error))
            if isinstance(error, KeyboardInterrupt):
                with pytest.raises(KeyboardInterrupt):
                    executed(store, made)
            else:
                executed(store, made)
    assert [record.status for record in store.records()] == ["FAILED", "KILLED"]
    assert pending(made, store.records()) == []
    assert list(failures(store.records())) == [trial.id for trial in made.trials]
    executed(store, made)
    assert failures(store.records()) == {}


def test_a_trial_that_two_starts_finished_counts_once(store: Store) -> None:
    made = plan(methods=["head_only"], training=SHORT)
    executed(store, made)
    # A trial that finished while this driver was planning does not run again.
    assert [event.kind for event in run_inline(store, made)] == ["elsewhere"]
    late = begun(store, made.trials[0], made.rows)
    late.end(Record(status=Status.FINISHED, metrics={"score": 0.5}))
    first, second = store.records()
    assert first.trial_id == second.trial_id
    assert (first.status, second.status) == ("FINISHED", "DUPLICATE")
    assert latest(store.records())[first.trial_id].run_id == first.run_id
