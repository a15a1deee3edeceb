"""Hub backbones and tasks: resolved once, locked, the same offline; read from the hub's own formats."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml

from bench.backbones import BackboneSpec, load
from bench.inputs import ImageInput, TextInput
from bench.plan.make import make_plan
from bench.plan.rows import Plan
from bench.plan.trial import Trial
from bench.suite.load import load_suite
from bench.suite.lock import lock_path
from bench.suite.rows import TaskRow
from bench.suite.suite import Suite
from bench.tasks import TASKS, DataSource, Examples, ImageSplit, PreparedData, Task, TextSplit, prepare
from methods import UserError
from methods.validation import validate

from ..hub_stand_in import Hub, client, encoded, serve, write_glue, write_images

Call = Callable[..., Any]

GLUE, EUROSAT = "datasets/nyu-mll/glue", "datasets/timm/eurosat-rgb"
DTD_PARTS, DTD_WHOLE = "datasets/HuggingFaceM4/DTD_Describable-Textures-Dataset", "datasets/tanganke/dtd"
VIT, ROBERTA = "models/google/tiny-vit", "models/me/tiny-roberta"
SIZES = {"train": 80, "validation": 20, "test": 10}
TEXTURES = TASKS.get("dtd").classes
LAND = TASKS.get("eurosat").classes

SUITE: dict[str, Any] = {
    "name": "hub",
    "backbones": [{"hub": "google/tiny-vit"}, {"hub": "me/tiny-roberta"}],
    "tasks": [{"task": "eurosat", "train_size": 40}, {"task": "mrpc", "max_tokens": 64}],
    "methods": [{"method": "lora", "rank": 2}],
    "seeds": [0],
    "training": {"lr": 5e-3, "batch_size": 16, "epochs": 1},
}
IMAGES = ImageInput(16, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """What the paper's suites take from the hub, small. Who changes a file puts it back."""
    folder = tmp_path_factory.mktemp("hub")
    with serve() as hub:
        hub.folders = {
            VIT: save_vit(folder / "vit"),
            ROBERTA: save_roberta(folder / "roberta"),
            GLUE: write_glue(write_glue(folder / "glue", "cola", SIZES), "mrpc", SIZES),
            EUROSAT: write_images(
                folder / "eurosat", {"train": 6, "validation": 2, "test": 2}, LAND, shards=2
            ),
            DTD_PARTS: folder / "dtd",
            DTD_WHOLE: write_images(folder / "dtd-merged", {"train": 10, "test": 2}, TEXTURES),
        }
        write_images(folder / "dtd" / "partition_1", {"train": 5, "validation": 5, "test": 2}, TEXTURES)
        for name in hub.folders:
            (hub.folders[name] / "README.md").write_text(f"# {name}\n")
        yield hub


def save_vit(folder: Path) -> Path:
    """As google/vit-base-patch16-224 is: a classifier with its head, and how it wants its images."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    config = ViTConfig(**shape, image_size=32, patch_size=8, num_labels=5)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_roberta(folder: Path) -> Path:
    """As roberta-base is: a masked language model, and its tokenizer."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    from bench.backbones.random_weights import byte_tokenizer

    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    config = RobertaConfig(**shape, vocab_size=260, max_position_embeddings=130, type_vocab_size=1)
    RobertaForMaskedLM(config).save_pretrained(folder)
    byte_tokenizer(128).save_pretrained(folder)
    return folder


@pytest.fixture
def online(hub: Hub, tmp_path: Path) -> Iterator[Hub]:
    """The hub, seen by a client whose cache is empty."""
    hub.served.clear()
    with client(tmp_path / "hub", hub.endpoint):
        yield hub


def suite_file(folder: Path, **changes: Any) -> Path:
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump({**SUITE, **changes}))
    return file


def plan(**changes: Any) -> Plan:
    return make_plan(validate(Suite, {**SUITE, **changes}, "hub suite"))


def task_of(name: str, source: DataSource | None = None) -> Task:
    return TaskRow(task=name, source=source).lookup()


def ids(made: Plan) -> list[str]:
    return [trial.id for trial in made.trials]


# --- fetch and its lock ---


