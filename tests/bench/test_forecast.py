"""Tests the costs of a suite that `tensorbench plan` forecasts, and the remaining time that `run` shows."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import tensorbench.run.forecast
from tensorbench.cli.tables import print_tables
from tensorbench.execution.estimate import step_count
from tensorbench.execution.perform import Report
from tensorbench.execution.place import Place
from tensorbench.machine.table import duration
from tensorbench.plan.pairs import Part
from tensorbench.plan.rows import Plan
from tensorbench.records.stored_plan import Forecast, Share
from tensorbench.records.words import PROVENANCE
from tensorbench.run.forecast import make_forecast
from tensorbench.run.suites import Audience, run_suite
from tensorbench.store.store import Store
from tensorbench.training.measure import provenance

from ..fixtures import Call, NewStore
from ..stored import Result
from ..stored import write as stored
from .toy_suites import DIGITS, TEXT, plan, suite, write

#: The seconds per step of the trials that `tests.stored` makes up. They take an hour for two steps.
SECONDS_A_STEP = 1800.0

TENSOR = {"method": "tenslora", "variant": "qkv_depth"}
SEARCHED: dict[str, Any] = {
    "methods": [TENSOR, "head_only"],
    "seeds": [0, 1, 2],
    "search": {"trials": 5, "seeds": [7, 8]},
}


class Heard(Audience):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Stopping(Heard):
    def watch(self, plan: Plan, count: int, slots: int) -> AbstractContextManager[Report]:
        raise KeyboardInterrupt


def test_a_plan_shows_the_gpus_their_memory_and_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70_000 * 2**20, 81_000 * 2**20))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(tensorbench.run.forecast, "cards", lambda: ["0", "1"])
    told = tensorbench.run.forecast._gpus("cuda")
    assert told.startswith("2 GPU(s), H100, with 11,000 of 81,000 MiB in use")
    assert tensorbench.run.forecast._gpus("cuda:1").startswith("1 GPU(s)")


def nowhere(folder: Path) -> str:
    return f"sqlite:///{folder / 'none.db'}"


def counts(forecast_: Forecast) -> dict[str, tuple[int, int, int]]:
    return {part.command: (part.points, part.trials, part.open) for part in forecast_.parts}


def ended(only: Callable[[Any], bool] = lambda _: True) -> Callable[..., Result | None]:
    here = {f"{PROVENANCE}cpu": provenance("cpu")["cpu"]}
    return lambda trial, row: Result(score=0.5, tags=here) if only(trial) else None


def test_every_part_of_a_suite_is_counted(tmp_path: Path) -> None:
    store = nowhere(tmp_path)
    assert counts(make_forecast(plan(seeds=[0, 1]), store, "cpu")) == {"run": (1, 2, 2)}
    assert counts(make_forecast(plan(**SEARCHED), store, "cpu")) == {
        "run": (2, 6, 6),
        "search": (5, 10, 10),
    }
    several = SEARCHED | {"methods": [TENSOR, {**TENSOR, "variant": "att_qkv_depth"}, "head_only"]}
    assert counts(make_forecast(plan(**several), store, "cpu"))["search"] == (10, 20, 20)
    # An allocation runs no trials of its own.
    allocated = plan(methods=[TENSOR, "head_only"], allocation={})
    assert counts(make_forecast(allocated, store, "cpu")) == {"run": (2, 2, 2)}


def test_a_part_that_was_selected_is_counted_alone(tmp_path: Path) -> None:
    part = plan(methods=["lora", "head_only"], seeds=[0, 1]).select(Part(methods=["lora"], seeds=[1]))
    assert counts(make_forecast(part, nowhere(tmp_path), "cpu")) == {"run": (1, 1, 1)}


def test_without_stored_trials_the_time_is_in_proportion_to_the_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorbench.execution.estimate.seconds_per_operation", lambda device: 1e-9)
    tested, once, twice = (
        make_forecast(
            plan(training={"batch_size": 16, "epochs": epochs}, tasks=[{**DIGITS, "test_size": size}]),
            nowhere(tmp_path),
            "cpu",
        )
        for epochs, size in ((2, 80), (2, 40), (4, 80))
    )
    assert once.based_on == "operations"
    # Twice as many epochs and test examples take twice as long, and test examples a part of it.
    assert twice.parts[0].seconds == pytest.approx(2 * once.parts[0].seconds)
    assert once.parts[0].seconds < tested.parts[0].seconds < twice.parts[0].seconds
    assert once.parts[0].seconds > 0


def test_more_than_a_day_is_told_sizes_that_take_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_store: NewStore
) -> None:
    monkeypatch.setattr("tensorbench.execution.estimate.seconds_per_operation", lambda device: 1e-4)
    monkeypatch.setattr("tensorbench.execution.estimate.FEW_OPERATIONS", 0)
    # Training takes days; the 40 test examples of each trial, minutes.
    task, training = {"task": "digits", "test_size": 40}, {"batch_size": 16, "epochs": 40}

    def said(tasks: list[dict[str, Any]], training: dict[str, Any], seeds: int = 1) -> str:
        made = plan(tasks=tasks, training=training, seeds=list(range(seeds)))
        return " ".join(make_forecast(made, nowhere(tmp_path)).advice)

    # Nothing is said of bf16, which takes less time.
    monkeypatch.setattr("tensorbench.run.forecast.computes_bf16", lambda: False)

    advice = said([task], training)
    sizes = {name: int(value) for name, value in re.findall(r"`(\w+): (\d+)`", advice)}
    assert set(sizes) == {"train_size", "validation_size", "epochs"}
    assert re.search(r"takes \d+ days.* it takes \d+ (h|min)\.$", advice), advice
    # With these sizes it takes as long as was said, and nothing more is said.
    sized = {**task, "train_size": sizes["train_size"], "validation_size": sizes["validation_size"]}
    shorter = plan(tasks=[sized], training={"batch_size": 16, "epochs": sizes["epochs"]})
    forecast_ = make_forecast(shorter, nowhere(tmp_path))
    assert advice.endswith(f"it takes {duration(forecast_.parts[0].seconds)}.")
    assert "days" not in " ".join(forecast_.advice)
    # A run says it as well, before its first trial.
    heard, long = Stopping(), suite(tasks=[task], training=training)
    with pytest.raises(KeyboardInterrupt):
        run_suite(long, store=new_store(tmp_path), place=Place(device="cpu"), audience=heard)
    assert heard.notes == [advice]
    # Sizes that are small already do not help.
    assert "Fewer methods" in said([DIGITS], {"batch_size": 16, "epochs": 1}, seeds=2000)


def test_texts_at_hand_are_estimated_by_their_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorbench.execution.estimate.seconds_per_operation", lambda device: 1e-9)

    def seconds(words: int, of_first: int | None = None) -> float:
        counts = [of_first or words, *[words] * 99]
        rows = "".join(f"{'word ' * count}{number},{number % 2}\n" for number, count in enumerate(counts))
        (tmp_path / f"{words}.csv").write_text(f"text,label\n{rows}")
        data = {"name": "own", "csv": str(tmp_path / f"{words}.csv"), "text": "text", "label": "label"}
        made = plan(**TEXT | {"tasks": [{**data, "max_tokens": 64}]})
        return make_forecast(made, nowhere(tmp_path)).parts[0].seconds

    assert seconds(9) < seconds(29) < seconds(100) == seconds(200)
    # A long text among short ones is cut as well.
    assert seconds(9) < seconds(9, of_first=20_000) < seconds(11)


@pytest.mark.parametrize(
    ("native", "precision", "noted"), [(True, "fp32", True), (True, "bf16", False), (False, "fp32", False)]
)
def test_a_note_says_where_bf16_would_be_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, precision: str, noted: bool
) -> None:
    monkeypatch.setattr("tensorbench.run.forecast.computes_bf16", lambda: native)
    made = plan(training={"batch_size": 16, "epochs": 2, "precision": precision})
    assert bool(make_forecast(made, nowhere(tmp_path), "cpu").advice) == noted


def test_stored_trials_tell_time_and_what_is_left(tmp_path: Path, new_store: NewStore) -> None:
    made, uri = plan(seeds=[0, 1, 2]), new_store(tmp_path)
    stored(uri, made, ended(lambda trial: trial.seed == 0))
    estimate = make_forecast(made, uri, "cpu")
    assert estimate.based_on == "stored trials"
    assert counts(estimate) == {"run": (1, 3, 2)}
    left = [trial for trial in made.trials if trial.seed]
    assert estimate.parts[0].seconds == pytest.approx(SECONDS_A_STEP * sum(map(step_count, left)))
    stored(uri, made, ended(lambda trial: trial.seed != 0))
    assert make_forecast(made, uri, "cpu").parts[0].seconds == 0


def test_a_store_of_other_suites_or_a_broken_one_is_no_obstacle(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    Store.create(uri, "other").begin_suite(plan(name="other"), "driver")
    assert make_forecast(plan(), uri, "cpu").notes == ()
    (tmp_path / "broken.db").write_text("no database at all")
    estimate = make_forecast(plan(), f"sqlite:///{tmp_path / 'broken.db'}", "cpu")
    assert counts(estimate) == {"run": (1, 1, 1)}
    assert "broken.db" in estimate.notes[0]


def test_the_command_prints_the_forecast_and_has_it_in_its_json(call: Call, tmp_path: Path) -> None:
    file, store = write(tmp_path, **SEARCHED), nowhere(tmp_path)
    printed = call("plan", file, "--store", store)
    assert (printed.code, printed.err) == (0, "")
    shown = " ".join(printed.out.split())
    assert "tensorbench search 5 10 10 " in shown
    assert "tensorbench run 2 6 6 " in shown
    assert "Time is of one worker" in shown
    read = json.loads(call("plan", file, "--store", store, "--json").out)
    assert read["suite"] == "toy"
    parts = [part.command for part in Forecast.model_validate(read["forecast"]).parts]
    assert parts == ["run", "search"]


@pytest.mark.parametrize(
    ("seconds", "shown_time"),
    [(0, "0 s"), (100, "100 s"), (150, "2 min"), (7300, "2 h"), (200_000, "2 days")],
)
def test_times_have_a_suitable_unit(seconds: float, shown_time: str) -> None:
    part = Share(part="final", command="run", points=1, trials=1, open=1, seconds=seconds)
    estimate = Forecast(parts=(part,), based_on="operations")
    assert [line["time"] for line in estimate.overview().lines] == [shown_time]


def test_run_says_what_it_leaves_out_and_which_command_does_it(
    call: Call, tmp_path: Path, new_store: NewStore
) -> None:
    changes = {"training": {"batch_size": 16, "steps": 1}, "methods": [TENSOR]}
    file = write(tmp_path, **changes, allocation={})
    done = call("run", file, "--store", new_store(tmp_path))
    assert done.code == 0, done.err
    errors = " ".join(done.err.split())
    assert "`tensorbench search`" in errors
    # Called from Python with every trial stored.
    heard = Heard()
    both = suite(**changes, allocation={})
    run_suite(both, store=f"sqlite:///{tmp_path / 'mlflow.db'}", place=Place(device="cpu"), audience=heard)
    assert heard.notes == [
        "'toy' also has an allocation, which this does not run: `tensorbench search` "
        "(`tensorbench.search_suite`) does."
    ]
    plain = suite(**changes)
    run_suite(plain, store=f"sqlite:///{tmp_path / 'mlflow.db'}", place=Place(device="cpu"), audience=heard)
    assert len(heard.notes) == 1
    assert len(Store.existing(f"sqlite:///{tmp_path / 'mlflow.db'}", "toy").records()) == 1


def test_a_notebook_shows_what_the_terminal_prints(tmp_path: Path) -> None:
    expected = make_forecast(plan(**SEARCHED), nowhere(tmp_path))
    out = io.StringIO()
    print_tables(expected.overview(), console=Console(file=out, width=400))
    printed = out.getvalue()
    texts = [cell for line in expected.overview().lines for cell in line.values()]
    assert len(texts) == 5 * len(expected.parts) == 10
    for text in (*texts, expected.basis):
        assert text in printed
        assert html.escape(text) in expected._repr_html_()
