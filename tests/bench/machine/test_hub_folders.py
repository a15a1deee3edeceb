"""Tests local folders that replace hub repositories: what is read and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tensorbench.methods import UserError
from tensorbench.tasks import TASKS, DataSource

from ...messages import naming
from ..hub_stand_in import Hub, encoded, write_glue, write_images
from .paper_hub import (
    GLUE,
    LAND,
    SIZES,
    TEXTURES,
    local_cola,
    parts,
    plan,
    prepared,
    task_of,
)


def test_a_local_folder_replaces_the_repository(online: Hub, tmp_path: Path) -> None:
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
    from tensorbench.training.trial import Resources

    local_cola(tmp_path, [(f"t {i}", i % 2) for i in range(40)], [("a", 0), ("b", 1)])
    row = {"task": "cola", "source": {"local": str(tmp_path)}}
    (trial,) = plan(tasks=[row], backbones=["tiny-random-bert"]).trials
    local_cola(tmp_path, [(f"u {i}", i % 2) for i in range(42)], [("a", 0), ("b", 1)])
    resources = Resources("cpu")
    with pytest.raises(UserError, match=naming("'cola'", "task_identity")):
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


def test_a_folder_that_is_called_like_a_split_is_no_split(tmp_path: Path) -> None:
    for name in ("validation", "data/validation", "validation/cola"):
        home = tmp_path / name
        home.mkdir(parents=True, exist_ok=True)
        for part, size in (("train", 40), ("validation", 20)):
            rows = {"sentence": [f"{part} {i}" for i in range(size)], "label": [i % 2 for i in range(size)]}
            datasets.Dataset.from_dict(rows).to_parquet(home / f"{part}.parquet")
    for folder in ("data/validation", "data", "validation"):
        examples = task_of("cola", DataSource(local=tmp_path / folder)).examples()
        counts = Counter(
            zip(examples.splits or (), (text.split()[0] for text in examples.inputs), strict=True)
        )
        assert counts == {("train", "train"): 40, ("test", "validation"): 20}


def test_copies_in_hidden_folders_are_no_data(tmp_path: Path) -> None:
    local_cola(tmp_path, [(f"t {i}", i % 2) for i in range(40)], [("a", 0), ("b", 1)])
    task = task_of("cola", DataSource(local=tmp_path))
    before = task.identity_hash()
    for file in list(tmp_path.rglob("*.parquet")):
        copies = file.parent / ".ipynb_checkpoints"
        copies.mkdir(exist_ok=True)
        shutil.copy(file, copies / f"{file.stem}-checkpoint.parquet")
    assert (len(task.examples().inputs), task.identity_hash()) == (42, before)


def test_images_without_the_hub_s_features_are_read_too(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    pixels = np.random.default_rng(0).integers(0, 256, (30, 5, 5), dtype=np.uint8)
    rows = [{"bytes": encoded(image), "path": None} for image in pixels]
    parquet.write_table(
        pyarrow.table({"image": rows, "label": [i % 10 for i in range(30)]}), tmp_path / "train.parquet"
    )
    examples = task_of("eurosat", DataSource(local=tmp_path)).examples()
    # Greyscale images become RGB.
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
    elif how == "another order":
        write_glue(folder, "cola", SIZES, classes=["acceptable", "unacceptable"])
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
    ("how", "message"),
    [
        ("no folder", "no folder"),
        ("no validation", "validation.*nyu-mll/glue"),
        ("another configuration", "train, validation"),
        ("half", "has 1 of 2 files of train"),
        ("two layouts", r"train.*cola/train\*, .*cola/train/\*"),
        ("columns", "'sentence': .* sentence1, sentence2"),
        ("classes", "3 classes, not 2"),
        (
            "another order",
            "the train split numbers its classes as acceptable, unacceptable, and the task as un",
        ),
        ("garbage", "cannot be read"),
    ],
)
def test_a_folder_without_the_task_s_data_is_refused(tmp_path: Path, how: str, message: str) -> None:
    name = "dtd" if how == "another configuration" else "cola"
    with pytest.raises(UserError, match=message):
        task_of(name, DataSource(local=broken(tmp_path, how))).examples()


def test_files_of_two_configurations_are_not_mixed(tmp_path: Path) -> None:
    for configuration in ("default", "rgb"):
        write_images(tmp_path / configuration, {"train": 1}, LAND)
    with pytest.raises(UserError, match=naming("train", "default/", "rgb/")):
        task_of("eurosat", DataSource(local=tmp_path)).examples()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", ["yes", "no"], "should hold the numbers of the classes, got values of type string"),
        ("label", [0.5, 1.5], "should hold the numbers of the classes, got values of type double"),
        ("label", [0, None], "has no value in 20 of 40 rows"),
        ("sentence", ["a", None], "has no value in 20 of 40 rows"),
        ("sentence", [1, 2], "should hold texts, got values of type int64"),
    ],
)
def test_values_that_are_no_labels_or_texts_are_refused(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    rows = {"sentence": [f"t {i}" for i in range(40)], "label": [0, 1] * 20}
    for part in ("train", "validation"):
        datasets.Dataset.from_dict(rows | {column: values * 20}).to_parquet(tmp_path / f"{part}.parquet")
    with pytest.raises(UserError, match=naming("'cola'", column, "train", message)):
        task_of("cola", DataSource(local=tmp_path)).examples()
