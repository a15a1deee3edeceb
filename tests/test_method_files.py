"""Tests methods in plain Python files, which a suite or a command names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tensorbench.execution.place import Place
from tensorbench.methods import METHODS, UserError, load_methods
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import load_suite
from tensorbench.records.words import Status, Tag
from tensorbench.run.search.ranks import choosers_of
from tensorbench.run.suites import run_suite
from tensorbench.store.store import Store
from tensorbench.tools.recipe import write_recipe

from .bench.toy_runs import SHORT
from .bench.toy_suites import UNSEEDED, VISION, write
from .fixtures import Call, NewStore
from .messages import naming
from .packs import packed

SOURCE = (Path(__file__).parent / "plugins" / "tensorbench-shared-down" / "shared_down.py").read_text()
NAMED = '    name = "shared_down"\n'
OWN: dict[str, Any] = {"methods": [{"file": "own/method.py"}], "training": SHORT, "budgets": [{"isorank": 2}]}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_files", {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a method, beside which `write` may put a suite that names it."""
    path = tmp_path / "own" / "method.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def test_a_file_is_checked_by_its_path(file: Path, call: Call) -> None:
    ended = call("check", file, "--quick")
    assert ended.code == 0, ended.out + ended.err
    assert re.search(naming("shared_down", "0 failed"), ended.out)


def test_a_suite_names_a_file_beside_it_and_ids_do_not_depend_on_its_place(
    file: Path, tmp_path: Path
) -> None:
    first = make_plan(load_suite(write(tmp_path, **OWN)))
    other = tmp_path / "elsewhere"
    (other / "own").mkdir(parents=True)
    (other / "own" / "method.py").write_text(SOURCE)
    second = make_plan(load_suite(write(other, **OWN)))
    assert [trial.method["method"] for trial in first.trials] == ["shared_down"]
    assert [trial.id for trial in first.trials] == [trial.id for trial in second.trials]


def test_python_names_files_as_paths_and_a_suite_by_its_place_at_home(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load_suite({**VISION, **OWN, "methods": [{"file": file}]})
    assert made.methods[0].method == "shared_down"
    assert str(file) in made.file.text
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, **OWN)
    assert load_suite("~/suite.yaml").methods[0].method == "shared_down"


@pytest.mark.parametrize(
    "executor",
    [
        "inline",
        pytest.param("local", marks=pytest.mark.processes),
        pytest.param("ray", marks=pytest.mark.ray),
    ],
)
def test_trials_run_the_file_as_it_was_when_the_run_began(
    file: Path, tmp_path: Path, new_store: NewStore, executor: str
) -> None:
    suite, uri = load_suite(write(tmp_path, **OWN)), new_store(tmp_path)
    digest = METHODS.source_hash("shared_down")
    file.write_text("raise RuntimeError('edited while it ran')")
    done = run_suite(suite, store=uri, place=Place(executor, "cpu", workers=1))
    assert done.complete
    (record,) = Store.existing(uri, "toy").records()
    assert record.tag(Tag.METHOD_SOURCE) == f"shared_down {digest}"


def test_a_recipe_has_the_file_beside_its_suite(file: Path, tmp_path: Path, new_store: NewStore) -> None:
    suite, uri = load_suite(write(tmp_path, **OWN)), new_store(tmp_path)
    assert run_suite(suite, store=uri, place=Place(device="cpu")).complete
    written = write_recipe("toy", out=tmp_path / "recipe", store=uri)
    assert "method.py" in written.files
    METHODS._files.clear()
    (row,) = load_suite(written.folder / "suite.yaml").methods
    assert row.method == "shared_down"


def test_a_run_mentions_results_of_another_source(
    file: Path, tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    suite, uri = write(tmp_path, **OWN), new_store(tmp_path)
    assert call("run", suite, "--store", uri).code == 0
    file.write_text(f"{SOURCE}\n# edited\n")
    again = call("run", suite, "--store", uri)
    assert "1 trials, 0 to run" in again.out
    assert re.search(naming("1 of 1", "method 'shared_down'", "version"), " ".join(again.err.split()))


def with_line(line: str) -> str:
    """The source with another line in the class."""
    return SOURCE.replace(NAMED, f"{NAMED}    {line}\n")


@pytest.mark.parametrize(
    ("content", "row", "message"),
    [
        (None, {}, ("method.py", "No such file")),
        ("def broken(:", {}, ("method.py", "SyntaxError")),
        ("import no_such_module", {}, ("method.py", "no_such_module")),
        (f"{SOURCE}\nraise SystemExit(3)", {}, ("method.py", "SystemExit: 3")),
        ("from tensorbench.methods.sizes import OneRank", {}, ("method.py", "defines no method")),
        (SOURCE.replace('"shared_down"', '"lora"'), {}, ("'lora'", "registered more than once", "method.py")),
        (SOURCE.replace("def parametrise", "def other"), {}, ("'shared_down'", "method.py", "parametrise")),
        (SOURCE, {"method": "lora"}, ("method of it", "lora", "shared_down")),
        (SOURCE, {"rnk": 3}, ("methods.0", "rnk", "rank")),
        (
            f"{SOURCE}\n\nclass Second(SharedDown):\n    name = 'second'\n",
            {},
            ("shared_down, second", "name one as method"),
        ),
        (
            f"{SOURCE}\n\nclass Second(SharedDown):\n    name = 'shared_down'\n",
            {},
            ("method.py", "SharedDown", "Second", "'shared_down'"),
        ),
        (SOURCE.replace('"shared_down"', '"all"'), {}, ("'all'", "method.py", "name", "letters")),
        (SOURCE.replace('"shared_down"', '"a/b"'), {}, ("'a/b'", "method.py", "name", "letters")),
        (with_line("act: object = torch.relu"), {}, ("'shared_down'", "method.py", "act", "relu")),
    ],
    ids=[
        *("absent", "syntax", "import", "exit", "none", "taken", "abstract", "another", "option", "several"),
        *("twice", "all", "slash", "default"),
    ],
)
def test_mistakes_in_files_are_refused_by_name(
    file: Path, tmp_path: Path, content: str | None, row: dict[str, Any], message: tuple[str, ...]
) -> None:
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=naming(*message)):
        make_plan(load_suite(write(tmp_path, **{**OWN, "methods": [{**OWN["methods"][0], **row}]})))
    # A failed file leaves nothing behind.
    assert content == SOURCE or "shared_down" not in METHODS or message[0].startswith("shared_down")


