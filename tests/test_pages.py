"""Tests that the code and the commands of the documentation work as printed.

The program parses every `tensorbench` command. Commands that make reports run on the results of the
quickstart. Suites are planned. Every Python block runs, except those in `ELSEWHERE`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml

import tensorbench
from tensorbench.backbones import describe, kinds
from tensorbench.cli.program import app
from tensorbench.plan.suite import load_suite
from tensorbench.records.words import Tag
from tensorbench.run.suites import SuiteRun
from tensorbench.store.store import Store
from tensorbench.tasks import Task, prepare

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: The pages of the documentation, except two: commands.md is made from the program, and notebook.md from the
#: notebook, which has a test of its own.
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("**/*.md"))
    if page.name not in {"commands.md", "notebook.md"}
)
PACK = DOCS / "quickstart-report" / "quickstart.tensorbench.zip"

#: Maps placeholders in the commands of pages to the values with which the commands run here.
STAND_INS = dict.fromkeys(("quickstart", "mine", "my_suite"), PACK.name) | {"N": "1"}

#: Maps pages whose Python blocks cannot run here to the reason. Their blocks are compiled.
ELSEWHERE = {
    "docs/guides/clusters.md": "runs in tests/bench/execution/test_before_the_start.py",
    "docs/guides/decoders.md": "needs a GGUF file",
    "docs/guides/export.md": "runs in the folder of an export; tests/bench/export does the same",
}


def code(page: str) -> list[str]:
    """The Python blocks of a page. Each begins with blank lines, so that errors name the line of the page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        "\n" * text.count("\n", 0, block.start(2)) + textwrap.dedent(block[2])
        for block in re.finditer(r"^( *)```python\n(.*?)^\1```", text, re.M | re.S)
    ]


def run_code(page: str, names: dict[str, object], only: slice = slice(None)) -> None:
    """Runs these Python blocks of a page in order, with a tiny backbone in place of minilm-l6."""
    for block in code(page)[only]:
        exec(compile(block.replace("minilm-l6", "tiny-random-bert"), str(ROOT / page), "exec"), names)


def commands(page: str) -> Iterator[list[str]]:
    """Yields the arguments of each call of `tensorbench` on a page, in blocks and in sentences."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S) + re.findall(
        r"^ {4}.*tensorbench .*", text, re.M
    )
    lines = [line for block in blocks for line in block.splitlines() if "tensorbench " in line]
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    for line in [*lines, *re.findall(r"`(tensorbench [^`]+)`", " ".join(outside.split()))]:
        words = [STAND_INS.get(word, word) for word in shlex.split(line, comments=True)]
        starts = [place for place, word in enumerate(words) if word.split("/")[-1] == "tensorbench"]
        for start in starts:
            rest = words[start + 1 :]
            ends = [place for place, word in enumerate(rest) if word in {"&&", "|", ";"}]
            yield rest[: ends[0]] if ends else rest


def parsed(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The name of a command, and the values that the program reads from its arguments.

    Raises the errors of the parser. A command without arguments is accepted, since sentences name commands
    without arguments.
    """
    command: Any = typer.main.get_command(app)
    context, name, rest = None, "tensorbench", list(arguments)
    while hasattr(command, "commands"):
        context = command.make_context(name, rest, parent=context)
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    return name, command.make_context(name, rest, parent=context, resilient_parsing=not rest).params


@pytest.mark.parametrize("page", PAGES)
def test_the_program_takes_the_commands_of_a_page(page: str) -> None:
    for arguments in commands(page):
        if arguments == ["-h"]:
            continue
        try:
            name, values = parsed(arguments)
        except Exception as error:
            raise AssertionError(f"tensorbench {shlex.join(arguments)}: {error}") from error
        suite = str(values.get("suite", ""))
        # A file name in capitals stands for any suite.
        if name in {"plan", "run", "search"} and suite.startswith("suites/") and suite.islower():
            load_suite(ROOT / suite)


READING = sorted(
    {
        shlex.join(arguments)
        for page in PAGES
        for arguments in commands(page)
        if arguments[:2] == ["report", PACK.name]
    }
)


