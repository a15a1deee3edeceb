"""Tests the GPU command: partial results of an interrupted run, its steps and its tables."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tensorbench.checks.conformance.subject import Subject, judge, scatter
from tensorbench.execution.perform import Event
from tensorbench.methods import METHODS
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.words import Status
from tensorbench.tools import perf
from tools.gpu import correctness, costs, gaps, harness, memory, runner, steps, tables, trials, wheels
from tools.gpu.runner import Row, Runner, Step

DOCS = Path(__file__).parents[2] / "docs"


def quick(number: int) -> Iterator[Row]:
    yield from ({"table": tables.MACHINE, "what": str(index), "value": "here"} for index in range(number))


def endless() -> Iterator[Row]:
    yield from quick(1)
    signal.pause()


def broken() -> Iterator[Row]:
    yield from quick(1)
    raise ValueError("a kernel")


def killed() -> Iterator[Row]:
    yield from quick(1)
    os.kill(os.getpid(), signal.SIGKILL)


def forbidden() -> Iterator[Row]:
    importlib.import_module("optuna")
    yield {}


def imports() -> Iterator[Row]:
    """Imports the modules of the steps again, in a process in which MLflow cannot be imported."""
    ours = ("tensorbench", *wheels.UNNEEDED)
    modules = [
        f"tools.gpu.{name}"
        for name in ("machine", "correctness", "costs", "gaps", "harness", "loops", "memory", "trials")
    ]
    for name in list(sys.modules):
        if name.partition(".")[0] in ours or name in modules:
            del sys.modules[name]
    wheels.refuse()
    for name in modules:
        importlib.import_module(name)
    registry = importlib.import_module("tensorbench.methods").METHODS
    yield {"table": "imports", "methods": sum(1 for _ in registry.available())}


def step(function: Callable[..., Iterator[Row]], **options: Any) -> Step:
    return Step(function.__name__, f"{__name__}:{function.__name__}", 600, options)


def run(folder: Path, *steps: Step, **options: Any) -> tuple[bool, list[Row], dict[str, Row]]:
    """Runs the steps. Returns whether all passed, the rows of results, and each step's end by name."""
    made = Runner(folder, 3600, start="fork", tell=lambda _: None, **options)
    passed = made.run(steps)
    rows = runner.read(folder)
    ended = {row["step"]: row for row in rows if row["table"] == tables.STEPS}
    return passed, [row for row in rows if row["table"] != tables.STEPS], ended


def test_a_step_that_fails_or_dies_keeps_its_rows_and_the_next_one_goes_on(tmp_path: Path) -> None:
    passed, rows, ended = run(tmp_path, step(broken), step(killed), step(forbidden), step(quick, number=2))
    assert not passed
    assert [row["step"] for row in rows] == ["broken", "killed", "quick", "quick"]
    assert [row["status"] for row in ended.values()] == ["failed", "died", "failed", "done"]
    assert "ValueError: a kernel" in ended["broken"]["message"]
    assert "SIGKILL" in ended["killed"]["message"]
    assert "optuna" in ended["forbidden"]["message"]
    assert "| broken | failed |" in (tmp_path / runner.PAGE).read_text()


def test_a_step_over_its_time_is_ended_and_what_no_time_is_left_for_is_not_run(tmp_path: Path) -> None:
    def clock() -> float:
        """A clock that stands still until the first row is written, then jumps past all time limits."""
        file = tmp_path / runner.RESULTS
        return 4000.0 if file.exists() and file.read_text() else 0.0

    passed, rows, ended = run(tmp_path, step(endless), step(quick, number=1), clock=clock)
    assert not passed
    assert [row["step"] for row in rows] == ["endless"]
    assert {name: row["status"] for name, row in ended.items()} == {
        "endless": "over time",
        "quick": "not run",
    }


def test_a_process_that_dies_between_two_steps_costs_none(tmp_path: Path) -> None:
    def kill(_: str) -> None:
        assert made._worker is not None
        process, _link = made._worker
        process.kill()
        process.join()

    made = Runner(tmp_path, 3600, start="fork", tell=kill)
    assert made.run([step(quick, number=1), step(quick, number=2)])
    assert sum(row["table"] == tables.MACHINE for row in runner.read(tmp_path)) == 3