def test_fetched_once_a_suite_runs_without_network(
    online: Hub, tmp_path: Path, call: Call, new_store: Callable[[Path], str]
) -> None:
    file = suite_file(tmp_path)
    ended = call("fetch", file)
    assert ended.code == 0, ended.err
    locked = yaml.safe_load(lock_path(file).read_text())
    assert locked["backbones"]["google/tiny-vit"]["revision"] == online.commit(VIT)
    assert locked["tasks"]["mrpc"] == {
        "repository": "nyu-mll/glue",
        "asked": None,
        "revision": online.commit(GLUE),
        "files": {f"mrpc/{split}-00000-of-00001.parquet": digest(online, split) for split in sorted(SIZES)},
    }
    # Neither other configurations of the repository nor any code.
    assert not [name for name in online.served if "cola" in name or name.endswith(".py")]
    before = ids(make_plan(load_suite(file)))
    with client(tmp_path / "hub", "http://127.0.0.1:9", offline=True):
        assert ids(make_plan(load_suite(file))) == before
        ran = call("run", file, "--store", new_store(tmp_path))
    assert ran.code == 0, ran.err
    assert ran.out.count("✓") == 2


def digest(hub: Hub, split: str) -> str:
    import hashlib

    return hashlib.sha256(
        (hub.folders[GLUE] / f"mrpc/{split}-00000-of-00001.parquet").read_bytes()
    ).hexdigest()


@pytest.fixture
def moved(online: Hub) -> Iterator[Callable[[], None]]:
    """Moves the main branch of the model and of GLUE on, by a commit that adds a line to their cards."""
    cards = [online.folders[name] / "README.md" for name in (ROBERTA, GLUE)]
    texts = [card.read_text() for card in cards]

    def move() -> None:
        from bench.sources.hub import snapshot

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
    assert call("fetch", file).code == 0
    first = ids(make_plan(load_suite(file)))
    commit = online.commit(GLUE)
    assert first == ids(make_plan(load_suite(file, locked=False)))
    moved()
    assert ids(make_plan(load_suite(file))) == first
    unlocked = ids(make_plan(load_suite(file, locked=False)))
    # The vision pair did not move.
    assert [a == b for a, b in zip(unlocked, first, strict=True)] == [True, False]
    text = lock_path(file).read_text()
    assert call("fetch", file).code == 0
    assert lock_path(file).read_text() == text
    assert call("fetch", "--update", file).code == 0
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
    assert call("fetch", file).code == 0
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


def test_of_a_repository_that_two_tasks_share_the_files_of_both_are_checked(
    online: Hub, tmp_path: Path, call: Call
) -> None:
    file = suite_file(tmp_path, tasks=["mrpc", "cola"], backbones=[{"hub": "me/tiny-roberta"}])
    assert call("fetch", file).code == 0
    lock = lock_path(file)
    for task in ("mrpc", "cola"):
        name = f"{task}/train-00000-of-00001.parquet"
        right = yaml.safe_load(lock.read_text())["tasks"][task]["files"][name]
        text = lock.read_text()
        lock.write_text(text.replace(right, "f" * 64))
        with client(tmp_path / "hub", online.endpoint):
            row = next(row for row in load_suite(file).tasks if row.task == task)
            with pytest.raises(
                UserError, match=f"{name} of hub repository nyu-mll/glue .* is not the locked"
            ):
                row.lookup().examples()
        lock.write_text(text)


