"""Tests that changes are found even if the hashes were changed with them, so that every file is valid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load, save

from tensorbench.checks.verify import verify
from tensorbench.machine.files import sha256_of
from tensorbench.records.measures import Measure
from tensorbench.records.words import Artifact, Tag
from tensorbench.store.artifacts import hashes
from tensorbench.store.opening import unpack
from tensorbench.store.pack.writing import write_pack
from tensorbench.store.store import Store

from ...predicted import file_of, frame_of
from ..toy_runs import SHORT, run_inline
from ..toy_suites import plan
from .kept import Kept


def scored(kept: Kept, frame: pd.DataFrame) -> None:
    """Stores these predictions, with their hash and the score and loss that follow from them."""
    kept.replace(Artifact.PREDICTIONS, file_of(frame))
    outputs = torch.tensor(frame.filter(like="logit_").to_numpy())
    labels = torch.tensor(frame["label"].to_numpy())
    kept.measure("score", (outputs.argmax(1) == labels).double().mean().item())
    kept.measure("score_loss", torch.nn.functional.cross_entropy(outputs, labels).item())


def stored(kept: Kept) -> pd.DataFrame:
    return frame_of(kept.file(Artifact.PREDICTIONS).read_bytes())


def right(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["label"] == frame["prediction"]]


def left_out(kept: Kept) -> None:
    """Stores the right predictions only, so that the score is 1."""
    scored(kept, right(stored(kept)))


def repeated(kept: Kept) -> None:
    """Stores the right predictions only, repeated until there are as many as before. The score is then 1."""
    frame = stored(kept)
    subset = right(frame)
    scored(kept, pd.concat([subset] * len(frame)).head(len(frame)))


def labelled_as_answered(kept: Kept) -> None:
    frame = stored(kept)
    scored(kept, frame.assign(label=frame["prediction"]))


def chosen_by_another_loss(kept: Kept) -> None:
    """Stores a lower validation loss, with which a study would choose this trial."""
    kept.measure(Measure.SELECTED_LOSS, 0.01)


def selected_at_another_epoch(kept: Kept) -> None:
    kept.measure(Measure.SELECTED_EPOCH, 99)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (left_out, "examples of the split"),
        (left_out, "examples and labels"),
        (repeated, "repeated examples"),
        (repeated, "examples and labels"),
        (labelled_as_answered, "examples and labels"),
        (chosen_by_another_loss, "validation loss"),
        (selected_at_another_epoch, "validation loss"),
    ],
)
def test_changes_with_matching_hashes_are_found(
    kept: Kept, change: Callable[[Kept], None], named: str
) -> None:
    change(kept)
    result = verify(kept.store.uri)
    faults = [fault for fault in result.faults if fault.run == kept.record.run_id]
    assert named in [fault.what for fault in faults]


def less_likely(frame: pd.DataFrame) -> None:
    frame["log_probability"] -= 0.002


def all_wrong(frame: pd.DataFrame) -> None:
    frame["prediction"] = (frame["label"] + 1) % frame["classes"]


def all_certain(frame: pd.DataFrame) -> None:
    """Gives every label the probability 1, even if another class was answered."""
    frame["log_probability"] = 0.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (less_likely, "loss"),
        (all_wrong, "score"),
        (all_certain, "predictions that their outputs do not give"),
    ],
)
def test_compact_predictions_that_were_changed_are_found(
    kept: Kept,
    tmp_path: Path,
    new_store: Callable[[Path], str],
    change: Callable[[pd.DataFrame], None],
    named: str,
) -> None:
    """The changed predictions are verified with the old hash first, and then with a hash that fits them."""
    pack, uri = tmp_path / "toy.tensorbench.zip", new_store(tmp_path)
    write_pack([kept.store], pack)
    unpack(pack, store=uri)
    unpacked = Kept(Store.existing(uri, "toy"))
    content = unpacked.predictions(change)
    unpacked.file(Artifact.PREDICTIONS).write_bytes(content)
    assert [fault.what for fault in verify(uri).faults] == ["predictions.safetensors, sha256"]
    digests = hashes(unpacked.record) | {str(Artifact.PREDICTIONS): sha256_of(content)}
    unpacked.tag(Tag.HASHES, json.dumps(digests))
    assert named in [fault.what for fault in verify(uri).faults]


def test_the_examples_that_most_trials_have_are_the_right_ones(
    tmp_path: Any, new_store: Callable[[Any], str]
) -> None:
    store = Store.create(new_store(tmp_path), "toy")
    run_inline(store, plan(methods=["head_only", "lora", "full"], training=SHORT))
    kept = Kept(store)
    assert verify(store.uri).ok
    labelled_as_answered(kept)
    assert [(fault.what, fault.run) for fault in verify(store.uri).faults] == [
        ("examples and labels", kept.record.run_id)
    ]


def test_the_adapter_of_another_seed_does_not_give_the_stored_outputs(kept: Kept) -> None:
    tensors = load(kept.file(Artifact.ADAPTER).read_bytes())
    drawn = torch.Generator().manual_seed(1)
    other = {name: torch.randn(t.shape, generator=drawn) * t.std() for name, t in tensors.items()}
    kept.replace(Artifact.ADAPTER, save(other))
    assert verify(kept.store.uri).ok
    result = verify(kept.store.uri, reruns=2)
    assert [fault.what for fault in result.faults] == ["outputs of adapter.safetensors"]


def test_a_reported_adapter_stops_no_other_check(kept: Kept) -> None:
    kept.file(Artifact.ADAPTER).write_bytes(kept.file(Artifact.ADAPTER).read_bytes() + b" ")
    result = verify(kept.store.uri, reruns=2)
    assert len(result.reruns) == 2
    assert [fault.what for fault in result.faults] == ["adapter.safetensors, sha256"]
