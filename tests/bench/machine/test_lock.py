"""Tests locks: offline, later and in other processes, only the locked commits and files are used."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tensorbench.fetch
from tensorbench.backbones import BackboneSpec, load
from tensorbench.methods import UserError
from tensorbench.plan.lock import Locked, lock_path
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite_file import load_suite
from tensorbench.plan.trial import Trial
from tensorbench.records.origin import StoredConfig
from tensorbench.records.words import Artifact
from tensorbench.store.store import Store
from tensorbench.tasks import DataSource

from ...messages import naming
from ..hub_stand_in import Hub, client
from ..toy_suites import TEXT, write
from .paper_hub import (
    GLUE,
    ROBERTA,
    SIZES,
    VIT,
    Call,
    ids,
    plan,
    suite_file,
)


def test_fetched_once_a_suite_runs_without_network(
    online: Hub, tmp_path: Path, call: Call, new_store: Callable[[Path], str]
) -> None:
    file = suite_file(tmp_path)
    ended = call("tools", "fetch", file)
    assert ended.code == 0, ended.err
    locked = yaml.safe_load(lock_path(file).read_text())
    assert locked["backbones"]["google/tiny-vit"]["revision"] == online.commit(VIT)
    assert locked["tasks"]["mrpc"] == {
        "repository": "nyu-mll/glue",
        "asked": None,
        "revision": online.commit(GLUE),
        "files": {f"mrpc/{split}-00000-of-00001.parquet": digest(online, split) for split in sorted(SIZES)},
    }
    # No other configuration of the repository, and no code.
    assert not [name for name in online.served if "cola" in name or name.endswith(".py")]
    before = ids(make_plan(load_suite(file)))
    uri = new_store(tmp_path)
    with client(tmp_path / "hub", "http://127.0.0.1:9", offline=True):
        assert ids(make_plan(load_suite(file))) == before
        ran = call("run", file, "--store", uri)
    assert ran.code == 0, ran.err
    assert ran.out.count("✓") == 2
    store = Store.existing(uri, load_suite(file).name)
    for record in store.records():
        stored = store.content(record, Artifact.CONFIG, StoredConfig)
        assert stored is not None
        assert stored.start is not None
        assert stored.start.lock is not None
        assert stored.start.lock.text == lock_path(file).read_text()
        assert stored.start.lock.sha256 == record.provenance["lock_sha256"]


def digest(hub: Hub, split: str) -> str:
    import hashlib

    return hashlib.sha256(
        (hub.folders[GLUE] / f"mrpc/{split}-00000-of-00001.parquet").read_bytes()
    ).hexdigest()


def test_two_revisions_of_a_repository_are_locked_separately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {None: "0" * 40, "step1000": "1" * 40}

    def locked(spec: BackboneSpec, *_: object) -> Locked:
        commit = commits[spec.revision]
        return Locked(repository="me/pythia", asked=spec.revision, revision=commit, files={})

    monkeypatch.setattr(tensorbench.fetch, "_lock_backbone", locked)
    monkeypatch.setattr(tensorbench.fetch, "_warm", lambda *_: None)
    backbones = [
        {"hub": "me/pythia", "label": "trained"},
        {"hub": "me/pythia", "revision": "step1000", "label": "early"},
    ]
    file = write(tmp_path, TEXT, backbones=backbones)
    tensorbench.fetch.fetch(file, update=False, notify=lambda _: None)
    assert [spec.revision for spec in load_suite(file).backbones] == list(commits.values())


@pytest.fixture
def moved(online: Hub) -> Iterator[Callable[[], None]]:
    """Yields a function that adds a commit to the model's and to GLUE's repository."""
    cards = [online.folders[name] / "README.md" for name in (ROBERTA, GLUE)]
    texts = [card.read_text() for card in cards]

    def move() -> None:
        from tensorbench.machine.hub import snapshot

        for card, text in zip(cards, texts, strict=True):
            card.write_text(text + "news\n")
        snapshot.cache_clear()

    yield move
    for card, text in zip(cards, texts, strict=True):
        card.write_text(text)


def test_a_trial_s_id_follows_the_revision_and_a_lock_holds_both(
    moved: Callable[[], None], online: Hub, tmp_path: Path, call: Call
) -> None:
    file = suite_file(tmp_path)
    assert call("tools", "fetch", file).code == 0
    first = ids(make_plan(load_suite(file)))
    commit = online.commit(GLUE)
    assert first == ids(make_plan(load_suite(file, locked=False)))
    moved()
    assert ids(make_plan(load_suite(file))) == first
    unlocked = ids(make_plan(load_suite(file, locked=False)))
    # The vision trial keeps its id, because its repositories did not change.
    assert [a == b for a, b in zip(unlocked, first, strict=True)] == [True, False]
    text = lock_path(file).read_text()
    assert call("tools", "fetch", file).code == 0
    assert lock_path(file).read_text() == text
    assert call("tools", "fetch", "--update", file).code == 0
    assert online.commit(GLUE) != commit
    assert yaml.safe_load(lock_path(file).read_text())["tasks"]["mrpc"]["revision"] == online.commit(GLUE)
    assert ids(make_plan(load_suite(file))) == unlocked


def test_a_trial_names_the_commit_wherever_it_runs(online: Hub) -> None:
    (trial,) = plan(tasks=["mrpc"], backbones=[{"hub": "me/tiny-roberta", "revision": "main"}]).trials
    assert trial.backbone.revision == online.commit(ROBERTA)
    assert trial.weights_hash == f"hub:me/tiny-roberta@{online.commit(ROBERTA)}"
    assert trial.task.source == DataSource(hub="nyu-mll/glue", revision=online.commit(GLUE))
    assert trial.data["data_hash"] == f"hub:nyu-mll/glue@{online.commit(GLUE)}"
    assert type(trial).model_validate(json.loads(trial.model_dump_json())).id == trial.id


def test_a_file_that_is_not_the_locked_one_is_refused(online: Hub, tmp_path: Path, call: Call) -> None:
    file = suite_file(tmp_path)
    assert call("tools", "fetch", file).code == 0
    lock = lock_path(file)
    right = yaml.safe_load(lock.read_text())["backbones"]["google/tiny-vit"]["files"]["config.json"]
    lock.write_text(lock.read_text().replace(right, "f" * 64))
    ended = call("plan", file)
    assert ended.code == 2
    assert (
        f"config.json of hub repository google/tiny-vit at {online.commit(VIT)} is not the locked"
        in ended.err
    )
    assert f"got {right}" in ended.err


def test_files_of_both_tasks_in_a_shared_repository_are_checked(
    online: Hub, tmp_path: Path, call: Call
) -> None:
    file = suite_file(tmp_path, tasks=["mrpc", "cola"], backbones=[{"hub": "me/tiny-roberta"}])
    assert call("tools", "fetch", file).code == 0
    lock = lock_path(file)
    for task in ("mrpc", "cola"):
        name = f"{task}/train-00000-of-00001.parquet"
        right = yaml.safe_load(lock.read_text())["tasks"][task]["files"][name]
        text = lock.read_text()
        lock.write_text(text.replace(right, "f" * 64))
        with client(tmp_path / "hub", online.endpoint):
            row = next(row for row in load_suite(file).tasks if row.task == task)
            with pytest.raises(UserError, match=naming(name, "nyu-mll/glue", "locked")):
                row.lookup().examples()
        lock.write_text(text)


def test_locked_files_are_used_in_other_processes(online: Hub, tmp_path: Path, call: Call) -> None:
    file = suite_file(tmp_path, tasks=["mrpc"], backbones=[{"hub": "me/tiny-roberta"}])
    assert call("tools", "fetch", file).code == 0
    lock, text = lock_path(file), lock_path(file).read_text()
    entries = yaml.safe_load(text)
    weights = entries["backbones"]["me/tiny-roberta"]["files"]["model.safetensors"]
    rows = entries["tasks"]["mrpc"]["files"]["mrpc/train-00000-of-00001.parquet"]
    lock.write_text(text.replace(weights, "e" * 64).replace(rows, "f" * 64))
    # A plan downloads neither file.
    with client(tmp_path / "another", online.endpoint):
        (trial,) = make_plan(load_suite(file)).trials
        sent: Trial = pickle.loads(pickle.dumps(trial))
        with pytest.raises(UserError, match=naming("model.safetensors", "locked", "e" * 64, weights)):
            load(sent.backbone)
        with pytest.raises(UserError, match=naming("train-", "locked", "f" * 64, rows)):
            sent.task.lookup().examples()
    # The lock is not part of the stored record.
    (unlocked,) = make_plan(load_suite(file, locked=False)).trials
    assert (sent.id, sent.model_dump()) == (unlocked.id, unlocked.model_dump())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbones": [{"hub": "me/other"}]}, naming("me/other", "`tensorbench tools fetch`")),
        (
            {"backbones": [{"hub": "me/tiny-roberta", "revision": "v2"}]},
            "me/tiny-roberta at revision v2",
        ),
        ({"tasks": ["cola"]}, "cola from nyu-mll/glue"),
        (
            {"tasks": [{"task": "mrpc", "source": {"hub": "me/glue"}}]},
            "mrpc from me/glue",
        ),
    ],
)
def test_entries_missing_from_the_lock_are_refused(
    online: Hub, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    files = {"config.json": "0" * 64}
    entries = {
        "backbones": {
            "me/tiny-roberta": {"repository": "me/tiny-roberta", "revision": "0" * 40, "files": files}
        },
        "tasks": {"mrpc": {"repository": "nyu-mll/glue", "revision": "0" * 40, "files": files}},
    }
    text: dict[str, Any] = {"tasks": ["mrpc"], "backbones": [{"hub": "me/tiny-roberta"}]}
    file = suite_file(tmp_path, **{**text, **changes})
    lock_path(file).write_text(yaml.safe_dump({"version": 1, **entries}))
    with pytest.raises(UserError, match=message):
        load_suite(file)


def test_a_lock_with_a_bad_revision_is_refused_by_field(tmp_path: Path) -> None:
    file = suite_file(tmp_path)
    lock_path(file).write_text("version: 1\ntasks: {mrpc: {repository: a/b, revision: main, files: {}}}\n")
    with pytest.raises(UserError, match=naming("suite.lock.yaml", "tasks.mrpc.revision", "'main'")):
        load_suite(file)


def test_a_suite_without_a_hub_needs_no_lock(tmp_path: Path, call: Call) -> None:
    file = suite_file(
        tmp_path, backbones=["tiny-random-vit"], tasks=["digits"], training={"batch_size": 8, "epochs": 1}
    )
    ended = call("tools", "fetch", file)
    assert (ended.code, lock_path(file).exists()) == (0, False)
    assert "no hub repository" in ended.out


@pytest.mark.parametrize(
    ("named", "repository", "architecture", "weights"),
    [
        ("hf_hub:me/timm-vit", "me/timm-vit", "test_vit", ""),
        ("hf_hub:me/timm-vit@main", "me/timm-vit", "test_vit", ""),
        ("test_vit", "timm/test_vit.r160_in1k", "test_vit", ""),
        ("test_vit", "timm/test_vit.r160_in1k", "test_vit2", "timm:test_vit:"),
    ],
)
def test_a_timm_model_of_the_hub_is_locked_too(
    online: Hub,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    repository: str,
    architecture: str,
    weights: str,
) -> None:
    import timm
    from safetensors.torch import save_file

    settings = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 160, 160], "classifier": "head"}
    folder = tmp_path / "timm"
    folder.mkdir()
    save_file(timm.create_model("test_vit").state_dict(), folder / "model.safetensors")
    config = {"architecture": architecture, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(online.folders, f"models/{repository}", folder)
    commit = online.commit(f"models/{repository}")
    file = suite_file(tmp_path, backbones=[{"timm": named}], tasks=[{"task": "eurosat", "train_size": 40}])
    ended = call("tools", "fetch", file)
    assert ended.code == 0, ended.err
    entry = yaml.safe_load(lock_path(file).read_text())["backbones"][f"timm:{named}"]
    assert (entry["repository"], entry["revision"]) == (repository, commit)
    (folder / "README.md").write_text("news")
    with client(tmp_path / "hub", "http://127.0.0.1:9", offline=True):
        (trial,) = make_plan(load_suite(file)).trials
        assert trial.weights_hash == f"{weights}hub:{repository}@{commit}"
        assert type(trial).model_validate(json.loads(trial.model_dump_json())).id == trial.id
        assert load(trial.backbone).info.weights_hash == trial.weights_hash


def test_timm_architectures_of_one_repository_have_trials_of_their_own(
    online: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = "timm/vit_base_patch16_clip_224.openai"
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    monkeypatch.setitem(online.folders, f"models/{repository}", folder)
    names = [f"vit_base_patch16_clip_{activation}224.openai" for activation in ("", "quickgelu_")]
    made = plan(tasks=["digits"], backbones=[{"timm": name} for name in names])
    assert [row.backbone for row in made.rows] == [f"timm:{name}" for name in names]
    assert len({trial.id for trial in made.trials}) == 2
    assert made.trials[0].weights_hash == f"hub:{repository}@{online.commit(f'models/{repository}')}"