def test_what_is_locked_goes_with_a_trial_to_other_processes(online: Hub, tmp_path: Path, call: Call) -> None:
    file = suite_file(tmp_path, tasks=["mrpc"], backbones=[{"hub": "me/tiny-roberta"}])
    assert call("fetch", file).code == 0
    lock, text = lock_path(file), lock_path(file).read_text()
    entries = yaml.safe_load(text)
    weights = entries["backbones"]["me/tiny-roberta"]["files"]["model.safetensors"]
    rows = entries["tasks"]["mrpc"]["files"]["mrpc/train-00000-of-00001.parquet"]
    lock.write_text(text.replace(weights, "e" * 64).replace(rows, "f" * 64))
    # A plan downloads neither file.
    with client(tmp_path / "another", online.endpoint):
        (trial,) = make_plan(load_suite(file)).trials
        sent: Trial = pickle.loads(pickle.dumps(trial))
        with pytest.raises(
            UserError, match=rf"model.safetensors of .* not the locked .*e{{64}}, got {weights}"
        ):
            load(sent.backbone)
        with pytest.raises(UserError, match=rf"train-.* not the locked .*f{{64}}, got {rows}"):
            sent.task.lookup().examples()
    # It is no part of what is stored.
    (unlocked,) = make_plan(load_suite(file, locked=False)).trials
    assert (sent.id, sent.model_dump()) == (unlocked.id, unlocked.model_dump())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbones": [{"hub": "me/other"}]}, "does not lock me/other: run `tensorbench fetch`"),
        (
            {"backbones": [{"hub": "me/tiny-roberta", "revision": "v2"}]},
            "does not lock me/tiny-roberta at revision v2",
        ),
        ({"tasks": ["cola"]}, "does not lock cola from nyu-mll/glue"),
        (
            {"tasks": [{"task": "mrpc", "source": {"hub": "me/glue"}}]},
            "does not lock mrpc from me/glue",
        ),
    ],
)
def test_what_the_lock_lacks_is_refused(
    online: Hub, tmp_path: Path, changes: dict[str, Any], said: str
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
    with pytest.raises(UserError, match=said):
        load_suite(file)


def test_a_lock_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    file = suite_file(tmp_path)
    lock_path(file).write_text("version: 1\ntasks: {mrpc: {repository: a/b, revision: main, files: {}}}\n")
    with pytest.raises(UserError, match=r"suite.lock.yaml: tasks.mrpc.revision: .*pattern.*got 'main'"):
        load_suite(file)


def test_a_suite_without_a_hub_needs_no_lock(tmp_path: Path, call: Call) -> None:
    file = suite_file(
        tmp_path, backbones=["tiny-random-vit"], tasks=["digits"], training={"batch_size": 8, "epochs": 1}
    )
    ended = call("fetch", file)
    assert (ended.code, lock_path(file).exists()) == (0, False)
    assert "it uses no hub repository" in ended.out


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
    ended = call("fetch", file)
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


# --- no network, no such thing ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tasks": ["cola"], "backbones": ["tiny-random-bert"]},
            r"hub data set nyu-mll/glue can be neither .*`tensorbench fetch SUITE.yaml`.*"
            r"`hf download nyu-mll/glue --repo-type dataset`.*`source: \{local: FOLDER\}`",
        ),
        (
            {"tasks": ["digits"], "backbones": [{"hub": "google/tiny-vit"}]},
            r"hub model google/tiny-vit can be .*`hf download google/tiny-vit`.*HF_HOME.*`local:`",
        ),
    ],
)
def test_without_network_the_message_says_what_to_download_and_where_to_put_it(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    for offline in (False, True):
        with (
            client(tmp_path, "http://127.0.0.1:9", offline=offline),
            pytest.raises(UserError, match=f"(?s){said}"),
        ):
            plan(**changes)


def test_files_of_a_locked_data_set_that_are_missing_offline_are_named(online: Hub, tmp_path: Path) -> None:
    task = task_of("cola", DataSource(revision=online.commit(GLUE)))
    with client(tmp_path / "none", "http://127.0.0.1:9", offline=True):
        # Its identity needs no network, its examples do.
        assert task.identity_hash()
        with pytest.raises(UserError, match=r"--revision [0-9a-f]{40} --include 'cola/\*.parquet'"):
            task.examples()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbones": [{"hub": "google/no-vit"}, {"hub": "me/tiny-roberta"}]}, "no hub model google/no-vit"),
        (
            {
                "tasks": [{"task": "mrpc", "source": {"hub": "me/glue"}}],
                "backbones": [{"hub": "me/tiny-roberta"}],
            },
            "no hub data set me/glue",
        ),
        (
            {
                "tasks": [{"task": "mrpc", "source": {"revision": "v9"}}],
                "backbones": [{"hub": "me/tiny-roberta"}],
            },
            "hub data set nyu-mll/glue has no revision v9",
        ),
        (
            {
                "tasks": [{"task": "mrpc", "source": {"hub": "no spaces please"}}],
                "backbones": ["tiny-random-bert"],
            },
            r"'no spaces please' is not a hub id \(owner/dataset\)",
        ),
    ],
)
def test_names_that_the_hub_does_not_have(online: Hub, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(**changes)


# --- backbones in the formats of the paper's ---


def test_checkpoints_as_the_hub_has_them_load_with_their_weights(online: Hub) -> None:
    from transformers import RobertaForMaskedLM, ViTForImageClassification

    vit = load(BackboneSpec(hub="google/tiny-vit"))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        own = (
            ViTForImageClassification.from_pretrained(online.folders[VIT]).vit(pixels).last_hidden_state[:, 0]
        )
        ours = vit.module.pool(vit.module.encoder, pixel_values=pixels)
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    roberta = load(BackboneSpec(hub="me/tiny-roberta"))
    tokens = {"input_ids": torch.randint(4, 200, (2, 9)), "attention_mask": torch.ones(2, 9).long()}
    with torch.no_grad():
        model = RobertaForMaskedLM.from_pretrained(online.folders[ROBERTA])
        own = model.roberta(**tokens).last_hidden_state[:, 0]
        ours = roberta.module.pool(roberta.module.encoder, **tokens)
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    assert sum(p.numel() for p in roberta.head.parameters()) == 32 * 32 + 32 + 2 * 32 + 2


# --- splits ---


def byte_text(max_tokens: int = 128) -> TextInput:
    from functools import partial

    from bench.backbones.random_weights import byte_tokenizer

    return TextInput("bytes", max_tokens, partial(byte_tokenizer, max_tokens))


def prepared(
    name: str, seed: int | None = None, source: DataSource | None = None
) -> tuple[Examples, PreparedData]:
    task = task_of(name, source)
    wanted = byte_text() if task.modality == "text" else IMAGES
    return task.examples(), prepare(task, wanted, split_seed=seed)


def parts(data: PreparedData) -> dict[str, list[int]]:
    return {name: getattr(data, name).ids.tolist() for name in ("train", "validation", "test")}


@pytest.mark.parametrize("name", ["cola", "mrpc"])
def test_glue_s_development_set_is_the_test_and_validation_is_cut_from_train(online: Hub, name: str) -> None:
    examples, data = prepared(name)
    split = parts(data)
    train, development = range(SIZES["train"]), range(10**9, 10**9 + SIZES["validation"])
    assert sorted(split["test"]) == list(development)
    assert sorted(split["train"] + split["validation"]) == list(train)
    assert len(split["validation"]) == SIZES["train"] // 10
    assert Counter(data.validation.labels.tolist()) == {0: 4, 1: 4}
    texts = examples.inputs[0] if name == "mrpc" else (examples.inputs[0],)
    columns = ("sentence1", "sentence2") if name == "mrpc" else ("sentence",)
    assert [text.rpartition(" ")[0] for text in texts] == [f"train {column} 0" for column in columns]
    assert split == parts(prepared(name)[1])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("dtd", (235, 235, 94)), ("dtd-merged", (423, 47, 94)), ("eurosat", (72, 8, 20))],
)
def test_splits_of_images(online: Hub, name: str, sizes: tuple[int, ...]) -> None:
    examples, data = prepared(name)
    split = parts(data)
    every = [i for positions in split.values() for i in positions]
    assert sorted(every) == sorted(examples.ids)
    counts = [len(positions) for positions in split.values()]
    # Ten images of each land: a percent is one of them only for some.
    assert max(abs(n - wanted) for n, wanted in zip(counts, sizes, strict=True)) <= (
        10 if name == "eurosat" else 0
    )
    # The repository's splits that are in each of ours.
    wanted = {"dtd": ({0}, {1}, {2}), "dtd-merged": ({0}, {0}, {2}), "eurosat": ({0, 1, 2},) * 3}[name]
    found = tuple({i // 10**9 for i in positions} for positions in split.values())
    assert found == wanted or (name == "eurosat" and found[0] == wanted[0])


def test_dtd_s_partition_serves_as_the_merged_one_too(online: Hub) -> None:
    source = DataSource(hub="HuggingFaceM4/DTD_Describable-Textures-Dataset")
    _, data = prepared("dtd-merged", source=source)
    split = parts(data)
    assert {i // 10**9 for i in split["train"] + split["validation"]} == {0, 1}
    assert {i // 10**9 for i in split["test"]} == {2}


def test_images_are_decoded_as_they_were_stored(online: Hub) -> None:
    examples = TASKS.get("eurosat").examples()
    first = np.random.default_rng(len("train")).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    assert np.array_equal(examples.inputs[0], first)
    assert np.array_equal(examples.inputs[:3][2], examples.inputs[2])
    assert examples.labels[:4] == [0, 2, 4, 6], "the first shard has every second image"


def local_cola(folder: Path, rows: list[tuple[str, int]], held: list[tuple[str, int]]) -> DataSource:
    write_glue(folder, "cola", {"validation": 4})
    for split, examples in (("train", rows), ("validation", held)):
        texts, labels = zip(*examples, strict=True)
        table = {"sentence": list(texts), "label": list(labels), "idx": list(range(len(texts)))}
        datasets.Dataset.from_dict(table).to_parquet(folder / "cola" / f"{split}-00000-of-00001.parquet")
    return DataSource(local=folder)


def test_the_cut_parts_no_duplicates_and_official_examples_are_all_kept(tmp_path: Path) -> None:
    rows = [(f"sentence {i // 2}{'!' * (i % 2)}", i // 2 % 2) for i in range(120)]
    rows += [("Is it?", 0), ("is it", 1)]
    held = [("sentence 0", 0), ("sentence 0", 1), ("new", 0), ("new one", 1)]
    _, data = prepared("cola", source=local_cola(tmp_path, rows, held))
    split = parts(data)
    assert sorted(split["train"] + split["validation"]) == list(range(122))
    assert len(split["test"]) == 4
    for first in range(0, 122, 2):
        assert (first in split["train"]) == (first + 1 in split["train"])


def test_per_seed_deals_anew_for_each_seed_but_never_the_official_test(online: Hub) -> None:
    for name in ("cola", "eurosat", "dtd"):
        first, again, other = (parts(prepared(name, seed)[1]) for seed in (0, 0, 1))
        assert first == again
        assert first["train"] != other["train"]
        same_test = sorted(first["test"]) == sorted(other["test"])
        assert same_test is (name != "eurosat")
        if name == "dtd":
            assert sorted(first["train"]) == sorted(other["train"]), "only the order is the seed's"
        fixed = parts(prepared(name)[1])
        assert sorted(chain(*fixed.values())) == sorted(chain(*first.values()))


@pytest.mark.parametrize("name", ["cola", "eurosat"])
def test_a_pool_gives_the_examples_that_a_fixed_split_gives(online: Hub, name: str) -> None:
    fixed, seeded = prepared(name)[1], prepared(name, 3)[1]

    def rows(data: PreparedData) -> dict[int, tuple[int, bytes]]:
        found = {}
        for split in (data.train, data.validation, data.test):
            for i in range(len(split)):
                (first, *_) = split.batch(torch.tensor([i])).values()
                found[int(split.ids[i])] = (int(split.labels[i]), first.numpy().tobytes())
        return found

    assert rows(fixed) == rows(seeded)


def test_a_split_per_seed_pairs_the_methods_of_a_seed(online: Hub, tmp_path: Path) -> None:
    from bench.training.trial import Resources

    row = {"task": "eurosat", "train_size": 40, "split": "per_seed"}
    vision = {"backbones": [{"hub": "google/tiny-vit"}]}
    made = plan(tasks=[row], methods=["head_only", {"method": "lora", "rank": 2}], seeds=[0, 1], **vision)
    fixed = plan(tasks=[{**row, "split": "fixed"}], seeds=[0, 1], **vision)
    assert not set(ids(made)) & set(ids(fixed))
    resources = Resources("cpu")
    seen = [
        resources.data(trial, resources.backbone(trial).info.input).train.ids.tolist()
        for trial in made.trials
    ]
    assert seen[0] == seen[1] != seen[2] == seen[3]


# --- pairs ---


def bert_pairs() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(30))]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


class Pairs(Task):
    name = "toy-pairs"
    modality = "text"
    classes = ("no", "yes")
    data_hash = "0"
    description = "pairs of random words"
    license = "CC0-1.0"

    def examples(self) -> Examples:
        draws = np.random.default_rng(0)
        pairs = [
            tuple(" ".join(f"w{i}" for i in draws.integers(0, 30, draws.integers(1, 12))) for _ in "ab")
            for _ in range(90)
        ]
        return Examples(pairs, [i % 2 for i in range(90)], range(90))  # type: ignore[arg-type]


@pytest.mark.parametrize("segments", [True, False], ids=["BERT's segments", "RoBERTa's none"])
def test_pairs_are_encoded_as_the_tokenizer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segments: bool
) -> None:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path))
    wanted = TextInput("toy", 16, bert_pairs) if segments else byte_text()
    tokenizer = wanted.load_tokenizer()
    pairs = dict(enumerate(Pairs().examples().inputs))
    for seed in (None, 0):
        for split in vars(prepare(Pairs(), wanted, split_seed=seed)).values():
            if not isinstance(split, TextSplit):
                continue
            chosen = [pairs[int(i)] for i in split.ids]
            own = tokenizer(
                *map(list, zip(*chosen, strict=True)),
                truncation=True,
                max_length=wanted.max_tokens,
                padding=True,
                return_tensors="pt",
            )
            batch = split.batch(torch.arange(len(split)))
            assert (
                set(batch)
                == set(own)
                == {"input_ids", "attention_mask"} | ({"token_type_ids"} if segments else set())
            )
            for name in batch:
                assert torch.equal(batch[name], own[name]), name


def test_a_bert_reads_the_segments_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path))
    split = prepare(Pairs(), TextInput("toy", 16, bert_pairs)).test
    backbone = load("tiny-random-bert")
    batch = split.batch(torch.arange(4))
    with torch.no_grad():
        told = backbone.module(**batch)
        untold = backbone.module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert not torch.allclose(told, untold, atol=1e-4)


