"""Tests data from the hub: those of registered tasks, and those that a suite describes."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tensorbench.methods.errors import UserError
from tensorbench.plan.suite import load_suite
from tensorbench.tasks import TASKS, DataSource, data_key, prepare

from ...messages import naming
from .toy_tasks import IMAGES, TEXT, pictures, splits, task, with_named_classes

SUITES = Path(__file__).parents[3] / "suites"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            ["yes", "no"],
            ["yes", "no"],
            "train.*yes, no,.*no, yes",
        ),
        (["0", "1"], ["1", "0"], "test.*1, 0,.*train.*0, 1"),
    ],
)
def test_a_hub_s_numbers_mean_one_class_each(
    tmp_path: Path, train: list[str], test: list[str], message: str
) -> None:
    for split, order in (("train", train), ("test", test)):
        with_named_classes(tmp_path / f"{split}.parquet", order, order * 4)
    described = {"hub": "me/news", "text": "title", "label": "kind", "source": {"local": str(tmp_path)}}
    with pytest.raises(UserError, match=message):
        task(tmp_path, **described, classes=["no", "yes"]).examples()


def test_vtab_is_read_from_its_published_layout(tmp_path: Path, own_cache: Path) -> None:
    suite = tmp_path / "vtab.yaml"
    shutil.copy(SUITES / "vtab.yaml", suite)
    for row in load_suite(suite).tasks:
        home = tmp_path / "vtab-1k" / row.task.removeprefix("vtab-")
        pictures(home, "images", count=6)
        for name, numbers in {"train800": (0, 1, 2), "val200": (3, 4), "test": (5, 0)}.items():
            lines = "".join(f"images/{i}.png {i % 3}\n" for i in numbers)
            (home / f"{name}.txt").write_text(lines)
    rows = load_suite(suite).tasks
    assert len(rows) == 19
    for row in rows:
        own = row.lookup()
        assert (own.classes, own.sizes) == (("0", "1", "2"), (3, 2, 2))
        # FacT's normalisation, regardless of the backbone's.
        image_input = row.input(IMAGES)
        assert (image_input.mean, image_input.resize) == ((0.485, 0.456, 0.406), 224)
    data = prepare(rows[0].lookup(), IMAGES)
    assert [sorted(split.ids.tolist()) for split in splits(data)] == [[0, 1, 2], [3, 4], [5, 6]]


GLUE: dict[str, tuple[str, list[str], Any]] = {
    "sst2": ("validation", ["sentence"], [0, 1]),
    "stsb": ("validation", ["sentence1", "sentence2"], [0.5, 4.75]),
    "qqp": ("validation", ["question1", "question2"], [0, 1]),
    "mnli": ("validation_matched", ["premise", "hypothesis"], [0, 1, 2]),
    "mnli-mm": ("validation_mismatched", ["premise", "hypothesis"], [0, 1, 2]),
    "qnli": ("validation", ["question", "sentence"], [0, 1]),
    "rte": ("validation", ["sentence1", "sentence2"], [0, 1]),
}


@pytest.mark.parametrize("name", GLUE)
def test_glue_is_read_by_the_hubs_columns(tmp_path: Path, name: str) -> None:
    part, columns, labels = GLUE[name]
    (tmp_path / name.partition("-")[0]).mkdir()
    for split in ("train", part, "test"):
        table = {column: [f"{split} {column} {i}" for i in range(6)] for column in columns}
        table |= {"label": [labels[i % len(labels)] for i in range(6)], "idx": range(6)}
        file = tmp_path / name.partition("-")[0] / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.table(table), file)
    examples = TASKS.get(name).at(DataSource(local=tmp_path)).examples()
    assert Counter(examples.splits) == {"train": 6, "test": 6}
    first = tuple(f"train {column} 0" for column in columns)
    assert examples.inputs[0] == (first if len(first) > 1 else first[0])
    assert list(examples.labels[:2]) == labels[:2]


def test_a_data_set_of_a_hub_by_its_columns(tmp_path: Path, own_cache: Path) -> None:
    row = {"hub": "me/news", "text": "title", "label": "topic", "splits": {"train": "train", "dev": "test"}}
    for split in ("train", "dev"):
        topics = [("sport", "arts")[i % 2] for i in range(40)]
        table = {"title": [f"{split} w{i}" for i in range(40)], "topic": topics}
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    # The third round has the seed of the second one, whose prepared data it finds in the cache.
    for seed in (None, 0, 0):
        own = task(tmp_path, **row, classes=["sport", "arts"], source={"local": str(tmp_path)})
        assert [len(split) for split in splits(prepare(own, TEXT, split_seed=seed))] == [36, 4, 40]
    assert (
        own.identity_hash()
        != task(tmp_path, **row, classes=["arts", "sport"]).at(DataSource(local=tmp_path)).identity_hash()
    )


def test_a_hub_s_splits_are_known_by_the_words_that_a_folder_s_are(tmp_path: Path) -> None:
    for split, rows in {"training": 40, "val": 20, "test": 10}.items():
        table = {"title": [f"{split} w{i}" for i in range(rows)], "topic": [i % 2 for i in range(rows)]}
        pq.write_table(pa.table(table), tmp_path / f"{split}-00000-of-00001.parquet")
    row = {"hub": "me/news", "text": "title", "label": "topic", "classes": ["a", "b"]}
    own = task(tmp_path, **row, source={"local": str(tmp_path)})
    assert Counter(own.examples().splits or ()) == {"train": 40, "validation": 20, "test": 10}
    (tmp_path / "training-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=naming("'mine'", "train")):
        own.examples()


def test_each_configuration_of_a_hub_s_data_set_is_a_task_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path / "cache"))
    for config in ("en", "fr"):
        (tmp_path / config).mkdir()
        table = {"title": [f"{config} w{i}" for i in range(40)], "topic": [i % 2 for i in range(40)]}
        pq.write_table(pa.table(table), tmp_path / config / "train.parquet")
    monkeypatch.setattr("tensorbench.tasks.hub.snapshot", lambda *_, **__: tmp_path)
    row = {"hub": "me/news", "revision": "b" * 40, "text": "title", "label": "topic", "classes": ["a", "b"]}
    english, french = (task(tmp_path, **row, config=config) for config in ("en", "fr"))
    assert data_key(english, TEXT) != data_key(french, TEXT)
    assert {text.split()[0] for text in french.examples().inputs} == {"fr"}
