"""Tests commits of the hub: each experiment keeps those of its first start, and needs no network later."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tensorbench.backbones import load
from tensorbench.execution.session import begin_suite, session
from tensorbench.methods import UserError
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import load_suite
from tensorbench.records.words import Tag
from tensorbench.store.commits import held
from tensorbench.store.store import Store
from tensorbench.tasks import DataSource

from ...fixtures import Call
from ...messages import naming
from ..hub_stand_in import Hub, client
from ..services import wait_until
from .paper_hub import EUROSAT, GLUE, ROBERTA, VIT, ids, plan, suite_file

Move = Callable[[], None]

TEXT = {"tasks": [{"task": "mrpc", "max_tokens": 64}], "backbones": [{"hub": "me/tiny-roberta"}]}


def test_fetched_once_a_suite_runs_without_network(
    online: Hub, tmp_path: Path, call: Call, new_store: Callable[[Path], str]
) -> None:
    file = suite_file(tmp_path)
    ended = call("tools", "fetch", file)
    assert ended.code == 0, ended.err
    assert f"model google/tiny-vit at main: {online.commit(VIT)}" in ended.out
    assert f"data set nyu-mll/glue at main: {online.commit(GLUE)}" in ended.out
    # No other configuration of the repository, and no code.
    assert not [name for name in online.served if "cola" in name or name.endswith(".py")]
    before = ids(make_plan(load_suite(file)))
    uri = new_store(tmp_path)
    with client(tmp_path / "hub", "http://127.0.0.1:9", offline=True):
        assert ids(make_plan(load_suite(file))) == before
        ran = call("run", file, "--store", uri)
        assert ran.code == 0, ran.err
        assert ran.out.count("✓") == 2
        again = call("run", file, "--store", uri)
    assert again.code == 0, again.err
    assert "moved" not in again.err


def test_what_an_experiment_holds_is_fetched_and_not_todays_branch(
    moved: Move, online: Hub, tmp_path: Path, call: Call, new_store: Callable[[Path], str]
) -> None:
    file, uri = suite_file(tmp_path, **TEXT), new_store(tmp_path)
    # The stand-in serves today's commit alone, so the earlier one is fetched while it is that.
    assert call("tools", "fetch", file).code == 0
    Store.create(uri, "hub").begin_suite(make_plan(load_suite(file)))
    commit = online.commit(ROBERTA)
    moved()
    ended = call("tools", "fetch", file, "--store", uri)
    assert ended.code == 0, ended.err
    assert f"model me/tiny-roberta at main: {commit}" in ended.out
    assert f"moved to {online.commit(ROBERTA)}" in ended.err
    (tmp_path / "other").mkdir()
    elsewhere = call("tools", "fetch", file, "--store", new_store(tmp_path / "other"))
    assert f"model me/tiny-roberta at main: {online.commit(ROBERTA)}" in elsewhere.out


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a suite with a model and data of the hub."""
    return suite_file(tmp_path, **TEXT)


@pytest.fixture
def store(uri: str) -> Store:
    return Store.create(uri, "hub")


@pytest.fixture
def moved(online: Hub) -> Iterator[Move]:
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


@pytest.mark.parametrize("command", ["run", "plan"])
def test_an_experiment_keeps_the_commits_of_its_first_start(
    moved: Move, online: Hub, file: Path, uri: str, call: Call, command: str
) -> None:
    first = ids(make_plan(load_suite(file)))
    assert call("run", file, "--store", uri).code == 0
    commits = {"model me/tiny-roberta at main": ROBERTA, "data set nyu-mll/glue at main": GLUE}
    kept = {revision: online.commit(name) for revision, name in commits.items()}
    store = Store.existing(uri, "hub")
    assert store.commits() == kept
    moved()
    assert ids(make_plan(load_suite(file))) != first
    ended = call(command, file, "--store", uri, *["--json"] * (command == "plan"))
    assert ended.code == 0, ended.err
    said = " ".join((ended.out + ended.err).split())
    for revision, name in commits.items():
        assert f"{revision} has moved to {online.commit(name)}. 'hub' stays at {kept[revision]}" in said
    assert {record.trial_id for record in store.records()} == set(first)
    assert store.commits() == kept
    if command == "plan":
        assert json.loads(ended.out)["forecast"]["parts"][0]["open"] == 0
    other = suite_file(file.parent, **TEXT, name="other")
    assert call("run", other, "--store", uri).code == 0
    assert Store.existing(uri, "other").commits()["model me/tiny-roberta at main"] == online.commit(ROBERTA)