def test_a_run_that_is_cut_has_whole_rows(tmp_path: Path) -> None:
    run(tmp_path, step(quick, number=2))
    file = tmp_path / runner.RESULTS
    file.write_text(file.read_text() + '{"table": "mach')
    assert len(runner.read(tmp_path)) == 3


def test_the_steps_need_neither_store_nor_search(tmp_path: Path) -> None:
    passed, rows, ended = run(tmp_path, step(imports))
    assert passed, ended["imports"]["message"]
    assert rows[0]["methods"] >= len(list(METHODS))


def test_a_wheel_that_lacks_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wheels.missing()
    monkeypatch.setitem(sys.modules, "tltorch", None)
    (lacking,) = wheels.missing()
    assert lacking.startswith("tensorly-torch (")
    assert lacking in wheels.instructions([lacking])


@pytest.mark.parametrize("schedule", [steps.on_cpu(), steps.on_card("cuda")], ids=["cpu", "card"])
def test_every_step_names_a_function_that_takes_its_options(schedule: list[Step]) -> None:
    names = [timed_step.name for timed_step in schedule]
    assert len(names) == len(set(names))
    for timed_step in schedule:
        module, _, name = timed_step.run.partition(":")
        getattr(importlib.import_module(module), name)(**timed_step.options).close()


def test_the_first_steps_on_a_gpu_fit_into_the_time() -> None:
    schedule = steps.on_card("cuda")
    assert sum(timed_step.seconds for timed_step in schedule) + 30 <= steps.MINUTES * 60
    longer = steps.on_card("cuda", 30)
    assert [timed_step.name for timed_step in longer][: len(schedule)] == [step.name for step in schedule]
    assert sum(timed_step.seconds for timed_step in longer[: len(schedule)]) <= 30 * 60
    assert "compiled" in longer[-1].name


def test_the_harness_s_checks_can_fail_and_say_what_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row["status"] for row in harness.broken("cpu")] == ["not applicable"] * 2
    monkeypatch.setattr(harness, "OTHERS", {"AdaLoRA": harness.OTHERS["AdaLoRA"]})
    assert not tables.failures(list(harness.others("cpu", 2)))
    first, second = (
        Record(status=Status.FINISHED, metrics={Measure.SCORE_LOSS: loss}) for loss in (0.5, 0.52)
    )
    assert "0.520000" in judge("", lambda: harness._alike(first, second)).message
    assert judge("", lambda: harness._alike(second, Record(status=Status.FAILED))).status == "failed"


