"""Tests that a suite of hub data and hub backbones runs on copies on disk, and asks for no others."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tensorbench.execution.place import Place
from tensorbench.methods import UnknownNameError, UserError
from tensorbench.plan.make import make_plan
from tensorbench.plan.pairs import Part
from tensorbench.plan.suite import load_suite
from tensorbench.run.suites import Audience, run_suite
from tensorbench.store.store import Store

from ...fixtures import Call, NewStore
from ...messages import naming
from ..hub_stand_in import write_glue
from ..machine.paper_hub import SUITE, save_roberta
from ..toy_suites import DIGITS, VISION, suite, write

SIZES = {"train": 80, "validation": 20}

HUB: dict[str, Any] = SUITE | {
    "backbones": [{"hub": "me/tiny-roberta"}],
    "tasks": [{"task": task, "max_tokens": 64} for task in ("cola", "mrpc")],
    "training": {"batch_size": 16, "steps": 1},
}
#: A suite of which one task is on the hub and one is not.
MIXED: dict[str, Any] = {
    **VISION,
    "tasks": [DIGITS, {"task": "cola", "train_size": 40}],
    "backbones": ["tiny-random-vit", "tiny-random-bert"],
    "training": {"batch_size": 16, "steps": 1},
}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets requests to a hub fail, as without a network. Returns the list of requested repositories."""
    requests: list[str] = []

    def unreachable(repository: str, *_: Any, **__: Any) -> str:
        requests.append(repository)
        raise UserError(f"{repository} can be neither reached nor found")

    for name in ("tasks.data_tasks.commit_of", "tasks.data_tasks.snapshot", "backbones.huggingface.snapshot"):
        monkeypatch.setattr(f"tensorbench.{name}", unreachable)
    return requests


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite of two hub tasks, their data, and a checkpoint."""
    folder = tmp_path_factory.mktemp("disk")
    for task in ("cola", "mrpc"):
        write_glue(folder / "glue", task, SIZES)
    save_roberta(folder / "roberta")
    (folder / "hub.yaml").write_text(yaml.safe_dump(HUB))
    return folder


@pytest.fixture
def disk(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "disk"))


class Notes(Audience):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_suite_of_the_hub_runs_on_folders_that_the_command_names(
    disk: Path, call: Call, new_store: NewStore, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disk)
    options = ("--source", "glue", "--backbone", "roberta", "--store", new_store(disk))
    planned = call("plan", "hub.yaml", *options)
    assert planned.code == 0, planned.err
    ended = call("run", "hub.yaml", *options)
    assert ended.code == 0, ended.err
    records = Store.existing(options[-1], "hub").records()
    assert {(record.tag("task"), record.tag("backbone")) for record in records} == {
        ("cola", "local:roberta"),
        ("mrpc", "local:roberta"),
    }
    assert asked == []
    # The stored text of the suite names what ran, so that a copy of it runs again.
    start = load_suite("hub.yaml", data="glue", backbones=["roberta"]).file
    (disk / "again.yaml").write_text(start.text)
    again = call("run", "again.yaml", "--store", options[-1])
    assert "2 trials, 0 to run" in again.out


def test_a_suite_has_one_source_for_the_tasks_without_their_own(disk: Path) -> None:
    write_glue(disk / "other", "mrpc", {"train": 60, "validation": 20})
    fields = HUB | {
        "source": {"local": "glue"},
        "backbones": [{"local": "roberta"}],
        "tasks": ["cola", {"task": "mrpc", "source": {"local": "other"}}, "movie-sentiment"],
    }
    (disk / "own.yaml").write_text(yaml.safe_dump(fields))
    sources = {
        trial.task.task: trial.task.source for trial in make_plan(load_suite(disk / "own.yaml")).trials
    }
    assert {name: source and source.local for name, source in sources.items()} == {
        "cola": disk / "glue" / "cola",
        "mrpc": disk / "other",
        "movie-sentiment": None,
    }


@pytest.mark.parametrize("inside", ["glue", "cola", "nyu-mll/glue"])
def test_a_source_names_folders_by_task_or_repository(disk: Path, inside: str) -> None:
    source = disk / "all"
    source.mkdir()
    # The folder of a task has its files, that of a repository the folders of its configurations.
    content = disk / "glue" / "cola" if inside == "cola" else disk / "glue"
    shutil.copytree(content, source / inside)
    changes: dict[str, Any] = {"backbones": [{"local": str(disk / "roberta")}], "tasks": ["cola"]}
    direct, placed = (
        make_plan(load_suite(HUB | changes | {"source": {"local": str(place)}}))
        for place in (disk / "glue", source)
    )
    assert [trial.id for trial in placed.trials] == [trial.id for trial in direct.trials]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--source", "nowhere", "--backbone", "roberta"), naming("source", "nowhere")),
        (("--source", "roberta", "--backbone", "roberta"), naming("'cola'", "roberta", "glue", "--task")),
        (("--source", "glue", "--backbone", "roberta,me/tiny-roberta"), naming("--backbone", "not both")),
    ],
    ids=["no folder", "no data", "both"],
)
def test_folders_that_are_not_there_are_refused(
    disk: Path, options: tuple[str, ...], message: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disk)
    ended = call("plan", "hub.yaml", *options)
    assert ended.code == 2
    assert re.search(message, ended.err)


def test_a_source_at_the_top_is_a_folder() -> None:
    with pytest.raises(UserError, match=naming("source", "local", "task")):
        load_suite(HUB | {"source": {"hub": "me/glue"}})


def test_checkpoints_in_place_of_others_keep_their_precision(disk: Path) -> None:
    backbone = {"hub": "me/tiny-roberta", "revision": "main", "label": "RoBERTa", "dtype": "bfloat16"}
    (spec,) = load_suite(HUB | {"backbones": [backbone]}, backbones=[disk / "roberta"]).backbones
    assert spec.model_dump(exclude_unset=True) == {"local": disk / "roberta", "dtype": "bfloat16"}
    with pytest.raises(UserError, match="dtype"):
        load_suite(HUB | {"backbones": [backbone, "minilm-l6"]}, backbones=[disk / "roberta"])


def test_what_is_not_selected_is_not_asked_for(
    tmp_path: Path, new_store: NewStore, call: Call, asked: list[str]
) -> None:
    file, uri = write(tmp_path, MIXED), new_store(tmp_path)
    for part in (("--task", "digits"), ("--backbone", "tiny-random-vit", "--task", "digits")):
        ended = call("plan", file, "--store", uri, *part)
        assert ended.code == 0, ended.err
        assert "digits · tiny-random-vit" in ended.out
    assert asked == []
    with pytest.raises(UnknownNameError, match=naming("task", "'mnist'", "cola, digits")):
        make_plan(suite(MIXED), part=Part(tasks=["mnist"]))


def test_a_part_runs_where_the_rest_cannot_be_planned_and_keeps_its_stored_rows(
    tmp_path: Path, new_store: NewStore, disk: Path
) -> None:
    uri, heard, here = new_store(tmp_path), Notes(), Place(device="cpu")
    part = Part(tasks=["digits"])
    whole = suite(MIXED, source={"local": str(disk / "glue")})
    # A machine with all data plans all rows, one without them runs its part.
    run_suite(whole, store=uri, place=here, part=part, audience=heard)
    assert heard.notes == []
    run_suite(suite(MIXED), store=uri, place=here, part=part, audience=heard)
    assert re.search(naming("nyu-mll/glue", "neither reached"), heard.notes[0])
    plan = Store.existing(uri, "toy").plan()
    assert plan is not None
    assert {row.task for row in plan.rows} == {"digits", "cola"}
    assert set(plan.by_id()) == {id_ for row in plan.rows for id_ in row.trials.values()}
    with pytest.raises(UserError, match="neither reached"):
        run_suite(suite(MIXED), store=uri, place=here, part=Part(tasks=["cola"]))


def test_backbones_of_the_same_weights_are_named(tmp_path: Path, disk: Path) -> None:
    shutil.copytree(disk / "roberta", disk / "copy")
    fields = HUB | {"backbones": [{"local": str(disk / name)} for name in ("roberta", "copy")]}
    with pytest.raises(UserError, match=naming("'local:roberta'", "'local:copy'", "same")):
        make_plan(load_suite(fields | {"source": {"local": str(disk / "glue")}}))
