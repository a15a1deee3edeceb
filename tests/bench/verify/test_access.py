"""Tests that files named by a pack are opened only in folders that the user allows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tensorbench.checks.verify import verify
from tensorbench.machine.files import sha256_of
from tensorbench.methods import UserError
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.records.pack_format import EXPERIMENT
from tensorbench.records.words import Artifact, Tag
from tensorbench.store.access import HUB, Access
from tensorbench.store.opening import unpack
from tensorbench.store.store import Store
from tensorbench.tasks.description import Description
from tensorbench.tasks.task import DataSource

from ...fixtures import Call
from ...packs import Files, changed, edit_arrays, edit_json, edit_run, packed
from ..toy_runs import SHORT, run_inline
from ..toy_suites import TEXT, plan

#: The files that this process opens and the hosts that it contacts, while `_watched` is True.
_events: list[str] = []
_watched = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo"):
        _events.append(f"{event} {arguments[0]!r}")
        if event.startswith("socket"):
            raise AssertionError(f"{event}: {arguments}")


sys.addaudithook(_audit)


@pytest.fixture
def watched() -> Iterator[list[str]]:
    global _watched
    _events.clear()
    _watched = True
    yield _events
    _watched = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's own data."""
    folder = tmp_path_factory.mktemp("own")
    lines = [f"{word} number {i},{label}" for i in range(60) for word, label in (("good", 1), ("bad", 0))]
    (folder / "words.csv").write_text("\n".join(["text,label", *lines]))
    return folder