def test_two_starts_cannot_take_two_commits(
    moved: Move, online: Hub, file: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch moves between their plans. The second looks before or after the first stored its commits."""
    first = make_plan(load_suite(file))
    commit = online.commit(ROBERTA)
    moved()
    second = make_plan(load_suite(file))
    store.begin_suite(first)
    store.begin_suite(first)
    with pytest.raises(UserError, match=naming("at main", "another start of 'hub'")):
        store.begin_suite(second)
    with monkeypatch.context() as patch:
        patch.setattr(store, "commits", dict)
        with pytest.raises(UserError, match=naming("at main", "another start of 'hub'")):
            store.begin_suite(second)
    assert store.commits()["model me/tiny-roberta at main"] == commit


def test_a_first_start_that_died_before_storing_its_suite_holds_its_commits(
    moved: Move, online: Hub, file: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = online.commit(ROBERTA)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.begin_suite(make_plan(load_suite(file)))
    moved()
    assert store.commits()["model me/tiny-roberta at main"] == commit
    suite, notes = held(load_suite(file), store.uri)
    assert suite.commits["model me/tiny-roberta at main"] == commit
    assert any("has moved" in note for note in notes)


def test_a_malformed_tag_of_commits_is_named(store: Store) -> None:
    run = store.begin("hub")
    store.tag(run.run_id, Tag.COMMITS, "[1]")
    with pytest.raises(UserError, match=naming("commits", run.run_id, "[1]")):
        store.commits()


def test_of_two_first_starts_at_once_the_second_waits_for_the_commits_of_the_first(
    moved: Move, online: Hub, file: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins when the first has just read that no commits are stored."""
    plans = [make_plan(load_suite(file))]
    commit = online.commit(ROBERTA)
    moved()
    plans.append(make_plan(load_suite(file)))
    read, begun, said, waits = Store.commits, list[Future[str]](), list[str](), threading.Event()

    def note(text: str) -> None:
        said.append(text)
        waits.set()

    with (
        session(store) as first,
        session(Store.existing(store.uri, "hub"), note) as second,
        ThreadPoolExecutor(1) as pool,
    ):

        def commits(self: Store) -> dict[str, str]:
            stored = read(self)
            if not begun:
                begun.append(pool.submit(begin_suite, second, plans[1]))
                wait_until(lambda: waits.is_set() or begun[0].done())
            return stored

        monkeypatch.setattr(Store, "commits", commits)
        begin_suite(first, plans[0])
        with pytest.raises(UserError, match=naming("at main", "another start of 'hub'")):
            begun[0].result()
    assert "Another start of 'hub'" in said[0]
    assert "60 seconds" in said[0]
    assert len(said) == 1
    assert read(store)["model me/tiny-roberta at main"] == commit


def test_a_suite_resolves_a_branch_once(moved: Move, file: Path) -> None:
    suite = load_suite(file)
    first = ids(make_plan(suite))
    moved()
    assert ids(make_plan(suite)) == first
    assert ids(make_plan(load_suite(file))) != first


def test_a_suite_without_a_hub_has_no_commits(tmp_path: Path, call: Call) -> None:
    training = {"batch_size": 8, "epochs": 1}
    file = suite_file(tmp_path, backbones=["tiny-random-vit"], tasks=["digits"], training=training)
    ended = call("tools", "fetch", file)
    assert ended.code == 0, ended.err
    assert " at main" not in ended.out


def test_a_trial_names_the_commit_wherever_it_runs(online: Hub) -> None:
    (trial,) = plan(tasks=["mrpc"], backbones=[{"hub": "me/tiny-roberta", "revision": "main"}]).trials
    assert trial.backbone.revision == online.commit(ROBERTA)
    assert trial.weights_hash == f"hub:me/tiny-roberta@{online.commit(ROBERTA)}"
    assert trial.task.source == DataSource(hub="nyu-mll/glue", revision=online.commit(GLUE))
    assert trial.data["data_hash"] == f"hub:nyu-mll/glue@{online.commit(GLUE)}"
    assert type(trial).model_validate(json.loads(trial.model_dump_json())).id == trial.id


@pytest.mark.parametrize(
    ("named", "repository", "architecture", "weights"),
    [
        ("hf_hub:me/timm-vit", "me/timm-vit", "test_vit", ""),
        ("hf_hub:me/timm-vit@main", "me/timm-vit", "test_vit", ""),
        ("test_vit", "timm/test_vit.r160_in1k", "test_vit", ""),
        ("test_vit", "timm/test_vit.r160_in1k", "test_vit2", "timm:test_vit:"),
    ],
)
def test_a_timm_model_of_the_hub_keeps_its_commit(
    online: Hub,
    tmp_path: Path,
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
    suite = load_suite(
        suite_file(tmp_path, backbones=[{"timm": named}], tasks=[{"task": "eurosat", "train_size": 40}])
    )
    (trial,) = make_plan(suite).trials
    load(trial.backbone)
    eurosat = online.commit(EUROSAT)
    assert suite.commits == {
        f"model timm:{named} at main": commit,
        "data set timm/eurosat-rgb at main": eurosat,
    }
    (folder / "README.md").write_text("news")
    with client(tmp_path / "hub", "http://127.0.0.1:9", offline=True):
        (again,) = make_plan(load_suite(tmp_path / "suite.yaml").held_at(suite.commits)).trials
        assert again.id == trial.id
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