def test_a_chooser_takes_rows_that_name_a_file(file: Path, tmp_path: Path) -> None:
    pilot = {"head_lr": None, "epochs": None, "centres": {"rates": [1e-3, 1e-2, 1e-1], "seeds": [1000]}}
    studies = {"tuning": {"studies": 2, "points": 2}, "pilot": pilot, "training": {"batch_size": 16}}
    suite = load_suite(write(tmp_path, UNSEEDED, **OWN | studies))
    (chooser,) = choosers_of(make_plan(suite)).values()
    chooser.check_target(tmp_path / "chosen.yaml")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match=naming("elsewhere", "own/method.py", "No such file")):
        chooser.check_target(tmp_path / "elsewhere" / "chosen.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_line("title = property(lambda self: 7)"), ("title", "text", 7)),
        (SOURCE.replace("return rank * (", "return torch.tensor(rank) * ("), ("count", "int", "tensor(")),
    ],
)
def test_what_a_method_gives_is_checked_before_a_run(
    file: Path, tmp_path: Path, content: str, message: tuple[object, ...]
) -> None:
    file.write_text(content)
    with pytest.raises(UserError, match=naming("methods.0: method 'shared_down'", "method.py", *message)):
        make_plan(load_suite(write(tmp_path, **OWN)))


def test_a_file_that_ends_the_program_runs_again_when_it_is_named_again(file: Path) -> None:
    file.write_text(f"{SOURCE}\nraise SystemExit")
    for _ in range(2):
        with pytest.raises(UserError, match="SystemExit"):
            load_methods(file)


def test_two_methods_of_one_name_in_tables_are_refused_until_one_has_a_label(
    file: Path, tmp_path: Path
) -> None:
    file.write_text("from tensorbench.baselines.lora import LoRA\n\nclass Mine(LoRA):\n    name = 'mine'\n")
    row = OWN["methods"][0]
    for methods in (["lora", row], [row, "lora"]):
        with pytest.raises(UserError, match=r"'lora'.*'LoRA'.*label.*title") as raised:
            make_plan(load_suite(write(tmp_path, **{**OWN, "methods": methods})))
        assert "'mine'" in str(raised.value)
    labelled = {**OWN, "methods": ["lora", {**row, "label": "ours"}]}
    assert [each.method for each in make_plan(load_suite(write(tmp_path, **labelled))).rows] == [
        "LoRA",
        "ours",
    ]


def test_two_files_cannot_define_one_method(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(f"{SOURCE}\n# another\n")
    load_methods(file)
    with pytest.raises(UserError, match=naming("'shared_down'", file, other)):
        load_methods(other)
    assert "shared_down" in METHODS


def test_a_refused_edit_leaves_what_was_registered(file: Path) -> None:
    load_methods(file)
    file.write_text(SOURCE.replace("def parametrise", "def other"))
    with pytest.raises(UserError, match="parametrise"):
        load_methods(file)
    file.write_text(f"{SOURCE}\n\nclass Second(SharedDown):\n    name = 'lora'\n")
    with pytest.raises(UserError, match="more than once"):
        load_methods(file)
    assert METHODS.file("lora") is None
    assert METHODS.get("shared_down").name == "shared_down"


def test_an_edited_file_is_loaded_again(file: Path) -> None:
    load_methods(file)
    before = METHODS.source_hash("shared_down")
    file.write_text(SOURCE.replace('name = "shared_down"', 'name = "shared_down"\n    version = 9'))
    load_methods(file)
    assert METHODS.get("shared_down").version == 9
    assert METHODS.source_hash("shared_down") != before


def test_nothing_of_a_pack_runs_a_file_that_its_suite_names(
    file: Path, tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = new_store(tmp_path)
    assert run_suite(load_suite(write(tmp_path, **OWN)), store=uri, place=Place(device="cpu")).complete
    pack = packed(uri, "toy", tmp_path / "packs", adapters=True)
    # The file lies where the pack's suite says, and would betray that it ran.
    METHODS._files.clear()
    marker = tmp_path / "it-ran"
    file.write_text(f"open({str(marker)!r}, 'w')\n{SOURCE}")
    monkeypatch.chdir(tmp_path / "packs")
    other = new_store(tmp_path / "packs")
    assert call("unpack", pack, "--store", other).code == 0
    assert call("report", pack, "--out", tmp_path / "report").code == 0
    verified = call("verify", pack)
    assert re.search(naming("not checkable", "'shared_down'", "--method-file"), verified.out)
    (record,) = Store.existing(other, "toy").records()
    assert record.status == Status.FINISHED
    command = ("export", record.trial_id, "--out", tmp_path / "export", "--store", other)
    refused = call(*command)
    assert refused.code == 2
    assert re.search(naming("'shared_down'", "--method-file"), refused.err)
    assert not marker.exists()
    # The user names the file.
    file.write_text(SOURCE)
    exported = call("--method-file", file, *command)
    assert exported.code == 0, exported.err