# --- how examples are fed ---


def fed(**row: Any) -> Any:
    from bench.suite.rows import TaskRow
    from bench.training.trial import Resources

    text = row["task"] in ("cola", "mrpc")
    backbones = [{"hub": "me/tiny-roberta"}] if text else [{"hub": "google/tiny-vit"}]
    assert validate(TaskRow, row, "row")
    made = plan(tasks=[row], backbones=backbones)
    resources = Resources("cpu")
    (trial,) = made.trials
    return trial, resources.data(trial, resources.backbone(trial).info.input)


def test_padding_to_the_maximum(online: Hub) -> None:
    from bench.training.loop import batches

    longest, whole = fed(task="cola"), fed(task="cola", padding="max_tokens", max_tokens=100)
    assert whole[0].id != fed(task="cola", max_tokens=100)[0].id
    batch = whole[1].train.batch(torch.tensor([0, 5]))
    assert batch["input_ids"].shape == (2, 100)
    narrow = longest[1].train.batch(torch.tensor([0, 5]))["input_ids"]
    assert torch.equal(batch["input_ids"][:, : narrow.shape[1]], narrow)
    assert (batch["input_ids"][:, narrow.shape[1] :] == 1).all()
    assert not batch["attention_mask"][:, narrow.shape[1] :].any()
    order = torch.cat(list(batches(whole[1].train, 16, torch.Generator().manual_seed(0))))
    assert order.tolist() == torch.randperm(72, generator=torch.Generator().manual_seed(0)).tolist()


