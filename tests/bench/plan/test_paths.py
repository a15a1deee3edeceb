"""Tests that relative paths in a suite start at the suite's file, whatever the working folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tensorbench.methods import UserError
from tensorbench.plan.make import make_plan
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import load_suite

from ...fixtures import Call
from ...messages import naming
from ..hub_stand_in import write_glue
from ..machine.paper_hub import SUITE, save_roberta

LOCAL = SUITE | {
    "name": "local",
    "backbones": [{"local": "../models/roberta"}],
    "tasks": [{"task": "cola", "max_tokens": 64, "source": {"local": "../data"}}],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with three folders: one for a suite, one for its backbone and one for its data."""
    home = tmp_path_factory.mktemp("home")
    save_roberta(home / "models" / "roberta")
    write_glue(home / "data", "cola", {"train": 80, "validation": 20})
    (home / "suites").mkdir()
    (home / "suites" / "suite.yaml").write_text(yaml.safe_dump(LOCAL))
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "home"))


def paths(plan: Plan) -> set[tuple[Path | None, Path | None]]:
    return {(t.backbone.local, t.task.source and t.task.source.local) for t in plan.trials}


@pytest.mark.parametrize("shell", [".", "suites", "models"])
def test_a_suite_finds_its_folders_from_any_working_folder(
    home: Path, shell: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home / shell)
    file = {".": "suites/suite.yaml", "suites": "suite.yaml", "models": "../suites/suite.yaml"}[shell]
    plan = make_plan(load_suite(file))
    # Trials keep absolute paths so that their results find them from elsewhere.
    assert paths(plan) == {(home / "models" / "roberta", home / "data")}
    ended = call("plan", file)
    assert (ended.code, "cola · local:roberta" in ended.out) == (0, True)


def test_ids_do_not_depend_on_where_the_folders_lie(home: Path, made: Path, tmp_path: Path) -> None:
    here, there = (make_plan(load_suite(folder / "suites" / "suite.yaml")) for folder in (home, made))
    assert paths(here) != paths(there)
    assert [trial.id for trial in here.trials] == [trial.id for trial in there.trials]


def test_whole_paths_and_homes_stay_as_they_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    for local in (str(home / "models" / "roberta"), "~/models/roberta"):
        suite = load_suite(LOCAL | {"backbones": [{"local": local}]})
        assert suite.backbones[0].local == home / "models" / "roberta"


def test_paths_of_a_dictionary_begin_at_the_working_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home / "suites")
    plan = make_plan(load_suite(LOCAL))
    monkeypatch.chdir("/")
    assert paths(plan) == {(home / "models" / "roberta", home / "data")}


@pytest.mark.parametrize(
    ("gone", "who"), [("models/roberta", "backbone"), ("data", "task 'cola'")], ids=["backbone", "task"]
)
@pytest.mark.parametrize("command", ["plan", "run", "tools fetch"])
def test_a_missing_path_is_reported_with_its_suite(
    home: Path, command: str, gone: str, who: str, call: Call, tmp_path: Path
) -> None:
    shutil.rmtree(home / gone)
    store = ("--store", f"sqlite:///{tmp_path / 'mlflow.db'}") if command == "run" else ()
    ended = call(*command.split(), home / "suites" / "suite.yaml", *store)
    assert ended.code == 2
    errors = " ".join(ended.err.split())
    assert re.search(naming("suite 'local'", who, home / gone), errors)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_missing_file_of_weights_is_reported_too(home: Path) -> None:
    file = home / "suites" / "timm.yaml"
    file.write_text(yaml.safe_dump(LOCAL | {"backbones": [{"timm": "test_vit", "local": "w.safetensors"}]}))
    with pytest.raises(UserError, match=naming(home / "suites" / "w.safetensors")):
        make_plan(load_suite(file))


def test_a_packaged_suite_is_read_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    ended = call("plan", "quickstart", "--json")
    assert ended.code == 0, ended
    assert "TensLoRA" in ended.out
    # The user's own file comes first.
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("name: 3")
    with pytest.raises(UserError, match="quickstart"):
        load_suite("quickstart")


def test_an_unknown_name_lists_the_packaged_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=naming("quikstart", "'quickstart'?", "study_full")):
        load_suite("quikstart")
    with pytest.raises(UserError, match=naming("none.yaml", "No such file")):
        load_suite("none.yaml")
    with pytest.raises(UserError, match=naming("suite", "path", "dictionary", "(got None)")):
        load_suite(None)  # type: ignore[arg-type]
