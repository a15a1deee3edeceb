"""Tests data in a repository's layout: which files are read as which split, and which folders are refused."""

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
from tensorbench.tasks import TASKS, DataSource, Task, data_key, prepare

from .toy_tasks import IMAGES, TEXT, class_of_each, pictures, splits, task, with_named_classes

SUITES = Path(__file__).parents[3] / "suites"

NEWS = {"hub": "me/news", "text": "title", "label": "topic", "classes": ["a", "b"]}

#: For each GLUE task: the split that is the test, the columns, and labels.
GLUE: dict[str, tuple[str, list[str], Any]] = {
    "cola": ("validation", ["sentence"], [0, 1]),
    "mrpc": ("validation", ["sentence1", "sentence2"], [0, 1]),
    "sst2": ("validation", ["sentence"], [0, 1]),
    "stsb": ("validation", ["sentence1", "sentence2"], [0.5, 4.75]),
    "qqp": ("validation", ["question1", "question2"], [0, 1]),
    "mnli": ("validation_matched", ["premise", "hypothesis"], [0, 1, 2]),
    "mnli-mm": ("validation_mismatched", ["premise", "hypothesis"], [0, 1, 2]),
    "qnli": ("validation", ["question", "sentence"], [0, 1]),
    "rte": ("validation", ["sentence1", "sentence2"], [0, 1]),
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Writes parquet files. None stands for four rows that CoLA, NEWS and images can have."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        texts, labels = [f"{name} {i}" for i in range(4)], [0, 1, 0, 1]
        rows = {"sentence": texts, "title": texts, "label": labels, "topic": labels, "image": [b"?"] * 4}
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            pq.write_table(pa.table(content or rows), file)
    return folder


def named(where: Path, name: str | dict[str, Any]) -> Task:
    source = DataSource(local=where)
    return TASKS.get(name).at(source) if isinstance(name, str) else task(where, **name).at(source)


#: The task, the folder that is its source, and the files with the splits as which they are read: "" if their
#: rows are dealt, None if they are not read.
LAYOUTS: dict[str, tuple[Any, str, dict[str, str | None]]] = {
    "GLUE": (
        "cola",
        "",
        {f"cola/{part}-00000-of-00001": of for part, of in (("train", "train"), ("validation", "test"))}
        | {"cola/test-00000-of-00001": None, "mrpc/train": None},
    ),
    "the hub's own": ("cola", "", {"cola/train/0000": "train", "cola/validation/0000": "test"}),
    "plain names": ("cola", "", {"train": "train", "validation": "test"}),
    "two shards": (
        "cola",
        "",
        {"train-00000-of-00002": "train", "train-00001-of-00002": "train", "validation": "test"},
    ),
    "hidden copies": (
        "cola",
        "",
        {"train": "train", "validation": "test"}
        | {".ipynb_checkpoints/train-checkpoint": None, "train/.ipynb_checkpoints/0000": None},
    ),
    **{
        f"{home} is no split": ("cola", source, {f"{home}/train": "train", f"{home}/validation": "test"})
        for home, source in (
            ("validation", "validation"),
            ("data/validation", "data"),
            ("data/validation", "data/validation"),
            ("validation/cola", "validation"),
        )
    },
    "no official split": ("eurosat", "", {"train": "", "test": ""}),
    "usual words": (
        NEWS,
        "",
        {"training-00000-of-00001": "train", "val": "validation", "test": "test", "all": None},
    ),
    "own words": (
        NEWS | {"splits": {"fit": "train", "dev": "test"}},
        "",
        {"fit": "train", "dev": "test", "test": None},
    ),
    "a configuration": (NEWS | {"config": "fr"}, "", {"fr/train": "", "en/train": None}),
    "nothing but train": (NEWS, "", {"data/train": ""}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read(tmp_path: Path, layout: str) -> None:
    name, source, files = LAYOUTS[layout]
    write(tmp_path, {f"{file}.parquet": None for file in files})
    own = named(tmp_path / source, name)
    examples = own.examples()
    official = examples.splits or [""] * len(examples.ids)
    expected = {f"{file}.parquet": split for file, split in files.items() if split is not None}
    assert len(set(examples.ids)) == 4 * len(expected)
    assert Counter(official) == {split: 4 * count for split, count in Counter(expected.values()).items()}
    if own.modality == "text":
        read = zip((str(text).split()[0] for text in examples.inputs), official, strict=True)
        assert Counter(read) == dict.fromkeys(expected.items(), 4)


IMAGE = {"image": [{"bytes": b"x", "path": None}] * 2, "label": [0, 1]}
BOTH: dict[str, Any] = {"train.parquet": None, "validation.parquet": None}


def with_column(column: str, *values: Any) -> dict[str, Any]:
    rows = {"sentence": [f"t {i}" for i in range(6)], "label": [0, 1] * 3}
    return BOTH | {"train.parquet": rows | {column: list(values * 6)[:6]}}


#: The task, the files, and what the message names.
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no folder": ("cola", {}, "no folder"),
    "no validation": ("cola", {"cola/train.parquet": None}, "validation.*nyu-mll/glue"),
    "no train": (NEWS, {"val.parquet": None}, "'mine'.*train.*splits"),
    "another configuration": ("dtd", {"partition_2/train.parquet": IMAGE}, "train, validation"),
    "half of the shards": (
        "cola",
        {"train-00000-of-00002.parquet": None, "validation.parquet": None},
        "has 1 of 2 files of train",
    ),
    "two layouts": (
        "cola",
        {f"cola/{name}.parquet": None for name in ("train", "train/0000", "validation")},
        r"train.*cola/train\*, .*cola/train/\*",
    ),
    "two configurations": (
        "eurosat",
        {f"{name}/train.parquet": IMAGE for name in ("default", "rgb")},
        "train.*default/.*rgb/",
    ),
    "other columns": (
        "cola",
        {f"{part}.parquet": {"sentence1": ["a"], "label": [0]} for part in ("train", "validation")},
        "'sentence': .* sentence1",
    ),
    "no parquet": ("cola", BOTH | {"train.parquet": b"not parquet at all"}, "cannot be read"),
    "a later part": (
        "cola",
        {
            "train-00000-of-00002.parquet": None,
            "train-00001-of-00002.parquet": b"no",
            "validation.parquet": None,
        },
        "train-00001-of-00002.parquet cannot be read",
    ),
    "a later part with other columns": (
        "cola",
        {
            "train-00000-of-00002.parquet": None,
            "train-00001-of-00002.parquet": {"text": ["a"], "label": [0]},
            "validation.parquet": None,
        },
        "train-00001-of-00002.parquet has no column 'sentence'",
    ),
    "no rows": ("cola", BOTH | {"train.parquet": {"sentence": [], "label": []}}, "no row"),
    "words for labels": ("cola", with_column("label", "yes", "no"), "'cola'.*train.*row 0: label 'yes'"),
    "a third class": ("cola", with_column("label", 0, 1, 2), "train.*row 2: label '2' is none"),
    "parts of labels": ("cola", with_column("label", 0.5, 1.5), "train.*row 0: 0.5 in column 'label'"),
    "no label": ("cola", with_column("label", 0, None), "train.*row 1: no value in column 'label'"),
    "no text": ("cola", with_column("sentence", "a", None), "train.*row 1: no value in column 'sentence'"),
    "numbers for texts": (
        "cola",
        with_column("sentence", 1, 2),
        "train.*'sentence' should hold texts.*int64",
    ),
    "a target that is no number": (
        "stsb",
        {
            f"{part}.parquet": {"sentence1": ["a"], "sentence2": ["b"], "label": ["x"]}
            for part in ("train", "validation")
        },
        "train.*row 0: 'x' in column 'label', which should hold finite numbers",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_contradict_their_task_are_refused(tmp_path: Path, case: str) -> None:
    name, files, message = REFUSED[case]
    where = write(tmp_path, files) if files else tmp_path / "none"
    with pytest.raises(UserError, match=f"(?s){message}"):
        named(where, name).examples()


@pytest.mark.parametrize("name", GLUE)
def test_glue_is_read_by_the_hubs_columns(tmp_path: Path, name: str) -> None:
    part, columns, labels = GLUE[name]
    for split in ("train", part, "test"):
        table = {column: [f"{split} {column} {i}" for i in range(6)] for column in columns}
        # GLUE has a few questions without words.
        table[columns[-1]][3] = ""
        table |= {"label": [labels[i % len(labels)] for i in range(6)], "idx": range(6)}
        write(tmp_path, {f"{name.partition('-')[0]}/{split}-00000-of-00001.parquet": table})
    examples = named(tmp_path, name).examples()
    assert Counter(examples.splits) == {"train": 6, "test": 6}
    first = tuple(f"train {column} 0" for column in columns)
    assert examples.inputs[0] == (first if len(first) > 1 else first[0])
    assert list(examples.labels[:2]) == labels[:2]


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        (["yes", "no"], ["yes", "no"], {"yes": "yes", "no": "no"}),
        (["0", "1"], ["1", "0"], {"0": "no", "1": "yes"}),
        (["no", "Yes"], ["no", "Yes"], {"no": "no", "Yes": "yes"}),
    ],
)
def test_a_class_is_known_by_its_name_whatever_its_number(
    tmp_path: Path, train: list[str], test: list[str], names: dict[str, str]
) -> None:
    for split, order in (("train", train), ("test", test)):
        with_named_classes(tmp_path / f"{split}.parquet", order, order * 4)
    own = named(tmp_path, {**NEWS, "label": "kind", "classes": ["no", "yes"]})
    assert class_of_each(own) == [names[name] for name in [*train * 4, *test * 4]]


def test_a_described_data_set_is_dealt_and_known_by_its_description(tmp_path: Path, own_cache: Path) -> None:
    for split in ("train", "dev"):
        topics = [("sport", "arts")[i % 2] for i in range(40)]
        write(
            tmp_path, {f"{split}.parquet": {"title": [f"{split} w{i}" for i in range(40)], "topic": topics}}
        )
    row = NEWS | {"splits": {"train": "train", "dev": "test"}}
    # The third round has the seed of the second one, whose prepared data it finds in the cache.
    for seed in (None, 0, 0):
        own = named(tmp_path, row | {"classes": ["sport", "arts"]})
        assert [len(split) for split in splits(prepare(own, TEXT, split_seed=seed))] == [36, 4, 40]
    other = named(tmp_path, row | {"classes": ["arts", "sport"]})
    assert own.identity_hash() != other.identity_hash()


def test_answers_and_several_labels_may_be_on_a_hub(tmp_path: Path) -> None:
    rows = {"q": ["a", "b"], "a": ["1", "two"], "x": [0, 1], "y": [1, 1]}
    write(tmp_path, {"train.parquet": rows})
    source = {"source": {"local": str(tmp_path)}}
    written = task(
        tmp_path, hub="me/sums", prompt="q", answer="a", template="Q: {prompt}", **source
    ).examples()
    assert (list(written.inputs), list(written.labels)) == (["Q: a", "Q: b"], ["1", "two"])
    labelled = task(tmp_path, hub="me/x", text="q", label=["x", "y"], target="multi-label", **source)
    assert (labelled.classes, list(labelled.examples().labels)) == (("x", "y"), [(1,), (0, 1)])


def test_each_configuration_is_a_task_of_its_own(tmp_path: Path) -> None:
    english, french = (task(tmp_path, **NEWS, revision="b" * 40, config=config) for config in ("en", "fr"))
    assert data_key(english, TEXT) != data_key(french, TEXT)


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
