"""Tests that the program answers fast and helpfully, and that its exit code tells success from failure."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import tensorbench
from tensorbench.backbones import BACKBONES
from tensorbench.cli.tables import VisibleConsole, echo_json, print_tables
from tensorbench.machine.table import Table
from tensorbench.methods import METHODS
from tensorbench.methods.tenslora import VARIANTS
from tensorbench.store.store import Store
from tensorbench.tasks import TASKS

from ..fixtures import Call
from ..messages import naming
from .programs import Program
from .toy_suites import DIGITS, MOVIES, TEXT, plan, write

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


@pytest.mark.processes
def test_a_closed_pipe_stops_nothing() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as nobody_reads:
        console = VisibleConsole(file=nobody_reads)
        console.print("one line\n" * 10_000)
        console.print("another")
    assert console.quiet


def test_methods_without_a_size_for_a_backbone_are_listed_without_counts(call: Call) -> None:
    ended = call("list", "methods", "--hidden", 1, "--heads", 1, "--layers", 1, "--json")
    assert ended.code == 0, ended.err
    (quanta,) = (row for row in json.loads(ended.out) if row["name"] == "quanta")
    assert quanta["isorank_4"] is None


def test_help_imports_nothing_that_takes_long() -> None:
    program = """
import sys
from tensorbench.cli.program import main
sys.argv = ["tensorbench", "--help"]
try:
    main()