def test_images_squashed_then_cut_and_not_normalised(online: Hub) -> None:
    from PIL import Image

    native, changed = fed(task="eurosat"), fed(task="eurosat", resize=40, normalise=False)
    assert native[0].id != changed[0].id
    split = changed[1].train
    assert isinstance(split, ImageSplit)
    stored = dict(zip(*(lambda e: (e.ids, e.inputs))(TASKS.get("eurosat").examples()), strict=True))
    image = Image.fromarray(stored[int(split.ids[0])]).resize((40, 40), Image.Resampling.BILINEAR)
    wanted = np.asarray(image)[4:36, 4:36].transpose(2, 0, 1) / 255
    given = split.batch(torch.tensor([0]))["pixel_values"][0]
    assert np.allclose(given.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"task": "eurosat", "padding": "max_tokens"}, "padding does not apply to images"),
        ({"task": "cola", "resize": 300}, "resize does not apply to texts"),
        ({"task": "cola", "normalise": False}, "normalise does not apply to texts"),
        ({"task": "eurosat", "resize": 30}, "resize must be at least 32.*got 30"),
        ({"task": "cola", "padding": "max_token"}, r"tasks.0.padding.*did you mean 'max_tokens'"),
        ({"task": "eurosat", "normalize": False}, r"'tasks.0.normalize'; did you mean 'normalise'"),
        ({"task": "eurosat", "split": "per-seed"}, r"tasks.0.split.*did you mean 'per_seed'"),
        ({"task": "eurosat", "source": {"lcoal": "x"}}, r"'tasks.0.source.lcoal'; did you mean 'local'"),
        ({"task": "eurosat", "source": {"local": "x", "hub": "a/b"}}, "a local folder, or a hub repository"),
        (
            {"task": "digits", "source": {"local": "x"}},
            "task 'digits' brings its own data and takes no source",
        ),
        ({"task": "cola", "training": {"augmentation": ["flip"]}}, "augmentation applies to images only"),
    ],
)
def test_switches_that_cannot_be_are_refused(online: Hub, row: dict[str, Any], said: str) -> None:
    text = row["task"] in ("cola", "mrpc")
    backbones = [{"hub": "me/tiny-roberta"}] if text else [{"hub": "google/tiny-vit"}]
    with pytest.raises(UserError, match=said):
        plan(tasks=[row], backbones=backbones)