def test_shorter_texts_are_padded_to_the_longest() -> None:
    tokens = torch.arange(40).reshape(4, 10)
    short = costs._shortened({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, 8)
    assert short["input_ids"].shape == (4, 8)
    assert short["attention_mask"].sum(1).tolist() == [2, 4, 6, 8]


def test_a_device_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (lora,) = correctness.listed(["lora"])
    monkeypatch.setattr(correctness, "TRAINED_STEPS", 2)
    checks = [
        partial(passed_through, "cpu", torch.float64, lora)
        for passed_through in (correctness.one_pass, correctness.steps)
    ]
    assert [judge("", check).status for check in checks] == ["passed", "passed"]
    honest, seen = Subject.attach, []

    def off(*arguments: Any, **named: Any) -> Any:
        adapter = honest(*arguments, **named)
        seen.append(adapter)
        scatter(adapter, 1e-3 * (len(seen) % 2))
        return adapter

    monkeypatch.setattr(Subject, "attach", off)
    assert ["differs by" in judge("", check).message for check in checks] == [True, True]
    assert "deterministic trainings" in judge("", lambda: correctness.twice("cpu", lora)).message


def test_a_contender_that_fails_is_a_row_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = perf._round

    def measured(contender: perf.Contender, *rest: Any) -> Any:
        if contender.label == "head only":
            raise torch.OutOfMemoryError("nothing left")
        return honest(contender, *rest)

    monkeypatch.setattr(costs.perf, "_round", measured)
    options: dict[str, Any] = {"batch": 1, "rounds": 2, "bf16": False, "names": ["head_only"]}
    rows = list(costs.speed("cpu", "tiny-random-llama", **options))
    assert [(row["method"], row.get("rounds"), "failed" in row) for row in rows] == [
        ("floor", 1, False),
        ("LoRA", 1, False),
        ("head only", None, True),
        ("floor", 2, False),
        ("LoRA", 2, False),
    ]
    assert rows[0]["ratio_to_own_floor"] == 1
    page = tables.page(rows)
    assert page.count("| tiny-random-llama | fp32 | eager | 1 | LoRA |") == 1
    assert "OutOfMemoryError: nothing left" in page
    assert [row["method"] for row in tables.failures(rows)] == ["head only"]


def test_running_out_of_memory_is_reported_and_gaps_need_a_gpu() -> None:
    rows = list(memory.runs_out("cpu", "tiny-random-vit", 32))
    assert not tables.failures(rows)
    assert {"simulated: no card", "failed: out of memory", "equal"} <= {row["came"] for row in rows}
    (row,) = gaps.gaps("cpu", "tiny-random-vit", 2, ["lora"])
    assert "no card" in row["synchronisations a step"]


def test_so_many_workers_are_busy_at_once() -> None:
    class Workers:
        running: list[Any] = []
        most = 0

        def submit(self, trial: Any) -> None:
            self.running.append(trial)
            self.most = max(self.most, len(self.running))

        def step(self, report: Callable[[Event], None]) -> None:
            trial = self.running.pop()
            report(
                Event(
                    trial, "finished", ending=Record(status=Status.FAILED if trial == 3 else Status.FINISHED)
                )
            )

    workers: Any = Workers()
    assert trials.run(range(5), workers, 2) == 1  # type: ignore[arg-type]
    assert workers.most == 2
    assert not workers.running


def test_tables_show_what_was_found_and_escape_it() -> None:
    row = {"table": tables.CORRECT, "allowed": None}
    rows: list[Row] = [
        {"table": tables.MACHINE, "what": "device", "value": "a|b <i>"},
        row | {"method": "LoRA", "check": "merge", "status": "failed", "message": "differs\nby"},
        row
        | {"method": "LoRA", "check": "one pass", "status": "passed", "allowed": 1e-4, "message": "2e-06"},
        row | {"method": "head only", "check": "merge", "status": "not applicable", "message": "no adapter"},
        {
            "table": tables.TRIALS,
            "backbone": "b",
            "slots": 1,
            "trials": 2,
            "seconds": 1.0,
            "trials an hour": 7200,
        },
    ]
    page = tables.page(rows)
    assert "| device | a\\|b &lt;i> |" in page
    assert "| method | merge | one pass (≤ 1e-04) |" in page
    assert "| LoRA | **failed** | 2e-06 |\n| head only | n/a | – |" in page
    assert "- LoRA, merge: differs\n" in page
    assert "| b | 1 | 2 | 1.0 | 7,200 |" in page
    assert len(tables.failures(rows)) == 1


def test_the_page_takes_only_tables_measured_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    script = importlib.import_module("gpu_tables")
    properties = {"device": "NVIDIA H100", "torch": "2.13.0", "compute capability": "9.0"}
    rows = [{"table": "machine", "what": what, "value": value} for what, value in properties.items()]
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["gpu_tables.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="has no results"):
        script.main()
    (tmp_path / runner.PAGE).write_text(tables.page(rows))
    for shown in (rows[:2], rows):
        (tmp_path / runner.RESULTS).write_text("".join(json.dumps(row) + "\n" for row in shown))
        if shown is rows:
            script.main()
        else:
            with pytest.raises(SystemExit, match="NVIDIA H100"):
                script.main()
            assert "old" in page.read_text()
    assert page.read_text().startswith(
        f"before\n{script.BEGIN}\n\nNVIDIA H100, torch 2.13.0, random weights."
    )
    assert "| compute capability | 9.0 |" in page.read_text()
    assert "old" not in page.read_text()
    # The real page has the mark where the script inserts its tables.
    assert (DOCS / "explanations" / "performance.md").read_text(encoding="utf-8").count(script.BEGIN) == 1
