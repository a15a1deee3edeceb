"""Tests the Python interface: a notebook can run and search suites and read results without the program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tensorbench
import tensorbench.run.suites
from tensorbench.execution.inline import Inline
from tensorbench.execution.perform import Event, Report
from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.run.search.chooser import Choices
from tensorbench.run.suites import Audience

from ..fixtures import NewStore
from ..messages import naming
from .toy_runs import SHORT
from .toy_suites import suite

CPU = tensorbench.Place(device="cpu")


class Heard(Audience):
    """Keeps a line of text for each call that it receives."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def opened(self, sent: int, closed: int) -> None:
        self.events.append(f"opened {sent} {closed}")

    def starting(self, plan: Plan, waiting: int, device: str, references: int) -> None:
        self.events.append(f"{waiting} of {len(plan.trials)} on {device}")

    @contextmanager
    def watch(self, plan: Plan, count: int, slots: int) -> Iterator[Report]:
        def hear(event: Event) -> None:
            if event.kind != "progress":
                self.events.append(event.kind)

        self.events.append(f"watching {count} on {slots}")
        yield hear

    def trying(self, title: str, trials: int, following: int) -> None:
        self.events.append(f"trying {trials}, then {following}")

    def chosen(self, choices: Choices) -> None:
        self.events.append(f"chosen {len(choices.lines)}")


@pytest.mark.processes
def test_tensorbench_is_imported_at_once_and_has_every_name_it_lists() -> None:
    slow = {"torch", "mlflow", "pandas"}
    program = f"import sys, tensorbench; print(tensorbench.__version__, *{slow} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tensorbench.__version__}\n"
    assert all(callable(getattr(tensorbench, name)) for name in tensorbench.__all__)
    assert {*dir(tensorbench)} == {*tensorbench.__all__, "__version__", "methods"}
    assert {*dir(tensorbench.methods)} == {*tensorbench.methods.__all__}
    with pytest.raises(AttributeError, match=naming("'tensorbench'", "'run_suit'")):
        tensorbench.run_suit  # noqa: B018


def test_python_arguments_of_the_wrong_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"methods: .*'lora'"):
        tensorbench.Part(methods="lora")
    with pytest.raises(UserError, match=naming("'auto'", "cpu or cuda")):
        tensorbench.make_plan(suite(), "auto")
    store = f"sqlite:///{tmp_path / 'none.db'}"
    with pytest.raises(UserError, match=naming("formats", "'csv'")):
        tensorbench.write_report("toy", out=tmp_path / "report", store=store, formats="csv")
    with pytest.raises(UserError, match="no store"):
        tensorbench.write_report("toy", out=str(tmp_path / "report"), store=store)


def test_a_suite_runs_is_heard_of_and_read(tmp_path: Path, new_store: NewStore) -> None:
    uri, first_audience = new_store(tmp_path), Heard()
    studies = suite(training=SHORT, seeds=[], tuning={"studies": 2, "points": 2})
    done = tensorbench.run_suite(studies, store=uri, place=CPU, audience=first_audience)
    started, ended = "started", "finished"
    assert first_audience.events == [
        "opened 0 0",
        "watching 4 on 1",
        "4 of 4 on cpu",
        *[started, ended] * 4,
    ]
    assert done.complete
    (row,) = done.plan.rows
    results = tensorbench.load_results("toy", store=uri)
    assert set(results.seeds["trial_id"]) == set(row.trials.values())
    assert results.cells["method"].tolist() == done.summary.results.cells["method"].tolist()

    second_audience = Heard()
    assert tensorbench.run_suite(studies, store=uri, place=CPU, audience=second_audience).complete
    assert second_audience.events == ["opened 0 0", "0 of 4 on cpu"]


def test_a_suite_is_searched_and_heard_of(tmp_path: Path, new_store: NewStore) -> None:
    uri, audience = new_store(tmp_path), Heard()
    made = suite(
        methods=[{"method": "tenslora", "variant": "qkv_depth"}], training=SHORT, search={"trials": 5}
    )
    out = tmp_path / "chosen.yaml"
    done = tensorbench.search_suite(made, store=uri, place=CPU, out=out, audience=audience)
    steps = [
        event
        for event in audience.events
        if event.partition(" ")[0] not in ("watching", "started", "finished")
    ]
    assert steps == [
        "opened 0 0",
        "trying 4, then 1",
        "trying 1, then 0",
        f"chosen {len(done.choices[0].lines)}",
    ]
    assert done.complete
    assert done.suites == (out,)
    (choice,) = done.choices[0].ranks
    assert len(choice.tried) == 5
    assert choice.name in repr(choice)


@pytest.mark.parametrize("start", [tensorbench.run_suite, tensorbench.search_suite])
def test_impossible_placements_are_errors_and_leave_no_worker(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., object]
) -> None:
    stopped: list[bool] = []

    class Stopped(Inline):
        def stop(self) -> None:
            stopped.append(True)

    monkeypatch.setattr(tensorbench.run.suites, "make_executor", lambda _: Stopped("cpu"))
    made = suite(search={"trials": 1}) if start is tensorbench.search_suite else suite()
    with pytest.raises(UserError, match=naming("'digit'", "'digits'")):
        start(made, part=tensorbench.Part(tasks=["digit"]))
    assert stopped == [True]