# --- local folders ---


def test_a_local_folder_stands_for_the_repository(online: Hub, tmp_path: Path) -> None:
    source = DataSource(local=online.folders[GLUE])
    on_hub, here = prepared("cola")[1], prepared("cola", source=source)[1]
    assert parts(on_hub) == parts(here)
    task = task_of("cola", source)
    assert task.data_hash.startswith("sha256:")
    assert task.identity_hash() != TASKS.get("cola").identity_hash()
    text = local_cola(tmp_path, [(f"t {i}", i % 2) for i in range(40)], [("a", 0), ("b", 1)])
    assert task_of("cola", text).identity_hash() != task.identity_hash()
    row = {"task": "cola", "source": {"local": str(tmp_path)}}
    (trial,) = plan(tasks=[row], backbones=["tiny-random-bert"]).trials
    assert trial.data["data_hash"] == task_of("cola", text).data_hash


def test_local_data_that_change_after_the_plan_are_refused(tmp_path: Path) -> None:
    from bench.training.trial import Resources

    local_cola(tmp_path, [(f"t {i}", i % 2) for i in range(40)], [("a", 0), ("b", 1)])
    row = {"task": "cola", "source": {"local": str(tmp_path)}}
    (trial,) = plan(tasks=[row], backbones=["tiny-random-bert"]).trials
    local_cola(tmp_path, [(f"u {i}", i % 2) for i in range(42)], [("a", 0), ("b", 1)])
    resources = Resources("cpu")
    with pytest.raises(UserError, match=r"task 'cola' changed since the plan \(task_identity\)"):
        resources.data(trial, resources.backbone(trial).info.input)