@pytest.mark.parametrize("command", READING)
def test_reports_of_pages_are_made(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(PACK, tmp_path)
    ended = call(*shlex.split(command), "--format", "html")
    assert ended.code == 0, ended
    assert list(tmp_path.glob("*/index.html"))


def own_suites(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(name: .*?)```", text, re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if own_suites(page)])
def test_suites_of_pages_are_planned(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"words {number},{number % 2}\n" for number in range(8000))
    (tmp_path / "data").mkdir()
    for file in ("reviews.csv", "data/reviews.csv"):
        (tmp_path / file).write_text(f"body,stars\n{rows}")
    for text in own_suites(page):
        name = yaml.safe_load(text)["name"]
        (tmp_path / f"{name}.yaml").write_text(text)
        plans = [words for words in commands(page) if words[:2] == ["plan", f"{name}.yaml"]]
        planned = plans[0] if plans else ["plan", f"{name}.yaml"]
        ended = call(*planned)
        assert ended.code == 0, ended
        assert "lora" in ended.out.lower()


def test_the_first_python_of_a_newcomer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The quickstart's suite with two trials of four steps.
    suite = yaml.safe_load((ROOT / "suites" / "quickstart.yaml").read_text(encoding="utf-8"))
    suite |= {
        "backbones": ["tiny-random-bert"],
        "methods": ["head_only", "lora"],
        "seeds": [0],
        "training": {"lr": 1e-3, "batch_size": 16, "steps": 4},
    }
    suite["tasks"] = [{"task": "movie-sentiment", "train_size": 64, "validation_size": 32, "test_size": 32}]
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "quickstart.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tensorbench.plan.suite.PACKAGED", tmp_path / "suites")
    names: dict[str, object] = {}
    run_code("docs/start.md", names, slice(1, None))
    run = names["run"]
    assert isinstance(run, SuiteRun)
    assert run.complete
    tensorbench.pack("quickstart", out="theirs.tensorbench.zip", store="sqlite:///mlflow.db")
    run_code("docs/reference/data-frames.md", {})
    # The first block loads an exported model in the folder of the export.
    trial = run.plan.trials[-1]
    tensorbench.export_run(trial.id, "served", "sqlite:///mlflow.db", merged=True)
    monkeypatch.chdir(tmp_path / "served")
    run_code("docs/start.md", names, slice(1))


def test_the_backbone_of_the_guide_describes_itself() -> None:
    namespace = vars(kinds) | {"KINDS": {}}
    run_code("docs/guides/own-backbone.md", namespace)
    assert namespace["KINDS"]["electra"] == kinds.KINDS["electra"]
    assert namespace["MY_VIT"].describe(None).input.size == 224


def test_the_title_of_the_guide_is_a_title() -> None:
    names: dict[str, Any] = {}
    run_code("docs/guides/own-method.md", names)
    labels = [names[kind](rank=2, scale=0.5).label for kind in ("SharedDown", "Scaled")]
    assert "scale=0.5" in labels[0]
    assert labels[1] == "shared down × 0.5"


def test_the_guide_to_results_that_exist_is_true_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    page = "docs/guides/own-results.md"
    text = (ROOT / page).read_text(encoding="utf-8")
    (runs,) = re.findall("```\n(method,.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    Path("runs.csv").write_text(runs, encoding="utf-8")
    ended = call("report", "runs.csv", "--out", "report")
    assert ended.code == 0, ended.err
    for said in (
        "DoRA is significantly better than LoRA; worse: VeRA",
        "1 run without a score",
    ):
        assert said in " ".join(ended.out.split())
    run_code(page, {})


def test_every_other_block_of_python_compiles() -> None:
    run_here = {
        *("docs/start.md", "docs/reference/data-frames.md", "docs/guides/own-backbone.md"),
        *("docs/guides/own-method.md", "docs/guides/own-task.md", "docs/guides/python.md"),
        "docs/guides/own-results.md",
    }
    assert {page for page in PAGES if code(page)} == run_here | set(ELSEWHERE)
    for page in ELSEWHERE:
        for block in code(page):
            compile(block, str(ROOT / page), "exec")


def test_a_notebook_can_do_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    try:
        run_code("docs/guides/python.md", names)
    except AssertionError as error:
        records = Store.existing("sqlite:///mlflow.db", "notebook").records()
        outcomes = [(record.name, record.status, record.tag(Tag.FAILURE_MESSAGE)) for record in records]
        raise AssertionError(f"the page's store has {outcomes}") from error
    output = capsys.readouterr().out
    assert "0 trials ran" in output
    assert (tmp_path / "report" / "index.html").exists()


def test_the_task_of_the_guide_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block, of_metric = code("docs/guides/own-task.md")
    metric: dict[str, Any] = {}
    exec(compile(of_metric, str(DOCS / "guides/own-task.md"), "exec"), metric)
    assert metric["MEAN_ERROR"].score(np.array([1.0, 3.0]), np.array([2.0, 1.0])) == 1.5
    lines = [f"sentence number {i},{kind}" for i in range(40) for kind in [("statement", "question")[i % 2]]]
    (tmp_path / "sentences.csv").write_text("\n".join(["text,kind", *lines]), encoding="utf-8")
    module = types.ModuleType("sentence_kind")
    module.__file__ = str(tmp_path / "sentence_kind.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block, str(DOCS / "guides/own-task.md"), "exec"), module.__dict__)
    task = module.TASK
    assert isinstance(task, Task)
    data = prepare(task, describe("tiny-random-bert").input)
    assert data.classes == 2
    # Removing the marks leaves the sentences distinct.
    assert sorted(map(len, (data.train, data.validation, data.test))) == [6, 6, 28]
