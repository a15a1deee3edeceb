"""A suite from its file to MLflow, on real models, data and stores; stopped in every way and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

import bench.execution.driver
import bench.execution.perform
from bench.backbones import load
from bench.execution.driver import execute, failures, pending
from bench.execution.inline import Inline
from bench.execution.perform import Event
from bench.execution.session import session
from bench.plan.rows import Plan
from bench.store.connect import StoreError, StoreRefusedError
from bench.store.outbox import Letter
from bench.store.records import Record, latest
from bench.store.store import Store
from bench.store.writer import TrialRun, begin_trial
from bench.suite.load import load_suite
from bench.tasks import TASKS, prepare
from bench.training.loop import Pruned, evaluate
from bench.training.measure import LIBRARIES
from bench.wire.trial import Ending
from bench.wire.words import Kind
from methods import from_identity

from .held import await_held, start
from .toy_suites import MOVIES, TEXT, VISION, plan, write

Call = Callable[..., Any]
NewStore = Callable[[Path], str]

STEPS = 10
METHODS: list[Any] = ["lora", "head_only", {"method": "tenslora", "variant": "att"}]


@dataclass
class Ran:
    """A suite that ran, and where."""

    folder: Path
    suite: Path
    uri: str
    plan: Plan
    ended: Any

    @property
    def store(self) -> Store:
        return Store.existing(self.uri, "toy")

    def artifact(self, record: Record, name: str) -> Path:
        return Path(self.store.client.download_artifacts(record.run_id, name))


def run(folder: Path, new_store: NewStore, call: Call, base: dict[str, Any], **changes: Any) -> Ran:
    suite, uri = write(folder, base, **changes), new_store(folder)
    return Ran(folder, suite, uri, plan(base, **changes), call("run", suite, "--store", uri))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, call: Call) -> Ran:
    return run(
        tmp_path_factory.mktemp("finished"),
        new_store,
        call,
        TEXT,
        methods=METHODS,
        budgets=[{"isorank": 2}, {"isoparameters": 2}],
        seeds=[0, 1],
        training={"lr": 5e-3, "batch_size": 16, "steps": STEPS},
        closing="The end.",
    )


def by_method(ran: Ran, method: str, seed: int = 0) -> Record:
    return next(
        record
        for record in ran.store.records()
        if record.tags["method"] == method and record.tags["seed"] == str(seed)
    )


# --- what is stored ---


def test_every_trial_of_the_plan_finishes_and_lora_in_two_blocks_runs_once(finished: Ran) -> None:
    assert finished.ended.code == 0
    records = finished.store.records()
    assert {record.status for record in records} == {"FINISHED"}
    # LoRA r=2, head only, and the variant under either budget; two seeds.
    assert len(records) == 8
    assert sorted(record.trial_id for record in records) == sorted(trial.id for trial in finished.plan.trials)
    budgets = json.loads(by_method(finished, "LoRA").tags["budgets"])
    assert [entry["budget"] for entry in budgets] == ["isorank 2", "isoparameters 2"]
    assert [entry["ratio"] for entry in budgets] == [None, 1.0]


def test_the_terminal_shows_progress_and_a_table(finished: Ran) -> None:
    out = finished.ended.out
    assert "toy: 8 trials, 8 to run on cpu" in out
    assert out.count("✓") == 8
    assert "movie-sentiment · tiny-random-bert · test accuracy, mean ± standard deviation" in out
    scores = [by_method(finished, "LoRA", seed).metrics["score"] for seed in (0, 1)]
    mean, deviation = pd.Series(scores).mean(), pd.Series(scores).std()
    assert f"{mean:.4f} ± {deviation:.4f}" in out
    assert out.rstrip().endswith("The end.")
    assert "head only · movie-sentiment" in out


def test_metrics_of_steps_epochs_and_the_end_are_stored(finished: Ran) -> None:
    record = by_method(finished, "TensLoRA att")
    client = finished.store.client
    losses = client.get_metric_history(record.run_id, "train/loss")
    assert sorted(metric.step for metric in losses) == list(range(1, STEPS + 1))
    epochs = -(-STEPS // (MOVIES["train_size"] // 16))
    for key in ("validation/accuracy", "validation/loss"):
        steps = sorted(metric.step for metric in client.get_metric_history(record.run_id, key))
        assert steps == list(range(1, epochs + 1))
    metrics = record.metrics
    assert 0 <= metrics["score"] <= 1
    assert metrics["score_loss"] > 0
    assert metrics["cost/steps"] == STEPS
    assert metrics["cost/step_ms"] > 0
    assert metrics["cost/seconds"] > 0
    assert metrics["cost/peak_mib"] > 1
    validations = client.get_metric_history(record.run_id, "validation/accuracy")
    best = max(validations, key=lambda m: (m.value, -m.step))
    assert metrics["selected/epoch"] == best.step
    assert metrics["selected/validation"] == best.value


def test_parameter_counts_and_budget_are_stored(finished: Ran) -> None:
    rows = {row.trials[seed]: row for row in finished.plan.rows for seed in row.trials}
    for record in finished.store.records():
        row = rows[record.trial_id]
        assert record.metrics["parameters/adapter"] == row.parameters
        assert record.metrics["parameters/head"] == 2 * 32 + 2
        assert record.tags["ranks"] == ",".join(map(str, row.ranks))
        assert record.tags["budget_missed"] == ("yes" if row.within is False else "no")
    assert by_method(finished, "head only").tags["budget"] == "own"


def test_the_resolved_configuration_is_stored_whole(finished: Ran) -> None:
    record = by_method(finished, "LoRA")
    trial = next(t for t in finished.plan.trials if t.id == record.trial_id)
    config = json.loads(finished.artifact(record, "config.json").read_text())
    assert type(trial).model_validate(config["trial"]).id == trial.id
    params = finished.store.client.get_run(record.run_id).data.params
    assert params["recipe.lr"] == "0.005"
    assert params["recipe.head_lr"] == "0.005"
    assert params["recipe.precision"] == "fp32"
    assert params["method.rank"] == "2"
    assert params["task.train_size"] == str(MOVIES["train_size"])
    assert params["seed"] == "0"


def test_provenance_is_stored(finished: Ran) -> None:
    record = by_method(finished, "LoRA")
    for name in (
        "git_commit",
        "git_dirty",
        "cpu",
        "python",
        "harness",
        *(f"version_{lib}" for lib in LIBRARIES),
    ):
        assert record.tags[f"provenance.{name}"], name
    params = finished.store.client.get_run(record.run_id).data.params
    assert params["data.data_hash"] == TASKS.get("movie-sentiment").data_hash
    assert params["weights_hash"] == load("tiny-random-bert").info.weights_hash
    assert {"trial", "provenance"} == set(json.loads(finished.artifact(record, "config.json").read_text()))


@pytest.mark.parametrize("method", ["LoRA", "TensLoRA att", "head only"])
def test_predictions_are_those_of_the_stored_adapter_and_give_the_score(finished: Ran, method: str) -> None:
    record = by_method(finished, method, seed=1)
    trial = next(t for t in finished.plan.trials if t.id == record.trial_id)
    backbone = load(trial.backbone)
    sizes = {key: value for key, value in MOVIES.items() if key != "task"}
    data = prepare(TASKS.get("movie-sentiment"), backbone.info.input, **sizes)

    frame = pd.read_parquet(finished.artifact(record, "predictions.parquet"))
    assert frame["example"].tolist() == data.test.ids.tolist()
    assert frame["label"].tolist() == data.test.labels.tolist()
    assert len(frame) == MOVIES["test_size"]
    assert (frame["label"] == frame["prediction"]).mean() == pytest.approx(record.metrics["score"])

    tensors = load_file(finished.artifact(record, "adapter.safetensors"))
    assert {name.partition(".")[0] for name in tensors} <= {"adapter", "head"}
    parts: dict[str, dict[str, torch.Tensor]] = {"adapter": {}, "head": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    backbone.reset(data.classes, torch.Generator().manual_seed(99))
    adapter = from_identity(trial.method).attach(backbone, torch.Generator().manual_seed(99))
    adapter.load(parts["adapter"])
    backbone.head.load_state_dict(parts["head"])
    result = evaluate(backbone, adapter, data.test, trial.recipe, "accuracy", data.classes)
    stored = torch.tensor(frame[["logit_0", "logit_1"]].to_numpy())
    assert torch.allclose(result.logits, stored, atol=1e-6)


# --- a second start ---


def test_a_second_start_trains_nothing_and_is_quick(finished: Ran) -> None:
    before = finished.store.records()
    started = time.perf_counter()
    again = begin(finished, 0).communicate()[0]
    # 15 s are promised, of a machine that does nothing else.
    assert time.perf_counter() - started < 30
    assert "toy: 8 trials, 0 to run on cpu" in again
    assert "The end." in again
    assert finished.store.records() == before


def test_a_suite_that_grew_runs_only_what_is_new(finished: Ran) -> None:
    made = load_suite(finished.suite)
    grown = plan(
        TEXT,
        methods=METHODS,
        budgets=[{"isoparameters": 2}],
        seeds=[0, 5],
        training=made.training.model_dump(exclude_unset=True),
    )
    assert [trial.seed for trial in pending(grown, finished.store)] == [5, 5, 5]


# --- failures ---


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
    bad, good = by_method(failed, "TensLoRA att [lr=1e+30]"), by_method(failed, "LoRA")
    assert (bad.status, good.status) == ("FAILED", "FINISHED")
    assert bad.tags["failure"] == "diverged"
    assert "the loss is nan at step" in bad.tags["failure_message"]
    assert "Diverged" in failed.artifact(bad, "traceback.txt").read_text()
    assert "score" not in bad.metrics


def test_the_terminal_shows_a_failure_in_line_and_table(failed: Ran) -> None:
    assert "✗ TensLoRA att" in failed.ended.out
    assert "diverged: the loss is nan at step" in failed.ended.out
    assert "0/1 (diverged)" in failed.ended.out
    assert "1 trial(s) failed; they are in no mean. `--retry-failed` runs them again." in failed.ended.out


def test_a_failure_is_retried_only_on_request_and_nothing_else_with_it(failed: Ran, call: Call) -> None:
    again = call("run", failed.suite, "--store", failed.uri)
    assert (again.code, len(failed.store.records())) == (1, 2)
    retried = call("run", failed.suite, "--store", failed.uri, "--retry-failed")
    assert "2 trials, 1 to run" in retried.out
    assert retried.code == 1
    methods = Counter(record.tags["method"] for record in failed.store.records())
    assert methods == {"TensLoRA att [lr=1e+30]": 2, "LoRA": 1}


def run_inline(store: Store, made: Plan, trials: Any = None) -> list[Event]:
    """Runs the trials, failures again."""
    events: list[Event] = []
    again = failures(store)
    with session(store) as at_work, Inline("cpu") as place:
        execute(made, list(trials or made.trials), at_work, place, events.append, again=again)
    return events


def executed(store: Store, made: Plan, trials: Any = None) -> list[Event]:
    return [event for event in run_inline(store, made, trials) if event.kind in ("finished", "failed")]


SHORT = {"batch_size": 16, "steps": 1}


@pytest.fixture
def store(tmp_path: Path, new_store: NewStore) -> Store:
    return Store.create(new_store(tmp_path), "toy")


def allocate(*_: Any) -> Any:
    return torch.empty(1 << 50)


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: Any) -> Any:
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (allocate, "out of memory"),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), "out of memory"),
        (raising(MemoryError()), "out of memory"),
        (raising(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")), "out of memory"),
        (raising(ValueError("a [bug]")), "error"),
    ],
)
def test_a_failure_is_named_and_the_next_trial_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch, broken: Any, reason: str
) -> None:
    made = plan(methods=["lora", "head_only"], training=SHORT)
    real = bench.execution.perform.run_trial

    def run_trial(trial: Any, *rest: Any) -> Any:
        return broken() if trial.method["method"] == "lora" else real(trial, *rest)

    monkeypatch.setattr(bench.execution.perform, "run_trial", run_trial)
    events = executed(store, made)
    assert [event.kind for event in events] == ["failed", "finished"]
    assert events[0].ending is not None
    assert events[0].ending.failure.startswith(reason)
    bad, good = store.records()
    assert (bad.status, bad.tags["failure"], good.status) == ("FAILED", reason, "FINISHED")
    if reason == "error":
        assert bad.tags["failure_message"] == "ValueError: a [bug]"


def test_a_pruned_trial_is_told_stored_and_does_not_run_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["lora"], training=SHORT)
    monkeypatch.setattr(bench.execution.perform, "run_trial", raising(Pruned()))
    assert [event.kind for event in run_inline(store, made)] == ["started", "pruned"]
    assert [record.status for record in store.records()] == ["PRUNED"]
    assert pending(made, store) == []
    assert pending(made, store, retry_failed=True) == []


def test_finished_is_written_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("log_batch", "log_artifacts", "log_text", "set_terminated"):
        real = getattr(MlflowClient, name)

        def noted(
            self: MlflowClient, run_id: str, *rest: Any, name: str = name, real: Any = real, **more: Any
        ) -> Any:
            calls.append(f"{name} {rest[0]}" if name == "set_terminated" else name)
            return real(self, run_id, *rest, **more)

        monkeypatch.setattr(MlflowClient, name, noted)
    executed(store, plan(methods=["head_only"], training=SHORT))
    # The last call closes the suite's run.
    assert calls[-2:] == ["set_terminated FINISHED"] * 2
    assert calls[-3] == "log_artifacts"


def test_a_store_that_fills_up_ends_the_run_and_its_record_is_sent_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["lora", "head_only"], training=SHORT)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bench.execution.driver, "FILE_PATIENCE", 0)
        patch.setattr(MlflowClient, "log_artifacts", full)
        with pytest.raises(StoreError, match=r"No space left on device.*1 record\(s\) wait in .*outbox"):
            executed(store, made)
    assert [record.status for record in store.records()] == ["RUNNING"]
    again = Store.existing(store.uri, "toy")
    with session(again) as at_work:
        assert at_work.sent == 1
    (record,) = store.records()
    assert record.status == "FINISHED"
    assert {file.path for file in store.client.list_artifacts(record.run_id)} == {
        "adapter.safetensors",
        "config.json",
        "predictions.parquet",
    }
    assert pending(made, store) == [made.trials[1]]
    assert not list(store.outbox.glob("*/*"))


def test_a_store_that_is_away_for_a_while_gets_all_that_was_reported_and_nothing_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["lora", "head_only"], training={"batch_size": 16, "steps": 60})
    real, calls = MlflowClient.log_batch, []

    def away(self: MlflowClient, run_id: str, **more: Any) -> Any:
        calls.append(more)
        if 2 < len(calls) < 5:
            raise MlflowException("the server is away")
        return real(self, run_id, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", away)
    assert [event.kind for event in executed(store, made)] == ["finished", "finished"]
    for record in store.records():
        assert record.status == "FINISHED"
        losses = store.client.get_metric_history(record.run_id, "train/loss")
        assert sorted(metric.step for metric in losses) == list(range(1, 61))


def test_a_run_that_somebody_deleted_is_refused_and_its_record_put_aside(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(methods=["head_only"], training=SHORT)
    real = TrialRun.end

    def deleted(self: TrialRun, ending: Any) -> None:
        store.client.delete_run(self.run_id)
        real(self, ending)

    with monkeypatch.context() as patch:
        patch.setattr(TrialRun, "end", deleted)
        with pytest.raises(StoreRefusedError, match="must be in the 'active' state"):
            executed(store, made)
    with pytest.warns(UserWarning, match="the record is kept at .*refused"), session(store) as at_work:
        assert at_work.sent == 0
    assert pending(made, store) == list(made.trials)
    with session(store):
        pass


@pytest.mark.parametrize("content", ["", "[1", '{"run_id": "1", "of": "a later version"}', "[]", None])
def test_a_record_that_cannot_be_read_is_put_aside_and_the_others_are_sent(
    store: Store, content: str | None
) -> None:
    made = plan(methods=["head_only"], training=SHORT)
    run = begin_trial(store, made.trials[0], list(made.rows), "accuracy", "none", {})
    letter = Letter(store.experiment.experiment_id, run.run_id, made.trials[0].id, status="FAILED", ended=1)
    left = store.outbox / "gone"
    for name, text in (("0", content), (run.run_id, json.dumps(asdict(letter)))):
        (left / name / "files").mkdir(parents=True)
        if text is not None:
            (left / name / "letter.json").write_text(text)
    left.with_suffix(".lock").touch()
    with (
        pytest.warns(UserWarning, match=r"0/letter.json cannot be read.*; the record is kept at .*refused/0"),
        session(store) as at_work,
    ):
        assert at_work.sent == 1
    assert [record.status for record in store.records()] == ["FAILED"]
    with warnings.catch_warnings(), session(store) as at_work:
        warnings.simplefilter("error", UserWarning)
        assert at_work.sent == 0


@pytest.mark.parametrize(
    ("where", "what"),
    [(bench.execution.perform, "run_trial"), (TrialRun, "start"), (TrialRun, "end")],
    ids=["in the trial", "before it", "after it"],
)
def test_an_interrupt_closes_the_running_trial_and_the_suite_and_goes_up(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: Any, what: str
) -> None:
    made = plan(methods=["lora", "head_only"], training=SHORT)
    monkeypatch.setattr(where, what, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        executed(store, made)
    assert [record.status for record in store.records()] == ["KILLED"]
    assert {record.status for record in store.records(Kind.SUITE)} == {"KILLED"}
    assert len(pending(made, store)) == 2


def test_a_killed_retry_is_retried_by_the_same_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(methods=["lora"], training=SHORT)
    for error in (ValueError(), KeyboardInterrupt()):
        with monkeypatch.context() as patch:
            patch.setattr(bench.execution.perform, "run_trial", raising(error))
            if isinstance(error, KeyboardInterrupt):
                with pytest.raises(KeyboardInterrupt):
                    executed(store, made)
            else:
                executed(store, made)
    assert [record.status for record in store.records()] == ["FAILED", "KILLED"]
    assert pending(made, store) == []
    assert pending(made, store, retry_failed=True) == list(made.trials)
    executed(store, made)
    assert pending(made, store, retry_failed=True) == []


def test_a_trial_that_two_starts_finished_counts_once(store: Store) -> None:
    made = plan(methods=["head_only"], training=SHORT)
    executed(store, made)
    # One that finished while this driver made its plan does not run again.
    assert [event.kind for event in run_inline(store, made)] == ["elsewhere"]
    late = begin_trial(store, made.trials[0], list(made.rows), "accuracy", "none", {})
    late.end(Ending("finished", {"score": 0.5}))
    first, second = store.records()
    assert first.trial_id == second.trial_id
    assert (first.status, second.status) == ("FINISHED", "DUPLICATE")
    assert latest(store.records())[first.trial_id].run_id == first.run_id


# --- killed and resumed, with real processes ---


def begin(ran: Ran, through: int) -> subprocess.Popen[str]:
    return start(ran.folder, "run", ran.suite, "--store", ran.uri, through=through)


def count(ran: Ran) -> Counter[str]:
    return Counter(record.status for record in ran.store.records())


def stop(ran: Ran, how: signal.Signals, through: int) -> tuple[int, str, Counter[str]]:
    """Starts the suite, signals it while a trial runs after so many; its end and what it left."""
    process = begin(ran, through)
    try:
        await_held(process, ran.folder)
        process.send_signal(how)
        out = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    return process.returncode, out, count(ran)


@dataclass
class Resumed:
    """A suite whose start was killed, interrupted and terminated before it was let through."""

    ran: Ran
    second: Any
    ends: dict[str, tuple[int, str, Counter[str]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, call: Call) -> Resumed:
    folder = tmp_path_factory.mktemp("resumed")
    changes: dict[str, Any] = {"methods": METHODS, "seeds": [0, 1]}
    ran = Ran(folder, write(folder, **changes), new_store(folder), plan(**changes), None)
    history = Resumed(ran, None)
    history.ends["SIGKILL"] = stop(ran, signal.SIGKILL, 1)
    history.ends["SIGINT"] = stop(ran, signal.SIGINT, 0)
    history.ends["SIGTERM"] = stop(ran, signal.SIGTERM, 0)

    def let_go() -> None:
        """When all is done but the trial that the first holds, for which the second waits."""
        deadline = time.monotonic() + 120
        while count(ran)["FINISHED"] < len(ran.plan.trials) - 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        (folder / "go").touch()

    last = begin(ran, 0)
    try:
        await_held(last, folder)
        with ThreadPoolExecutor() as beside:
            beside.submit(let_go)
            history.second = call("run", ran.suite, "--store", ran.uri)
        out = last.communicate(timeout=120)[0]
    finally:
        last.kill()
    history.ends["last"] = last.returncode, out, count(ran)
    return history


@pytest.mark.processes
def test_a_killed_process_leaves_its_trial_running_and_the_next_start_closes_it(resumed: Resumed) -> None:
    code, _, left = resumed.ends["SIGKILL"]
    assert code == -signal.SIGKILL
    assert left["RUNNING"] == 1
    _, out, left = resumed.ends["SIGINT"]
    # The trial's run and the suite's.
    assert "Closed 2 unfinished run(s) of a process that died" in out
    assert left["RUNNING"] == 0


@pytest.mark.processes
@pytest.mark.parametrize(("how", "killed"), [("SIGINT", 2), ("SIGTERM", 3)])
def test_an_interrupt_closes_the_running_trial_and_exits_130(resumed: Resumed, how: str, killed: int) -> None:
    code, out, left = resumed.ends[how]
    assert code == 130
    assert left["KILLED"] == killed
    assert left["RUNNING"] == 0
    assert "stopped; start the same command again to go on" in out
    assert "Traceback" not in out


@pytest.mark.processes
def test_a_second_start_at_once_shares_the_work_and_waits_for_the_rest(resumed: Resumed) -> None:
    assert resumed.second.code == 0, resumed.second.err
    assert "settled by another driver" in resumed.second.out
    assert resumed.second.out.count("✓") == 4


@pytest.mark.processes
def test_in_the_end_every_trial_has_finished_exactly_once(resumed: Resumed) -> None:
    code, out, _ = resumed.ends["last"]
    assert code == 0, out
    records = resumed.ran.store.records()
    done = Counter(record.trial_id for record in records if record.status == "FINISHED")
    assert done == {trial.id: 1 for trial in resumed.ran.plan.trials}
    assert Counter(record.status for record in records) == {"FINISHED": 6, "KILLED": 3}
    assert pending(resumed.ran.plan, resumed.ran.store) == []


@pytest.mark.processes
def test_a_resumed_suite_has_the_results_of_one_that_was_never_stopped(
    resumed: Resumed, tmp_path: Path, new_store: NewStore
) -> None:
    made, after = resumed.ran.plan, latest(resumed.ran.store.records())
    straight = Store.create(new_store(tmp_path), "toy")
    trial = made.trials[-1]
    executed(straight, made, [trial])
    (alone,) = straight.records()
    for key in ("score", "score_loss", "selected/validation"):
        assert alone.metrics[key] == after[trial.id].metrics[key]