@pytest.fixture(scope="module")
def pack(folder: Path, tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Path:
    """A pack of a trial on the user's own data, with its adapter."""
    place = tmp_path_factory.mktemp("store")
    store = Store.create(new_store(place), "toy")
    data = {
        "name": "words",
        "csv": str(folder / "words.csv"),
        "text": "text",
        "label": "label",
        "max_tokens": 16,
    }
    run_inline(store, plan(TEXT, tasks=[data], methods=["lora"], training=SHORT))
    return packed(store.uri, "toy", place, adapters=True)


def naming(**parts: dict[str, Any]) -> Callable[[Files], None]:
    """Returns a change of a pack's files. It replaces fields of the trial in the configuration and the plan.

    It makes the hashes valid again. `parts` are fields that do not affect the trial's id, such as paths. The
    suites name the same backbone.
    """

    def renamed(text: bytes) -> bytes:
        document = json.loads(text)
        for trial in [document["trial"]] if "trial" in document else document.get("trials", ()):
            trial |= {
                part: trial[part] | change if part == "task" else change for part, change in parts.items()
            }
        suite = document.get("suite")
        if isinstance(suite, dict):
            suite |= {"backbones": [parts["backbone"]] if "backbone" in parts else suite["backbones"]}
        elif "start" in document:
            file = document["start"]["suite"]
            fields = renamed(json.dumps({"suite": yaml.safe_load(file["text"])}).encode())
            file |= {"text": yaml.safe_dump(json.loads(fields)["suite"]), "cleaned": True}
        return json.dumps(document).encode()

    def edit(content: Files) -> None:
        for name in [name for name in content if name.endswith(("plan.json", "suite.json"))]:
            content[name] = renamed(content[name])
        # The pack has one trial, so that all lines are those of its configuration.
        lines: list[Any] = []

        def config_of(experiment: dict[str, Any]) -> None:
            text = "\n".join(experiment["lines"][number] for number in lines)
            experiment["lines"] = renamed(text.encode()).decode().split("\n")
            lines[:] = experiment["lines"]

        def counted(run: dict[str, Any]) -> None:
            config = sha256_of("\n".join(lines).encode())
            hashes = json.loads(run["tags"][Tag.HASHES]) | {Artifact.CONFIG: config}
            run["tags"][Tag.HASHES] = json.dumps(hashes)
            run["config"] = len(lines)

        edit_arrays(lambda arrays: lines.extend(arrays["config"].tolist()))(content)
        edit_json(EXPERIMENT, config_of)(content)
        edit_run(counted)(content)
        edit_arrays(lambda arrays: arrays.update(config=np.arange(len(lines), dtype=np.uint32)))(content)

    return edit


def csv(path: Path | str) -> dict[str, dict[str, Any]]:
    return {"task": {"data": {"csv": str(path), "text": "text", "label": "label"}}}


#: Data of a hub's repository.
OF_HUB = {"hub": "a/b", "text": "text", "label": "label", "classes": ["0", "1"]}
#: Sources of data and backbones that a pack may name but that must not be opened.
NAMED: dict[str, Callable[[Path], dict[str, dict[str, Any]]]] = {
    "a pipe": lambda folder: csv(folder / "pipe"),
    "a device": lambda folder: csv("/dev/zero"),
    "a file": lambda folder: csv("/etc/passwd"),
    "data of a hub": lambda folder: {"task": {"data": OF_HUB}},
    "data of a hub in a folder": lambda folder: {"task": {"data": OF_HUB, "source": {"local": str(folder)}}},
    "a checkpoint": lambda folder: {"backbone": {"local": str(folder)}},
    "a checkpoint of a hub": lambda folder: {"backbone": {"hub": "a/b"}},
    "weights of timm": lambda folder: {"backbone": {"timm": "hf-hub:a/b"}},
}


@pytest.mark.parametrize("what", NAMED)
def test_no_command_opens_what_a_pack_names(
    pack: Path, tmp_path: Path, what: str, watched: list[str], call: Call, new_store: Callable[[Path], str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    parts = NAMED[what](tmp_path)
    other = changed(pack, tmp_path / "b.tensorbench.zip", naming(**parts))
    watched.clear()
    result = verify(str(other))
    assert not result.faults
    assert result.ok == ("task" in parts)
    uri = new_store(tmp_path)
    for command in (
        ("report", other, "--out", tmp_path / "report", "--format", "json"),
        ("unpack", other, "--store", uri),
        ("report", "toy", "--out", tmp_path / "again", "--format", "json", "--store", uri),
    ):
        assert call(*command).code == 0
    (record,) = Store.existing(uri, "toy").records()
    assert call("show", record.run_id, "--store", uri).code == 0
    assert not verify(store=uri).faults
    ended = call("export", record.run_id, "--out", tmp_path / "export", "--store", uri)
    assert ended.code == 2
    assert "--open" in ended.err
    (missing, *_) = verify(str(other), reruns=1).unchecked
    assert "--open" in missing.why
    assert not [event for event in watched if event.startswith("socket")]
    places = [str(tmp_path / "pipe"), "/dev/zero", "/etc/passwd", str(tmp_path)]
    assert not [event for event in watched if event.endswith(tuple(f"{place!r}" for place in places))]


def test_files_in_an_allowed_folder_are_opened(
    pack: Path, folder: Path, tmp_path: Path, new_store: Callable[[Path], str], call: Call
) -> None:
    result = verify(str(pack), reruns=1, opened=[str(folder)])
    assert result.ok
    assert len(result.reruns) == 1
    uri = new_store(tmp_path)
    unpack(pack, store=uri)
    run = Store.existing(uri, "toy").records()[0].run_id
    ended = call("export", run, "--out", tmp_path / "export", "--open", folder, "--store", uri)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("pipe", "no regular file"),
        ("link", "leads out of it"),
        ("folder", "leads out of it"),
        ("loop", "leads out of it"),
        ("a" * 5000, "there is no aaa"),
        ("../words.csv", "leads out of the folders"),
        ("missing", "there is no missing"),
    ],
)
def test_nothing_outside_of_the_folder_is_opened(
    pack: Path, folder: Path, tmp_path: Path, place: str, message: str
) -> None:
    (tmp_path / "inner").mkdir()
    os.mkfifo(tmp_path / "inner" / "pipe")
    (tmp_path / "inner" / "link").symlink_to(folder / "words.csv")
    # A link to a folder inside the allowed one, which contains a link leading outside.
    for name in ("folder", "beside"):
        (tmp_path / "inner" / name).mkdir()
    (tmp_path / "inner" / "folder" / "link").symlink_to(tmp_path / "inner" / "beside")
    (tmp_path / "inner" / "beside" / "link").symlink_to(folder / "words.csv")
    (tmp_path / "inner" / "loop").mkdir()
    (tmp_path / "inner" / "loop" / "link").symlink_to("link")
    (tmp_path / "words.csv").write_text("text,label\n")
    other = changed(pack, tmp_path / "b.tensorbench.zip", naming(**csv(place)))
    result = verify(str(other), reruns=1, opened=[str(tmp_path / "inner")])
    (missing,) = result.unchecked
    assert missing.what == "score of another run"
    assert message in missing.why


def test_data_of_a_repository_may_lie_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    row = TaskRow.model_validate({"task": "own", "data": OF_HUB, "source": {"local": "b"}})
    assert Access([str(tmp_path)]).task(row).source == DataSource(local=tmp_path / "b")
    with pytest.raises(UserError, match=r"read from b.*--open FOLDER"):
        Access([HUB]).task(row)
    # A file of the user's own is no data of that folder.
    own = row.model_copy(update={"data": Description(csv=Path("words.csv"), text="text", label="label")})
    with pytest.raises(UserError, match=r"no words\.csv"):
        Access([str(tmp_path)]).task(own)


def test_a_folder_that_is_not_there(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--open"):
        verify(str(pack), opened=[str(tmp_path / "nowhere")])
