"""Tests data that a suite describes: which are read, what their identity contains, and which are refused."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tensorbench.methods.errors import UserError
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite, load_suite
from tensorbench.plan.trial import Trial
from tensorbench.tasks import check_use, data_key, prepare
from tensorbench.tasks.task import SPLITS, SplitName

from ...messages import naming
from ..hub_stand_in import encoded
from .toy_tasks import CSV, TEXT, class_of_each, reviews, splits, task, with_named_classes

SUITES = Path(__file__).parents[3] / "suites"

ROWS = [{"body": f"w{i} w{i % 7}", "stars": i % 2, "who": f"p{i // 4}"} for i in range(40)]


def test_one_table_is_one_task_in_every_format(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "d")
    lines = "".join(f"{row['body']},{row['stars']},{row['who']}\n" for row in ROWS)
    (tmp_path / "r.csv").write_text("body,stars,who\n" + lines)
    (tmp_path / "r.tsv").write_text(("body,stars,who\n" + lines).replace(",", "\t"))
    read = [
        task(tmp_path, **{kind: name, "text": "body", "label": "stars", "group": "who"})
        for kind, name in (
            *(("csv", "r.csv"), ("csv", "r.tsv"), ("jsonl", "r.jsonl")),
            *(("parquet", "r.parquet"), ("dataset", "d")),
        )
    ]
    for reviews_task in read:
        examples = reviews_task.examples()
        assert (reviews_task.classes, reviews_task.metric, reviews_task.modality) == (
            ("0", "1"),
            "accuracy",
            "text",
        )
        assert list(examples.inputs) == [row["body"] for row in ROWS]
        assert list(examples.labels) == [row["stars"] for row in ROWS]
        assert list(examples.groups or ()) == [row["who"] for row in ROWS]
    assert len({reviews_task.data_hash for reviews_task in read}) == 5


def test_looking_at_a_data_set_does_not_change_it(tmp_path: Path) -> None:
    import datasets

    def data_hash() -> str | None:
        return task(tmp_path, dataset="d", text="body", label="stars").data_hash

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "d")
    before = data_hash()
    datasets.load_from_disk(tmp_path / "d").filter(lambda row: row["stars"])
    assert [*(tmp_path / "d").glob("cache-*.arrow")]
    assert data_hash() == before


def test_a_task_is_known_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    first = reviews(tmp_path)
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert reviews(other).identity_hash() == first.identity_hash()
    assert data_key(reviews(other), TEXT) == data_key(first, TEXT)
    changed = [
        reviews(other, CSV.replace("w1 ", "w2 ", 1)),
        reviews(other, label="who"),
        reviews(other, group="who"),
        reviews(other, metric="f1"),
        reviews(other, classes=["b", "a"]),
    ]
    assert len({task.identity_hash() for task in (first, *changed)}) == 6


def test_groups_and_duplicates_are_on_one_side(tmp_path: Path, own_cache: Path) -> None:
    doubled = CSV + "".join(f"W{i} w{i % 7}; w{i % 5},{'ab'[i % 2]},q{i}\n" for i in range(40))
    data = prepare(reviews(tmp_path, doubled, group="who"), TEXT)
    where = {id_: n for n, split in enumerate(splits(data)) for id_ in split.ids.tolist()}
    assert len(where) == 80
    for i in range(40):
        assert where[i] == where[i - i % 4] == where[40 + i]


def test_texts_that_differ_in_an_emoji_are_no_duplicates(tmp_path: Path, own_cache: Path) -> None:
    rows = "".join(f"w{i} \U0001f600,good\nw{i} \U0001f621,bad\n" for i in range(40))
    data = prepare(reviews(tmp_path, "body,stars\n" + rows), TEXT)
    assert [len(split) for split in splits(data)] == [56, 12, 12]


def test_official_splits_by_file_column_and_name(tmp_path: Path) -> None:
    import datasets

    head, *lines = CSV.splitlines(keepends=True)
    parts = {"train": lines[:24], "test": lines[24:]}
    for split, split_lines in parts.items():
        (tmp_path / f"{split}.csv").write_text(head + "".join(split_lines))
    sides = [*["train"] * 24, *["test"] * 16]
    marked = [f"{line.rstrip()},{side}\n" for line, side in zip(lines, sides, strict=True)]
    datasets.DatasetDict(
        {"fit": datasets.Dataset.from_list(ROWS[:24]), "dev": datasets.Dataset.from_list(ROWS[24:])}
    ).save_to_disk(tmp_path / "d")
    columns = {"text": "body", "label": "stars"}
    by_file = task(tmp_path, csv={"train": "train.csv", "test": "test.csv"}, **columns)
    by_column = reviews(tmp_path, head.rstrip() + ",fold\n" + "".join(marked), split_by="fold")
    by_name = task(tmp_path, dataset="d", splits={"fit": "train", "dev": "test"}, **columns)
    for split_task in (by_file, by_column, by_name):
        assert list(split_task.examples().splits or ()) == sides
        assert split_task.fractions == (90, 10, 0)


@pytest.mark.parametrize("saved", [False, True])
def test_a_class_is_known_by_its_name_whatever_number_a_file_gives_it(tmp_path: Path, saved: bool) -> None:
    import datasets

    animals = ["ant", "bee", "cat", "bee"]
    orders = {"train": ["ant", "bee", "cat"], "test": ["cat", "bee", "ant", "dog"]}
    for split, order in orders.items():
        with_named_classes(tmp_path / f"{split}.parquet", order, animals)
    where: dict[str, Any] = {"parquet": {split: f"{split}.parquet" for split in orders}}
    if saved:
        loaded = {s: datasets.Dataset.from_parquet(str(tmp_path / f"{s}.parquet")) for s in orders}
        datasets.DatasetDict(loaded).save_to_disk(tmp_path / "d")
        where = {"dataset": "d"}
    own = task(tmp_path, **where, text="title", label="kind", every_class=False)
    assert own.classes == ("ant", "bee", "cat", "dog")
    assert class_of_each(own) == animals * 2


def test_class_names_that_only_a_later_file_stores_are_refused(tmp_path: Path) -> None:
    animals = ["ant", "bee", "cat", "bee"]
    pd.DataFrame({"title": animals, "kind": [0, 1, 2, 1]}).to_parquet(tmp_path / "train.parquet")
    with_named_classes(tmp_path / "test.parquet", ["cat", "bee", "ant"], animals)
    parts = {split: f"{split}.parquet" for split in ("train", "test")}
    with pytest.raises(UserError, match=naming("test.parquet", "'kind'", "class names")):
        task(tmp_path, parquet=parts, text="title", label="kind")


def test_classes_in_another_order_are_reordered_and_other_names_rename(tmp_path: Path) -> None:
    animals = ["ant", "bee", "cat"] * 4
    with_named_classes(tmp_path / "r.parquet", ["ant", "bee", "cat"], animals)
    described = {"parquet": "r.parquet", "text": "title", "label": "kind"}
    other = task(tmp_path, **described, classes=["cat", "bee", "ant"])
    assert (other.classes, class_of_each(other)) == (("cat", "bee", "ant"), animals)
    renamed = {"ant": "Ameise", "bee": "Biene", "cat": "Katze"}
    for classes in (list(renamed.values()), dict(enumerate(renamed.values()))):
        assert class_of_each(task(tmp_path, **described, classes=classes)) == [
            renamed[animal] for animal in animals
        ]
    with pytest.raises(UserError, match=naming("row 1", "'1'", "'bee'", "classes")):
        task(tmp_path, **described, classes=["ant", "cat"])


@pytest.mark.parametrize(
    "classes",
    [
        # By its number a class would be another one than by its name.
        {0: "bee", 1: "ant", 2: "cat"},
        ["Bee", "Ant", "Cat"],
        # Which of two names stands for which is unknown.
        ["ant", "bug", "fly"],
        ["bee", "ant", "fly"],
    ],
    ids=["numbers", "capitals", "two other names", "in another order with another name"],
)
def test_classes_by_which_a_number_could_be_another_class_are_refused(
    tmp_path: Path, classes: dict[int, str] | list[str]
) -> None:
    with_named_classes(tmp_path / "r.parquet", ["ant", "bee", "cat"], ["ant", "bee", "cat"] * 4)
    with pytest.raises(UserError, match=naming("classes: ", "'kind'", "ant, bee, cat")):
        task(tmp_path, parquet="r.parquet", text="title", label="kind", classes=classes)


def test_one_class_may_have_another_name(tmp_path: Path) -> None:
    with_named_classes(tmp_path / "r.parquet", ["ant", "bee", "cat"], ["ant", "bee", "cat"] * 4)
    renamed = task(tmp_path, parquet="r.parquet", text="title", label="kind", classes=["ant", "bee", "Katze"])
    assert class_of_each(renamed) == ["ant", "bee", "Katze"] * 4


def test_several_labels_by_columns_and_in_one(tmp_path: Path, own_cache: Path) -> None:
    kinds = [(i % 2, i % 3 == 0, i % 5 == 0) for i in range(60)]
    names = ("fun", "sad", "long")
    rows = "".join(
        f"w{i} w{i % 11},{','.join(str(int(k)) for k in of_row)}\n" for i, of_row in enumerate(kinds)
    )
    by_columns = reviews(tmp_path, "body,fun,sad,long\n" + rows, label=list(names), target="multi-label")
    first = list(by_columns.examples().labels)
    joined_tags = ["|".join(n for n, k in zip(names, of_row, strict=True) if k) for of_row in kinds]
    in_one = "body,tags\n" + "".join(f"w{i} w{i % 11},{tags}\n" for i, tags in enumerate(joined_tags))
    by_one = reviews(tmp_path, in_one, label="tags", target="multi-label", classes=list(names))
    expected = [tuple(n for n, k in enumerate(of_row) if k) for of_row in kinds]
    assert first == list(by_one.examples().labels) == expected
    data = prepare(by_one, TEXT)
    assert data.train.labels.shape[1] == 3
    assert (by_one.metric, data.classes) == ("f1_macro", 3)


COLUMNS = "body,stars\n"
JSONL = {"csv": None, "jsonl": "r.jsonl"}


def lines(row: Any, first: Any = {"body": "a", "stars": 1}) -> str:  # noqa: B006
    """Writes two rows as lines 3 and 5 of JSON."""
    return f"\n\n{json.dumps(first)}\n\n{json.dumps(row)}"


#: The content of the file, what the suite's row says otherwise than `reviews`, and what the message names.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such column": (CSV, {"text": "boby"}, "r.csv has no column 'boby': did you mean 'body'"),
    "one class": (COLUMNS + "a,1\nb,1\n", {}, "column 'stars' has one class only: every row has '1'"),
    "a hole in the text": (COLUMNS + 'a,1\n"b\nc",0\n,1\n', {}, "r.csv, line 5: no value in column 'body'"),
    "a hole in the label": (COLUMNS + "a,1\nb,\n", {}, "r.csv, line 3: no value in column 'stars'"),
    "unknown label": (CSV, {"classes": ["a", "c"]}, "r.csv, line 3: label 'b' is none of the classes a, c"),
    "an unknown number": (
        COLUMNS + "a,1\nb,0\nc,-1\n",
        {"classes": ["x", "y"]},
        "r.csv, line 4: label '-1' is none of the classes 0, 1",
    ),
    "a word among numbers": (
        COLUMNS + "a,1\nb,0\nc,none\n",
        {"classes": ["x", "y"]},
        "r.csv, line 4: label 'none' is none of the classes 0, 1",
    ),
    "numbers for text": (
        COLUMNS + "1,a\n2.5,b\n",
        {},
        "'body' should hold texts, and all its values are num",
    ),
    "a long text first": (
        COLUMNS + "a" * 140_000 + ",1\nb,\n",
        {},
        "r.csv, line 3: no value in column 'stars'",
    ),
    "no rows": (COLUMNS, {}, "r.csv, line .*: there is no row"),
    "empty file": ("", {}, "r.csv is empty"),
    "too many values in the first row": (COLUMNS + "a,1,2\n", {}, "r.csv, line 2: the row has 3 values"),
    "too many values below": (COLUMNS + 'a,1\n"b\nc",0\nd,e,1\n', {}, "r.csv, line 5: the row has 3 values"),
    "a stray quote": (
        COLUMNS + 'a,1\n"b,0\nc,1\nd,0\n"e",1\n',
        {},
        "r.csv, line 6: text follows a closing quote. .* a quote in a line above is not closed",
    ),
    "two spellings of a number": (
        COLUMNS + "a,1\nb,0\nc,1.0\n",
        {},
        "'stars' has '1' and '1.0', which would be two",
    ),
    "two spellings of a class": (
        COLUMNS + "a,Good\nb,bad\nc,good\n",
        {},
        "'stars' has 'Good' and 'good', which would be two classes: .* in `classes`",
    ),
    "two encodings of a letter": (
        COLUMNS + "a,caf\u00e9\nb,cafe\u0301\nc,tea\n",
        {},
        "'stars' has 'caf.*' in two Unicode encodings",
    ),
    "an open quote": (COLUMNS + 'a,1\n"b,0\nc,1\n', {}, "r.csv, line 3: a double quote is never closed"),
    "semicolons": (CSV.replace(",", ";"), {}, "r.csv: its columns are separated by ';'"),
    "a spreadsheet": (CSV, {"csv": "r.xlsx"}, "r.xlsx is a spreadsheet: export it as CSV"),
    "a spreadsheet for parquet": (CSV, {"csv": None, "parquet": "r.xlsx"}, "r.xlsx is a spreadsheet"),
    "a number in every row": (
        COLUMNS + "".join(f"w{i},{i / 4}\n" for i in range(100)),
        {},
        "'stars' has 100 different values in 100 rows, .*: for numbers give target: regression",
    ),
    "a text in every row": (
        COLUMNS + "".join(f"w{i},t{i}\n" for i in range(100)),
        {},
        "'stars' has 100 different values in 100 rows, .*: is it the label?",
    ),
    "no number": (
        COLUMNS + "a,1\nb,x\n",
        {"target": "regression"},
        "line 3: 'x' in column 'stars', which sh",
    ),
    "no flag": (
        "body,x,y\na,1,0\nb,2,1\n",
        {"label": ["x", "y"], "target": "multi-label"},
        "line 3: '2' in column 'x', which should hold 0 or 1",
    ),
    "a number in Python's spelling": (
        COLUMNS + "a,1\nb,3_560\n",
        {"target": "regression"},
        "line 3: '3_560' in column 'stars', which sh",
    ),
    "a group in several splits": (
        "body,stars,who,fold\na,1,p,train\nb,0,q,train\nc,1,p,val\nd,0,q,test\ne,1,p,test\nf,1,r,test\n",
        {"group": "who", "split_by": "fold"},
        "group: .*'who'.* 'p' is in train, validation, test; 'q' is in train, test; put all",
    ),
    "a list of files": (CSV, {"csv": ["r.csv"]}, "data.csv: should be a file, or a file for each split"),
    "no split": (
        CSV,
        {"csv": {"trian": "r.csv"}},
        "data.csv: should be .* split .train, validation",
    ),
    "files of a split": (
        CSV,
        {"csv": {"train": ["r.csv"]}},
        "data.csv: should be a file, or a file for each",
    ),
    "unknown split": (
        "body,stars,fold\na,1,train\nb,0,outer\n",
        {"split_by": "fold"},
        "line 3: 'outer' in column 'fold' names no split",
    ),
    "a metric of another kind": (
        CSV,
        {"metric": "rmse"},
        "'rmse' scores regression, and the task's target is",
    ),
    "binary of three": (COLUMNS + "a,1\nb,2\nc,3\n", {"metric": "f1"}, "needs 2 classes, and the task has 3"),
    "unknown metric": (CSV, {"metric": "acuracy"}, "unknown metric 'acuracy': did you mean 'accuracy'"),
    "not there": (CSV, {"csv": "s.csv"}, "csv: there is no .*s.csv on this machine$"),
    "published": (
        CSV,
        {"csv": "vtab-1k/s.csv"},
        "there is no .*s.csv .*; .*github.* says where to get vtab-1k",
    ),
    "a name that is taken": (CSV, {"name": "digits"}, "there is a registered task of this name"),
    "a label without a value": (
        lines({"body": "b", "stars": ["x", None]}, {"body": "a", "stars": ["x"]}),
        JSONL | {"target": "multi-label"},
        "line 5: .* in column 'stars' has a label without a value",
    ),
    "no object": (lines([1]), JSONL, "line 5: it should be a JSON object, got .1."),
    "no JSON": ("{", JSONL, "line 1: it is no JSON"),
    "no text": (lines({"body": 5}), JSONL, "line 5: column 'body' should hold texts, got 5"),
    "a hole in JSON": (lines({"body": "b"}), JSONL, "line 5: no value in column 'stars'"),
    "a name nearby": (lines({}, {"bodi": "a"}), JSONL, "has no column 'body': did you mean 'bodi'"),
    "half a character": (
        lines({"body": "b\ud83d", "stars": 2}),
        JSONL,
        r"line 5: column 'body' has half a character, \\ud83d",
    ),
    "half a character in a label": (
        lines({"body": "b", "stars": "\ud83d"}, {"body": "a", "stars": "x"}),
        JSONL,
        "line 5: column 'stars' has half a character",
    ),
    "two kinds": (
        lines({"body": "b", "stars": "x"}),
        JSONL,
        "line 5: column 'stars' should hold numbers, got 'x'",
    ),
    "groups of two kinds": (
        lines({"body": "b", "stars": "x"}),
        JSONL | {"label": "body", "group": "stars"},
        "line 5: column 'stars' should hold numbers, got 'x'",
    ),
    "a list for an answer": (
        lines({"body": "b", "stars": [2]}),
        JSONL | {"target": "generation"},
        "line 5: column 'stars' should hold texts, got .2.",
    ),
    "a number for a path": (
        lines({"body": 5}, {"body": 6}),
        JSONL | {"text": None, "image": "body", "label": "body"},
        "column 'body' should hold texts",
    ),
    "an unknown field": (CSV, {"txet": "body"}, "unknown field 'data.txet'; did you mean 'text'"),
    "neither text nor image": (CSV, {"text": None}, "csv.* text and image"),
    "a pair of one column": (CSV, {"text": ["body", "body"]}, "a pair takes its texts from two columns"),
    "no label column": (CSV, {"label": None}, "csv needs label"),
    "two files": (CSV, {"jsonl": "x"}, "exactly one of csv, .*'jsonl': 'x'"),
    "a column of a folder": (CSV, {"csv": None, "images": "x", "text": None}, "label: .*images"),
    "a hub without classes": (CSV, {"csv": None, "hub": "a/b"}, "hub needs classes"),
    "one word for two splits": (
        CSV,
        {"splits": {"A": "train", " a": "test"}, "split_by": "label"},
        "splits: .* a.* duplicated",
    ),
    "a unit of classes": (CSV, {"unit": "kg"}, "unit"),
    "splits in no column": (CSV, {"splits": {"fit": "train"}}, "splits: goes with split_by"),
    "a separator of one label": (CSV, {"separator": ";"}, "separator: goes with target: multi-label"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_and_descriptions_are_refused_by_line_or_field(tmp_path: Path, case: str) -> None:
    content, more, message = REFUSED[case]
    (tmp_path / "r.xlsx").touch()
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        reviews(tmp_path, content, **more)


@pytest.mark.parametrize("row", [b"half \xed\xa0\x80,1\n", b"latin \xe9,1\n"])
@pytest.mark.parametrize("before", [2, 100_000])
def test_a_row_in_another_encoding_is_named(tmp_path: Path, row: bytes, before: int) -> None:
    (tmp_path / "r.csv").write_bytes(b"body,stars\n" + b"a,1\n" * before + row + b"b,0\n")
    with pytest.raises(UserError, match=naming("r.csv", f"line {before + 2}", "UTF-8")):
        task(tmp_path, csv="r.csv", text="body", label="stars")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_compressed_files_and_parquet_are_named_for_what_they_are(tmp_path: Path, kind: str) -> None:
    content = CSV if kind == "csv" else "\n".join(map(json.dumps, ROWS))
    (tmp_path / "r.gz").write_bytes(gzip.compress(content.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    for name, message in (("r.gz", "compressed: unpack it"), ("r.parquet", "parquet: name it in `parquet`")):
        with pytest.raises(UserError, match=naming(name, message)):
            task(tmp_path, **{kind: name}, text="body", label="stars")


def test_views_in_parquet_hold_texts_and_images(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", "25", reason="older ones write no views")
    photo = encoded(np.zeros((8, 8, 3), dtype=np.uint8))
    rows = [{"body": "w1", "stars": "a", "photo": photo}, {"body": "w2", "stars": "b", "photo": photo}]
    views = {"body": pa.string_view(), "stars": pa.string_view(), "photo": pa.binary_view()}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(views)), tmp_path / "r.parquet")
    texts = task(tmp_path, parquet="r.parquet", text="body", label="stars")
    assert (texts.classes, list(texts.examples().inputs)) == (("a", "b"), ["w1", "w2"])
    photos = task(tmp_path, parquet="r.parquet", image="photo", label="stars")
    assert photos.examples().inputs[1].shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("kind", "column", "hole"),
    [
        (kind, column, hole)
        for kind in ("csv", "jsonl", "parquet", "hub")
        for column, hole in [("body", ""), ("body", " \u00a0"), ("stars", " "), ("who", " ")]
        # Data on the hub have no groups.
        if (kind, column) != ("hub", "who")
    ],
)
def test_a_blank_value_is_a_hole_in_every_format(tmp_path: Path, kind: str, column: str, hole: str) -> None:
    rows = [{"body": f"w{i}", "stars": "ab"[i % 2], "who": f"p{i // 4}"} for i in range(40)]
    rows[7][column] = hole
    (tmp_path / "r.csv").write_text("body,stars,who\n" + "".join(f"{','.join(r.values())}\n" for r in rows))
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    where: dict[str, Any] = {kind: f"r.{kind}", "group": "who"}
    if kind == "hub":
        where = {"hub": "me/news", "source": {"local": str(tmp_path)}, "classes": ["a", "b"]}
    with pytest.raises(UserError, match=rf"^(?=.*(line [89]|row 7)\b).*\b{column}\b"):
        task(tmp_path, **where, text="body", label="stars").examples()
    if kind != "hub" and column != "who":
        with pytest.raises(UserError, match=naming("no value", f"'{column}'")):
            task(tmp_path, **where, prompt="body", answer="stars").examples()


def test_the_names_of_columns_may_take_several_lines(tmp_path: Path) -> None:
    head = '"Your review\n(honest)",body,stars\n'
    own = reviews(tmp_path, head + "".join(f"x,w{i},{i % 2}\n" for i in range(40)))
    assert list(own.examples().inputs) == [f"w{i}" for i in range(40)]
    with pytest.raises(UserError, match=naming("r.csv", "line 4", "stars")):
        reviews(tmp_path, head + "x,w0,1\nx,w1,\n")


def test_classes_that_are_whole_numbers_are_in_their_order_however_large(tmp_path: Path) -> None:
    numbers = ("-1", "9", "10", "9" * 5000)
    rows = "".join(f"w{i},{numbers[i % 4]}\n" for i in range(40))
    assert reviews(tmp_path, f"body,stars\n{rows}").classes == numbers


@pytest.mark.parametrize("rows", [20, 25, 30, 40, 100, 150, 199])
def test_a_small_regression_is_dealt_by_the_percentages(tmp_path: Path, own_cache: Path, rows: int) -> None:
    table = "body,stars\n" + "".join(f"w{i} w{i % 7},{i * i % 97}.5\n" for i in range(rows))
    sizes = [len(split) for split in splits(prepare(reviews(tmp_path, table, target="regression"), TEXT))]
    assert sizes == pytest.approx([0.7 * rows, 0.15 * rows, 0.15 * rows], abs=0.03 * rows)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "rmse"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_equal_targets_have_no_correlation(
    tmp_path: Path, own_cache: Path, metric: str, split: SplitName
) -> None:
    table = "body,stars\n" + "".join(f"w{i} w{i % 7},{i}.5\n" for i in range(40))
    own = reviews(tmp_path, table, target="regression", metric=metric)
    sizes = {f"{split}_size": 1}
    if metric == "rmse":
        assert len(getattr(prepare(own, TEXT, **sizes), split)) == 1
        return
    message = naming(f"'{metric}'", f"{split} split", 1, f"raise {split}_size")
    with pytest.raises(UserError, match=message):
        prepare(own, TEXT, **sizes)
    with pytest.raises(UserError, match=message):
        check_use(own, (None, *(1 if name == split else None for name in SPLITS[1:])), (None,))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1_700_000_000 + i for i in range(40)], "1.7e.09.* 11"),
        ([*range(39), 1e39], "row 39.*1e.39.*3.4e.38"),
        ([1700 + i for i in range(40)], ""),
    ],
)
def test_targets_that_float32_does_not_hold_are_refused(
    tmp_path: Path, own_cache: Path, targets: list[float], message: str
) -> None:
    rows = "".join(f"w{i},{target}\n" for i, target in enumerate(targets))
    own = reviews(tmp_path, "body,stars\n" + rows, target="regression")
    if not message:
        assert prepare(own, TEXT).train.labels.max() > 1700
        return
    with pytest.raises(UserError, match=message):
        prepare(own, TEXT)


def test_a_plan_knows_every_split_of_own_data(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "r.csv").write_text(CSV)

    def planned(**row: Any) -> None:
        task = {"name": "mine", "csv": str(tmp_path / "r.csv"), "text": "body", "label": "stars", **row}
        suite = {"tasks": [task], "backbones": ["tiny-random-bert"], "methods": ["lora"], "seeds": [0, 1]}
        suite["training"] = {"batch_size": 4}
        make_plan(Suite.model_validate({"name": "s", "budgets": [{"isorank": 2}], **suite}))

    planned(train_size=20, test_size=6)
    (tmp_path / "r.csv").write_text(re.sub("[ab],p", "1,p", CSV))
    with pytest.raises(UserError, match=naming(28, 1)):
        planned(target="regression")
    (tmp_path / "r.csv").write_text(CSV)
    with pytest.raises(UserError, match=naming("test_size", 1, 6)):
        planned(test_size=7)
    with pytest.raises(UserError, match=naming("train_size", 1, 28, 0, 29)):
        planned(train_size=29, split="per_seed")
    with pytest.raises(UserError, match=naming("'auroc'", "a, b", "test split", 1)):
        planned(test_size=1, metric="auroc")
    with pytest.raises(UserError, match=naming("batch_size", 64, 28)):
        planned(training={"batch_size": 64})


@pytest.mark.parametrize(("values", "hint"), [(("0.5", "1", "2"), True), (("a", "b", "c"), False)])
def test_rare_classes_that_are_numbers_may_be_amounts(
    tmp_path: Path, own_cache: Path, values: tuple[str, str, str], hint: bool
) -> None:
    own = reviews(tmp_path, COLUMNS + "".join(f"w{i},{values[min(i, i % 2 + 1)]}\n" for i in range(40)))
    with pytest.raises(UserError, match=naming("no example of", values[0], "1 in all")) as refused:
        prepare(own, TEXT)
    assert ("target: regression" in str(refused.value)) == hint


@pytest.mark.parametrize(
    ("files", "message"),
    [({"train": "ab", "test": "abc"}, "train.* of c"), ({"train": "abc", "test": "ab"}, "test.* of c")],
)
def test_every_split_has_every_class(
    tmp_path: Path, own_cache: Path, files: dict[str, str], message: str
) -> None:
    for split, labels in files.items():
        lines = "".join(f"{split} w{i},{labels[i % len(labels)]}\n" for i in range(60))
        (tmp_path / f"{split}.csv").write_text(COLUMNS + lines)
    own = task(tmp_path, csv={s: f"{s}.csv" for s in files}, text="body", label="stars")
    with pytest.raises(UserError, match=message):
        prepare(own, TEXT)


def test_lines_of_json_may_have_a_mark_and_groups_of_numbers(tmp_path: Path) -> None:
    groups = (7, 8, 7.0, 8.5)
    rows = [json.dumps({"body": f"w{i}", "stars": i % 2, "who": n}) for i, n in enumerate(groups)]
    (tmp_path / "r.jsonl").write_text("\n".join(rows), encoding="utf-8-sig")
    own = task(tmp_path, jsonl="r.jsonl", text="body", label="stars", group="who")
    assert list(own.examples().groups or ()) == ["7", "8", "7", "8.5"]


def test_answers_in_json_become_texts_as_written(tmp_path: Path) -> None:
    values = [2, 2.5, True, "three", 4.0, False, "  x"]
    rows = ({"q": f"what is {n}", "a": value} for n, value in enumerate(values))
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = task(tmp_path, jsonl="r.jsonl", prompt="q", answer="a")
    assert list(own.examples().labels) == ["2", "2.5", "true", "three", "4.0", "false", "  x"]


def test_the_suite_of_own_data_plans_every_kind() -> None:
    made = make_plan(load_suite(SUITES / "own_data.yaml"))
    assert Counter(trial.task.task for trial in made.trials) == {"reviews": 6, "similarity": 6, "shapes": 6}
    reread = Trial.model_validate(made.trials[0].model_dump(mode="json", exclude_none=True))
    assert reread.id == made.trials[0].id
    assert reread.task.lookup().identity_hash() == made.trials[0].data["task_identity"]