finally:
    slow = {"torch", "mlflow", "pandas", "pydantic", "numpy", "scipy", "matplotlib"}
    slow |= {"transformers", "ruamel"}
    print(*sorted(slow & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    for command in ("run", "plan", "list", "tools"):
        assert re.search(rf"\b{command}\b", done.stdout)
    assert "<bool>" not in done.stdout


#: A script that runs the program with its arguments, and prints the slow modules that it imported to standard
#: error.
IMPORTS = """
import sys
from tensorbench.cli.program import main
try:
    main()
finally:
    slow = {"torch", "mlflow", "peft", "transformers", "timm", "pandas", "scipy", "matplotlib", "optuna"}
    slow |= {"tltorch", "tensorbench.reports.results"}
    print(*sorted(slow & set(sys.modules)), file=sys.stderr)
"""


def imports(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IMPORTS, *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.processes
@pytest.mark.parametrize("what", [("methods", "--layers", 3), ("tasks",), ("backbones",), ("stored",)])
def test_a_second_list_imports_nothing_that_takes_long(
    call: Call, new_store: Callable[[Path], str], tmp_path: Path, what: tuple[object, ...]
) -> None:
    arguments = ("list", *what, "--store", new_store(tmp_path), "--json")
    first = call(*arguments)
    second = imports(*arguments)
    assert (second.stdout, second.stderr.split()) == (first.out, [])


@pytest.mark.processes
def test_a_second_plan_imports_nothing_slow_but_torch(call: Call, tmp_path: Path) -> None:
    methods = ["lora", "lotr", "fact_tt", "cara", {"method": "tenslora", "variant": "qkv"}]
    arguments = ("plan", write(tmp_path, TEXT, methods=methods), "--store", f"sqlite:///{tmp_path}/none.db")
    assert call(*arguments).code == 0
    ended = imports(*arguments)
    # scipy where the texts have not been dealt before: the estimate counts their words.
    assert (ended.returncode, {*ended.stderr.split()} - {"scipy"}) == (0, {"torch"})


@pytest.mark.processes
def test_show_and_a_first_list_import_no_torch(new_store: Callable[[Path], str], tmp_path: Path) -> None:
    uri = new_store(tmp_path)
    wrong, listed = imports("show", "wrong", "--store", uri), imports("list", "--store", uri)
    assert "there is no run 'wrong'" in wrong.stderr
    assert listed.returncode == 0, listed.stderr
    for ended in (wrong, listed):
        modules = ended.stderr.splitlines()[-1].split()
        assert "torch" not in modules


@pytest.mark.processes
def test_a_run_imports_no_statistics_before_its_trials() -> None:
    slow = {"tensorbench.reports.results", "scipy.stats"}
    program = f"import sys, tensorbench.cli.progress; print(*{slow} & {{*sys.modules}})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


#: A script that runs the program with its arguments until it imports torch or MLflow.
UNTIL_SLOW = """
import os, sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "mlflow"):
            os._exit(0)
sys.meta_path.insert(0, Slow())
from tensorbench.cli.program import main
main()
"""


@pytest.mark.processes
@pytest.mark.parametrize("command", ["run", "search"])
def test_a_suite_is_named_before_slow_imports(tmp_path: Path, command: str) -> None:
    suite = write(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", UNTIL_SLOW, command, suite], capture_output=True, text=True, check=True
    )
    assert ended.stderr.startswith(f"reading {suite}")


@pytest.mark.processes
@pytest.mark.parametrize(
    "arguments",
    [("list",), ("show", "a"), ("report", "a", "--out", "b"), ("verify",), ("export", "a", "--out", "b")],
)
def test_a_missing_store_is_reported_before_slow_imports(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = imports(*arguments, "--store", f"sqlite:///{tmp_path}/none.db")
    assert ended.returncode == 2
    message, modules = ended.stderr.splitlines()
    assert f"no store at {tmp_path}/none.db" in message
    assert modules == ""


#: For each refusal of the command line: its arguments, and what the message names, in order: the field, the
#: value, and what is accepted or nearest. NAME.yaml is a suite, whose fields NAME changes.
REFUSALS: dict[tuple[object, ...], tuple[object, ...]] = {
    # values
    ("list", "method"): ("what", "'method'", "'methods'"),
    ("list", "methods", "--layers", 10**10): ("--layers", "equal to 1000"),
    ("list", "methods", "--hidden", 10**10): ("--hidden", "equal to 65536"),
    ("list", "methods", "--heads", 10**10): ("--heads", "equal to 1024"),
    ("plan", "toy.yaml", "--seed", "x"): ("--seed", "'x'", "0-2,5"),
    ("plan", "toy.yaml", "--seed", "1,"): ("--seed", "'1,'", "0-2,5"),
    ("plan", "toy.yaml", "--seed", "1.5"): ("--seed", "'1.5'", "0-2,5"),
    ("plan", "toy.yaml", "--seed", "0 1"): ("--seed", "'0 1'", "0-2,5"),
    ("plan", "toy.yaml", "--studies", "2-1"): ("--studies", "'2-1'", "0-2,5"),
    ("plan", "toy.yaml", "--studies", "0-99999"): ("--studies", "'0-99999'", "0-2,5"),
    **{
        ("plan", "toy.yaml", "--device", device): (f"--device {device}", "auto, cpu, cuda", "cuda:N")
        for device in ("gpu", "mps", "cpu:0", "cuda:x", "cuda:-1", "")
    },
    ("plan", "toy.yaml", "--power", "--threshold", "x"): ("--threshold", "'x'", "accuracy=0.01"),
    ("plan", "toy.yaml", "--power", "--threshold", "1", "--threshold", "2"): ("--threshold", "accuracy=0.01"),
    ("run", "toy.yaml", "--slots-per-device", "0"): ("--slots-per-device 0", "auto", "numbers from 1"),
    ("run", "toy.yaml", "--store", "mlruns"): ("store", "mlruns"),
    ("run", "toy.yaml", "--store", "sqlite:////proc/nowhere/mlflow.db"): ("store", "/proc/nowhere"),
    ("run", "toy.yaml", "--method", "lroa"): ("'lroa'", "'LoRA'"),
    ("run", "toy.yaml", "--backbone", "none"): ("backbone", "'none'"),
    ("search", "search.yaml", "--budget", "none"): ("budget", "'none'"),
    ("check", "lroa"): ("'lroa'", "'lora'"),
    ("tools", "site", ".", "--out", "x" * 300): ("x" * 300,),
    # fields of a suite
    ("run", "sedes.yaml"): ("'sedes'", "'seeds'"),
    ("run", "lroa.yaml"): ("'lroa'", "'lora'"),
    ("run", "movies.yaml"): ("no backbone is",),
    ("run", "small.yaml"): ("smallest",),
    ("run", "large.yaml"): ("train_size must be from 1 to 1259",),
    # files of another kind
    ("report", "toy.zip", "--out", "page"): ("toy.zip", ".tensorbench.zip", "rename"),
    ("report", "toy.xlsx", "--out", "page"): ("toy.xlsx", ".tensorbench.zip", ".yaml"),
    ("pack", "toy.xlsx", "--out", "toy.tensorbench.zip"): ("toy.xlsx", ".tensorbench.zip", ".yaml"),
    ("export", "toy.tensorbench.zip", "--out", "model"): ("toy.tensorbench.zip", "unpack", "--adapters"),
    # options that do not go together
    ("plan", "toy.yaml", "--sd", "0.007"): ("--sd", "--power"),
    ("plan", "toy.yaml", "--threshold", "accuracy=0.02"): ("--threshold", "--power"),
    ("search", "allocation.yaml", "--trials", "3"): ("--trials", "'toy'", "'search'"),
    ("search", "allocation.yaml", "--sampler-seed", "3"): ("--sampler-seed", "'toy'", "'search'"),
    ("list", "tasks", "--advice", "x"): ("--advice", "list methods", "tasks"),
    ("report", "a"): ("--out",),
    ("show", "a", "--suite", "--json"): ("--suite", "--json"),
    ("show", "a", "--suite", "--cell", "1"): ("--suite", "--cell"),
    ("verify", "a.yaml", "b.yaml", "x://y", "z://w"): ("one store", "x://y", "z://w"),
    ("verify", "toy.tensorbench.zip", "--delete"): ("--delete", "--leftovers"),
    ("verify", "toy.tensorbench.zip", "--leftovers", "--rerun", "1"): ("--leftovers", "--rerun"),
    ("verify", "toy.tensorbench.zip", "--leftovers", "--open", "hub"): ("--leftovers", "--open"),
    ("verify", "toy.tensorbench.zip", "--tolerance", "0.1"): ("--tolerance", "--rerun"),
    ("verify", "toy.tensorbench.zip", "--sample-seed", "1"): ("--sample-seed", "--rerun"),
}

TENSOR = {"method": "tenslora", "variant": "att"}
SUITES: dict[str, dict[str, Any]] = {
    "toy": {},
    "search": {"search": {"trials": 1}, "methods": [TENSOR]},
    "allocation": {"allocation": {}, "methods": [TENSOR]},
    "sedes": {"sedes": [1]},
    "lroa": {"methods": ["lroa"]},
    "movies": {"tasks": [MOVIES]},
    "small": {"budgets": [{"parameters": 1}]},
    "large": {"tasks": [{**DIGITS, "train_size": 10**6}]},
}


@pytest.mark.parametrize("arguments", REFUSALS, ids=lambda arguments: " ".join(map(str, arguments))[:60])
def test_a_refusal_names_field_value_and_what_is_accepted(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.xlsx").touch()
    for name in (each for each in SUITES if f"{each}.yaml" in arguments):
        write(tmp_path, **SUITES[name]).rename(tmp_path / f"{name}.yaml")
    ended = call(*arguments)
    # typer frames its messages, in lines of the terminal's width.
    message = " ".join(re.sub("[│╭╮╰╯─]", " ", ended.err).split())
    assert (ended.code, ended.out) == (2, "")
    assert re.search(naming(*REFUSALS[arguments]), message), ended.err
    assert not re.search("Traceback|Value error", ended.err)
    assert not [*tmp_path.glob("*.db")]


def test_a_list_of_stored_suites_is_read_anew_when_the_store_changes(
    call: Call, new_store: Callable[[Path], str], tmp_path: Path
) -> None:
    uri = new_store(tmp_path)
    assert call("list", "--store", uri, "--json").out == "[]\n"
    Store.create(uri, "toy").begin_suite(plan(), "driver")
    (row,) = json.loads(call("list", "--store", uri, "--json").out)
    assert row["experiment"] == "toy"


def test_methods_are_counted_on_the_geometry_that_was_given(call: Call) -> None:
    assert call("list", "methods", "--layers", 2, "--json") != call(
        "list", "methods", "--layers", 3, "--json"
    )


@pytest.mark.parametrize(
    "arguments", [("-h",), ("run", "-h"), ("show", "--help"), ("list", "-h"), ("tools", "perf", "-h")]
)
def test_help_has_a_short_name_everywhere(call: Call, arguments: tuple[str, ...]) -> None:
    ended = call(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert "Usage: tensorbench" in ended.out
    assert call(*arguments[:-1], "-h").out == call(*arguments[:-1], "--help").out


def test_the_version_is_the_packages(call: Call) -> None:
    assert call("--version") == (0, f"tensorbench {tensorbench.__version__}\n", "")


@pytest.mark.processes
def test_python_m_bench_is_the_same_program(call: Call) -> None:
    arguments = ("tasks", "--store", "x")
    done = subprocess.run([sys.executable, "-m", "tensorbench", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == call(*arguments)
    assert done.returncode == 2


@pytest.mark.parametrize("control", ["\x1b[2J", "\u202e"])
def test_no_name_commands_the_terminal(call: Call, tmp_path: Path, control: str) -> None:
    spelled = f"lo{control}ra".replace(control[0], f"\\u{ord(control[0]):04x}")
    ended = call("plan", write(tmp_path, methods=[f"lo{control}ra"]))
    assert f"unknown method '{spelled}'" in ended.err
    assert control[0] not in ended.err
    shown = VisibleConsole(file=io.StringIO(), force_terminal=True, width=60, color_system="standard")
    evil = f"[red]lo{control}ra"
    lines = [{evil: evil, "failed": "✗ 1"}]
    print_tables(Table(evil, lines, [evil], (evil,)), Table(evil, lines, by=(evil,)), console=shown)
    assert isinstance(shown.file, io.StringIO)
    output = shown.file.getvalue()
    assert "31m" in output
    assert output.count("[red]lo") == 6
    # Only its own colours remain of the terminal commands.
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", re.sub("\x1b\\[[0-9;]*m", "", output))


def test_a_deleted_experiment_ends_with_2(
    call: Call, new_store: Callable[[Path], str], tmp_path: Path
) -> None:
    uri = new_store(tmp_path)
    store = Store.create(uri, "toy")
    store.client.delete_experiment(store.experiment.experiment_id)
    ended = call("run", write(tmp_path), "--store", uri)
    assert ended.code == 2
    assert "was deleted in" in ended.err


@no_cuda
def test_a_device_that_the_machine_lacks_ends_with_2(call: Call, tmp_path: Path) -> None:
    ended = call("run", write(tmp_path), "--device", "cuda")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert re.search(naming("CUDA", "--device cpu"), ended.err)


@no_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_machine_without_gpu_plans_for_one_that_computes_bf16(
    call: Call, tmp_path: Path, device: str
) -> None:
    ended = call("plan", write(tmp_path), "--device", device, "--json")
    assert ended.code == 0, ended.err
    content = json.loads(ended.out)
    assert {trial["recipe"]["precision"] for trial in content["trials"]} == {"bf16"}
    (note,) = content["forecast"]["notes"]
    assert re.search(naming("no GPU", "bf16", "the processor here"), note)


def printed(table: Table, width: int) -> str:
    shown = io.StringIO()
    print_tables(table, console=Console(file=shown, width=width))
    return shown.getvalue()


def test_a_table_leaves_out_what_it_has_no_room_for() -> None:
    line = {"method": "m" * 20, "seconds": "1" * 20, "MiB": "2" * 20}
    table = Table("", [line], texts=("method",), spare=("MiB", "seconds"))
    for width, columns in ((80, 3), (60, 2), (30, 1)):
        assert "…" not in printed(table, width)
        assert [heading for heading in line if heading in printed(table, width)] == [*line][:columns]


def test_lines_of_a_group_share_its_headings() -> None:
    tasks = ("cola", "sst2", "sst2")
    lines = [{"task": task, "budget": "isorank 2", "method": f"{task}'s"} for task in tasks]
    shown = printed(Table("all", lines, ["A note."], ("method",), by=("task", "budget")), 80)
    words = [*["all"], *["cola", "method", "─", "isorank", "2", "cola's"]]
    words += [*["sst2", "method", "─", "isorank", "2", "sst2's", "sst2's"], *["A", "note."]]
    assert [word[:1] if "─" in word else word for word in shown.split()] == words


@pytest.mark.parametrize("width", [60, 80])
def test_names_and_counts_of_methods_are_whole_on_a_narrow_terminal(width: int) -> None:
    shown = printed(tensorbench.list_methods(), width)
    assert {*METHODS, "221,184"} <= {*shown.split()}
    assert "…" not in shown


def test_a_plan_on_a_narrow_terminal_keeps_methods_ranks_and_budgets() -> None:
    shown = printed(plan(budgets=[{"parameters": 1000}]).overview(), 50)
    (row,) = (line.split() for line in shown.splitlines() if "LoRA" in line)
    assert row[:2] == ["LoRA", "3"]
    assert "1.152 !" in " ".join(row)


@pytest.mark.processes
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    program = Path(tensorbench.__file__).with_name("__main__.py")
    done = Program(program, ("--debug", "plan", "missing.yaml"), tmp_path, tmp_path / "log")
    assert done.wait() != 0
    assert "Traceback" in done.output()
    assert "missing.yaml" in done.output()


def test_a_plan_as_json_is_nothing_but_json(call: Call, tmp_path: Path) -> None:
    ended = call("plan", write(tmp_path, seeds=[0, 1]), "--json")
    read = json.loads(ended.out)
    assert (read["suite"], len(read["rows"]), len(read["trials"])) == ("toy", 1, 2)
    assert read["rows"][0]["trials"] == {str(trial["seed"]): trial["id"] for trial in read["trials"]}


def test_a_plan_as_a_table_shows_counts_and_what_is_shared(call: Call, tmp_path: Path) -> None:
    budgets = [{"isorank": 2}, {"isoparameters": 2}]
    shown = call("plan", write(tmp_path, budgets=budgets, seeds=[0, 1])).out
    assert "toy: 2 trials, seeds 0,1" in shown
    assert "2 trial(s) belong to" in shown
    assert re.search(r"LoRA +2 +768 +50\.00 +1\.000 +0\.005", shown)


def test_lists_name_all_that_there_is(call: Call) -> None:
    backbones = json.loads(call("list", "backbones", "--json").out)
    assert {row["backbone"] for row in backbones} == set(BACKBONES)
    classes = {row["task"]: row["classes"] for row in json.loads(call("list", "tasks", "--json").out)}
    assert set(classes) == set(TASKS)
    assert classes["gsm8k"] == "written answers"
    assert classes["rating-pairs"] == "a number, in rating points"
    shown = call("list", "tasks").out
    assert all(name in shown for name in TASKS)
    rows = json.loads(call("list", "methods", "--json").out)
    named = {row["method"]: row for row in rows}
    assert {f"TensLoRA {variant}" for variant in VARIANTS} <= set(named)
    assert named["LoRA"]["isorank_4"] == 221184
    assert named["TensLoRA qkv_depth"]["isorank_4"] == 6460


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    echo_json({"loss": float("nan"), "name": "é", "scores": [float("inf"), 0.1]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "loss": None,
        "name": "é",
        "scores": [None, 0.1],
    }