def test_hub_s_own_parquet_layout_and_plain_names_are_found(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"sentence": [f"t {i}" for i in range(40)], "label": [0, 1] * 20})
    for name in (
        "a/cola/train/0000.parquet",
        "a/cola/validation/0000.parquet",
        "b/train.parquet",
        "b/validation.parquet",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(tmp_path / name)
    first, second = (task_of("cola", DataSource(local=tmp_path / name)).examples() for name in "ab")
    assert first.inputs == second.inputs
    assert len(first.inputs) == 80


def test_images_without_the_hub_s_features_are_read_too(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    pixels = np.random.default_rng(0).integers(0, 256, (30, 5, 5), dtype=np.uint8)
    rows = [{"bytes": encoded(image), "path": None} for image in pixels]
    parquet.write_table(
        pyarrow.table({"image": rows, "label": [i % 10 for i in range(30)]}), tmp_path / "train.parquet"
    )
    examples = task_of("eurosat", DataSource(local=tmp_path)).examples()
    # Grey came in, RGB comes out.
    assert np.array_equal(examples.inputs[7], np.repeat(pixels[7][..., None], 3, axis=2))


def broken(folder: Path, how: str) -> Path:
    if how == "no folder":
        return folder / "none"
    if how == "another configuration":
        write_images(folder / "partition_2", {"train": 1, "validation": 1, "test": 1}, TEXTURES)
    elif how == "no validation":
        write_glue(folder, "cola", {"train": 10})
    elif how == "half":
        write_glue(folder, "cola", SIZES)
        file = folder / "cola" / "train-00000-of-00001.parquet"
        file.rename(file.with_name("train-00000-of-00002.parquet"))
    elif how == "columns":
        write_glue(folder, "mrpc", SIZES)
        (folder / "mrpc").rename(folder / "cola")
    elif how == "classes":
        write_glue(folder, "cola", SIZES)
        features = datasets.Features(
            {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b", "c"])}
        )
        table = datasets.Dataset.from_dict({"sentence": ["x"], "label": [2]}, features=features)
        table.to_parquet(folder / "cola" / "train-00000-of-00001.parquet")
    elif how == "two layouts":
        write_glue(folder, "cola", SIZES)
        (folder / "cola" / "train").mkdir()
        file = folder / "cola" / "train-00000-of-00001.parquet"
        shutil.copy(file, folder / "cola" / "train" / "0000.parquet")
    else:
        write_glue(folder, "cola", SIZES)
        (folder / "cola" / "train-00000-of-00001.parquet").write_bytes(b"not parquet at all")
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no folder", "there is no folder"),
        ("no validation", r"no parquet file of validation; it needs those of the data set nyu-mll/glue"),
        ("another configuration", "no parquet file of train, validation"),
        ("half", "has 1 of 2 files of train"),
        ("two layouts", r"has the files of train more than once: .*cola/train\*, .*cola/train/\*"),
        ("columns", "the train split lacks the columns sentence; it has sentence1, sentence2"),
        ("classes", "the train split has 3 classes, not 2"),
        ("garbage", "cannot be read"),
    ],
)
def test_a_folder_without_the_task_s_data_is_refused(tmp_path: Path, how: str, said: str) -> None:
    name = "dtd" if how == "another configuration" else "cola"
    with pytest.raises(UserError, match=said):
        task_of(name, DataSource(local=broken(tmp_path, how))).examples()


def test_of_two_configurations_none_is_taken_for_more_of_the_other(tmp_path: Path) -> None:
    for configuration in ("default", "rgb"):
        write_images(tmp_path / configuration, {"train": 1}, LAND)
    with pytest.raises(UserError, match=r"has the files of train more than once: .*default/.*, .*rgb/"):
        task_of("eurosat", DataSource(local=tmp_path)).examples()


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("label", ["yes", "no"], "should hold the numbers of the classes, got values of type string"),
        ("label", [0.5, 1.5], "should hold the numbers of the classes, got values of type double"),
        ("label", [0, None], "has no value in 20 of 40 rows"),
        ("sentence", ["a", None], "has no value in 20 of 40 rows"),
        ("sentence", [1, 2], "should hold texts, got values of type int64"),
    ],
)
def test_values_that_are_no_labels_or_texts_are_refused(
    tmp_path: Path, column: str, values: list[Any], said: str
) -> None:
    rows = {"sentence": [f"t {i}" for i in range(40)], "label": [0, 1] * 20}
    for part in ("train", "validation"):
        datasets.Dataset.from_dict(rows | {column: values * 20}).to_parquet(tmp_path / f"{part}.parquet")
    with pytest.raises(UserError, match=f"task 'cola': {column} of the train split {said}"):
        task_of("cola", DataSource(local=tmp_path)).examples()


@pytest.mark.parametrize(
    "stored",
    [{"bytes": b"no image", "path": None}, {"bytes": None, "path": "none.png"}],
    ids=["bytes", "path"],
)
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, stored: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    good = {"bytes": encoded(np.zeros((5, 5), dtype=np.uint8)), "path": None}
    for part, rows in (("train", [good, good]), ("test", [good, stored])):
        parquet.write_table(pyarrow.table({"image": rows, "label": [0, 1]}), tmp_path / f"{part}.parquet")
    examples = task_of("eurosat", DataSource(local=tmp_path)).examples()
    with pytest.raises(UserError, match="the image in row 1 of the test split cannot be read"):
        examples.inputs[3]
