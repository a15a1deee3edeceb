"""Tests the suite that `tensorbench init` writes for a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tensorbench.plan.suite import Suite, load_suite
from tensorbench.run.first_suite import DESIGNS, HOUR

from ..fixtures import Call
from ..messages import naming


@pytest.fixture(autouse=True)
def _speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tensorbench.run.first_suite.seconds_per_operation", lambda device: 1e-12)
    monkeypatch.setattr("tensorbench.execution.estimate.seconds_per_operation", lambda device: 1e-12)


def table(name: str = "reviews.csv", rows: int = 200, **columns: Callable[[int], object]) -> str:
    """Writes a table with an id, texts, and the given columns. Values are made from the row's number."""
    all_columns = {"id": lambda row: row, "body": lambda row: f"some words of row {row}", **columns}
    with open(name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(all_columns)
        writer.writerows([value(row) for value in all_columns.values()] for row in range(rows))
    return name


def stars(row: int) -> int:
    return row % 5


def written(call: Call, *arguments: str, file: str = "reviews.yaml") -> Suite:
    ended = call("init", *arguments)
    assert ended.code == 0, ended
    assert all(f"tensorbench {command} {file}" in ended.out for command in ("plan", "run"))
    return load_suite(file)


def test_columns_are_guessed_and_the_suite_can_be_planned(call: Call) -> None:
    suite = written(call, table(stars=stars))
    (task,) = suite.tasks
    assert task.data is not None
    assert (task.data.text, task.data.label, task.data.target) == ("body", "stars", "single label")
    assert {row.method for row in suite.methods} >= {"lora", "tenslora", "converged_head"}
    assert call("plan", "reviews.yaml").code == 0


def test_official_splits_numbers_pairs_and_odd_names_are_taken(call: Call) -> None:
    columns = {"price: no": lambda row: row / 7, "part": lambda row: ["Train", "dev", "TEST "][row % 3]}
    (task,) = written(call, table(**columns), "--label", "price: no").tasks
    assert task.data is not None
    assert (task.data.label, task.data.target, task.data.split_by) == ("price: no", "regression", "part")
    pairs = {"yes": stars, "title": lambda row: f"another text of row {row}"}
    (task,) = written(call, table("digits.csv", **pairs), "--text", "title,body", file="digits.yaml").tasks
    assert task.data is not None
    assert (task.data.text, task.data.label, task.task) == (("title", "body"), "yes", "my-digits")


def test_what_the_columns_are_taken_for_is_said(call: Call) -> None:
    numbers = table(price=lambda row: row % 30, fold=lambda row: ["fit", "held out"][row % 2])
    said = call("init", numbers, "--label", "price").out
    assert "label: price (numbers: a regression; delete `target` for classes); not used: id, fold." in said
    parts = table("parts.csv", stars=stars, Split=lambda row: ["Train", "Test"][row % 2])
    assert "label: stars (5 classes: 0, 1, 2, 3, 4); splits: Split; not used: id." in call("init", parts).out
    halves = call("init", table("halves.csv", stars=lambda row: row % 5 / 2), "--label", "stars").out
    assert "(5 classes: 0.0, 0.5, 1.0, 1.5, 2.0; numbers: write `target: regression` if" in halves


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((80, 80), ""),
        # The title and the body are read together.
        (
            (60, 110),
            "About 25% of the texts have more than 128 tokens and are cut. "
            "With `max_tokens: 256` in the task, 0% are",
        ),
        # By the estimate 98 words are more than 128 tokens.
        ((20, 91), "About 25% of the texts"),
        ((2000, 2000), "About 100% of the texts have more than 128 tokens and are cut. reviews.yaml"),
        ((110, 500), "With `max_tokens: 512` in the task, 25% are"),
    ],
)
def test_texts_that_are_cut_are_counted(call: Call, words: tuple[int, int], said: str) -> None:
    def body(row: int) -> str:
        return f"row {row}" + " word" * words[row % 4 == 0]

    table(title=lambda row: f"a title of row {row}", body=body, stars=stars)
    ended = call("init", "reviews.csv", "--text", "title", "--text", "body")
    assert ended.code == 0, ended
    assert (said in " ".join(ended.out.split())) if said else "are cut" not in ended.out


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"stars": stars, "shop": lambda row: row % 2}, (), ("stars", "shop", "--label stars")),
        ({"stars": stars, "title": lambda row: f"text in row {row}"}, (), ("body", "title", "--text body")),
        ({}, (), ("no column", "label", "id", "--label id")),
        ({}, ("--text", "id,body"), ("no column is left for the label",)),
        ({"stars": stars}, ("--label", "star"), ("'star'", "'stars'?")),
        ({"stars": stars}, ("--out", "nowhere/s.yaml"), ("nowhere/s.yaml", "--out")),
        ({"stars": stars}, ("--out", "reviews.csv"), ("reviews.csv", "exists", "--out")),
    ],
)
def test_what_is_ambiguous_or_missing_is_refused_with_what_to_write(
    call: Call, columns: dict[str, Callable[[int], object]], arguments: Sequence[str], message: Sequence[str]
) -> None:
    ended = call("init", table(**columns), *arguments)
    assert ended.code == 2
    assert not Path("reviews.yaml").exists()
    with pytest.raises(ValueError, match=naming(*message)):
        raise ValueError(ended.err)


@pytest.mark.parametrize("name", ["2024.csv", "no.csv", "1e3.csv", "2024-01-02.csv"])
def test_a_file_may_be_called_like_a_value_of_yaml(name: str, call: Call) -> None:
    assert call("init", table(name, stars=stars)).code == 0
    assert load_suite(Path(name).with_suffix(".yaml")).tasks[0].task == name.removesuffix(".csv")


def test_other_files_are_refused(call: Call) -> None:
    Path("semicolons.csv").write_text("body;stars\nsome text;1\n")
    assert "separated by ';'" in call("init", "semicolons.csv").err
    assert "none.csv" in call("init", "none.csv").err
    assert "data.parquet" in call("init", "data.parquet").err


def test_the_suite_takes_an_hour_by_the_estimate_of_plans(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(rows=3000, stars=stars)
    sizes, times = [], []
    for number, speed in enumerate((1e-13, 1e-10, 9e-10, 1e-6)):
        monkeypatch.setattr("tensorbench.run.first_suite.seconds_per_operation", lambda device, s=speed: s)
        monkeypatch.setattr("tensorbench.execution.estimate.seconds_per_operation", lambda device, s=speed: s)
        file = f"{number}.yaml"
        (task,) = written(call, "reviews.csv", "--out", file, file=file).tasks
        sizes.append(task.train_size or 2100)
        plan = json.loads(call("plan", file, "--json").out)
        times.append(sum(part["seconds"] for part in plan["forecast"]["parts"]))
    # A fast machine takes all 2,100 training examples, and one that is too slow gets the smallest suite.
    assert sizes[0] == 2100 > sizes[1] > sizes[2] >= sizes[3] == DESIGNS[-1][0]
    assert max(times[:3]) <= HOUR < times[3]
