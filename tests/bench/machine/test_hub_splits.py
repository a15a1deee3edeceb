"""Tests splits of hub tasks and of local copies. Official splits stay, others are dealt once or per seed."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from tensorbench.methods import UserError
from tensorbench.tasks import TASKS, DataSource, PreparedData

from ...messages import naming
from ..hub_stand_in import Hub
from .paper_hub import (
    GLUE,
    SIZES,
    ids,
    local_cola,
    parts,
    plan,
    prepared,
    task_of,
)


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
    # EuroSAT's copy has ten images per class, so that dealing rounds its shares.
    assert max(abs(n - expected) for n, expected in zip(counts, sizes, strict=True)) <= (
        10 if name == "eurosat" else 0
    )
    # For each of our splits, the repository's splits from which it draws.
    expected = {"dtd": ({0}, {1}, {2}), "dtd-merged": ({0}, {0}, {2}), "eurosat": ({0, 1, 2},) * 3}[name]
    blocks = tuple({i // 10**9 for i in positions} for positions in split.values())
    assert blocks == expected or (name == "eurosat" and blocks[0] == expected[0])


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
        first, repeated, other = (parts(prepared(name, seed)[1]) for seed in (0, 0, 1))
        assert first == repeated
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
        by_id = {}
        for split in (data.train, data.validation, data.test):
            for i in range(len(split)):
                (first, *_) = split.batch(torch.tensor([i])).values()
                by_id[int(split.ids[i])] = (int(split.labels[i]), first.numpy().tobytes())
        return by_id

    assert rows(fixed) == rows(seeded)


def test_a_split_per_seed_pairs_the_methods_of_a_seed(online: Hub, tmp_path: Path) -> None:
    from tensorbench.training.trial import Resources

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
