"""The log of a run: a line of JSON for each thing that happens, beside what the terminal prints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.execution.perform import Event, Report
from bench.execution.watch import Silence
from bench.log import Log
from bench.plan.rows import Plan
from bench.run import Audience
from bench.wire.found import AllocationPoint, AllocationResult, Tried
from bench.wire.record import Progress, failed
from methods import UserError

from .toy_runs import SHORT
from .toy_suites import plan, suite, write

Call = Callable[..., Any]
NewStore = Callable[[Path], str]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_adds_its_lines_and_still_prints(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    training = {"lr": 1e30, "batch_size": 16, "steps": 3, "warmup": 0}
    made = write(tmp_path, methods=["head_only", {"method": "lora", "training": training}], training=SHORT)
    file, uri = tmp_path / "run.jsonl", new_store(tmp_path)
    file.write_text('{"event": "earlier"}\n')
    ended = call("run", made, "--store", uri, "--log", file)
    assert (ended.code, "diverged" in ended.out) == (1, True)
    told = [line for line in lines(file) if line["event"] != "progress"]
    kinds = [line["event"] for line in told]
    assert kinds == ["earlier", "opened", "phase", "started", "finished", "started", "failed"]
    assert (told[2]["suite"], told[2]["trials"], told[2]["waiting"]) == ("toy", 2, 2)
    (progress, *_) = [line for line in lines(file) if line["event"] == "progress"]
    assert (progress["step"], progress["steps"], progress["epoch"]) == (1, 1, 1)
    assert isinstance(progress["loss"], float)
    good, bad = told[4], told[6]
    assert (good["method"], good["task"], good["backbone"], good["seed"], good["failure"]) == (
        "head only",
        "digits",
        "tiny-random-vit",
        0,
        None,
    )
    assert good["metrics"]["score"] >= 0
    assert bad["failure"] == "diverged"
    assert bad["message"].startswith("the loss is")
    assert bad["trial"] != good["trial"]
    assert all(line["time"].endswith("+00:00") for line in told[1:])
    call("run", made, "--store", uri, "--log", file)
    assert [line["event"] for line in lines(file)][-2:] == ["opened", "phase"]


def test_a_search_is_logged_too(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    made = write(tmp_path, methods=["lora"], training=SHORT, search={"trials": 1})
    file = tmp_path / "search.jsonl"
    assert call("search", made, "--store", new_store(tmp_path), "--log", file).code == 0
    kinds = [line["event"] for line in lines(file) if line["event"] != "progress"]
    assert (kinds[:2], kinds[-1], kinds.count("finished")) == (["opened", "searching"], "searched", 2)


def test_a_point_of_several_sweeps_is_one_point(tmp_path: Path) -> None:
    def point(mode: str, rank: int, *ranks: int) -> AllocationPoint:
        return AllocationPoint(mode=mode, rank=rank, ranks=ranks, parameters=1, trials={})

    heuristic = Tried(ranks=(2, 2), parameters=1, trials={})
    found = AllocationResult(
        name="att",
        method="att",
        task="digits",
        backbone="tiny-random-vit",
        budget="isorank 2",
        asked=100,
        modes=("input", "layer"),
        importance={},
        points=(point("input", 2, 2, 2), point("layer", 2, 2, 2), point("layer", 1, 3, 1)),
        path=(Tried(ranks=(1, 1), parameters=1, trials={}), heuristic),
        heuristic=heuristic,
        best=None,
    )
    Log(tmp_path / "run.jsonl").allocated(found, {})
    assert [line["points"] for line in lines(tmp_path / "run.jsonl")] == [3]


def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    uri = new_store(tmp_path)
    for command in ("run", "search"):
        ended = call(command, tmp_path / "no suite", "--store", uri, "--log", tmp_path / "no folder" / "log")
        assert ended.code == 2
        assert "cannot write there: No such file or directory" in ended.err
    with pytest.raises(UserError, match="Is a directory"):
        Log(tmp_path)


def test_python_hears_beside_its_log_and_a_full_disk_stops_nothing(
    tmp_path: Path, new_store: NewStore
) -> None:
    class Hearing(Audience):
        heard: list[str] = []

        @contextmanager
        def watch(self, plan: Plan, count: int, slots: int) -> Iterator[Report]:
            yield lambda event: self.heard.append(event.kind)

    audience = Hearing()
    log, made = Log("/dev/full", audience), suite(training=SHORT)
    with pytest.warns(UserWarning, match="a line is missing: No space left on device"):
        done = bench.run_suite(made, store=new_store(tmp_path), place=bench.Place(device="cpu"), audience=log)
    assert done.complete
    assert (audience.heard[0], audience.heard[-1]) == ("started", "finished")


def test_what_no_json_can_hold_is_null_and_silence_and_failure_are_told(tmp_path: Path) -> None:
    made = plan()
    (trial,) = made.trials
    with Log(tmp_path / "log").watch(made, 1, 1) as hear:
        hear(Event(trial, "progress", "cpu/0", progress=Progress(1, 2, 1, [(1, math.nan)], math.inf, 0.5)))
        hear(Event(trial, "silent", "cpu/0", silence=Silence(30.04, answers=False)))
        hear(Event(trial, "failed", "cpu/0", ending=failed("error", "ValueError: 1\n2", "")))
    progress, silent, ending = lines(tmp_path / "log")
    assert (progress["loss"], progress["validation_metric"], progress["validation_loss"]) == (None, None, 0.5)
    assert (silent["worker"], silent["seconds"], silent["answers"]) == ("cpu/0", 30.0, False)
    assert (ending["failure"], ending["message"], ending["metrics"]) == ("error", "ValueError: 1\n2", {})
