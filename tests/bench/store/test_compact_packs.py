"""Tests the size of packs, files of predictions, and their compact form in packs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save

from tensorbench.machine.files import sha256_of
from tensorbench.records.pack_format import EXPERIMENT
from tensorbench.records.predictions import STEP, Predictions, compact, log_probabilities, read_predictions
from tensorbench.records.words import Artifact
from tensorbench.store.artifacts import hashes
from tensorbench.store.opening import open_results
from tensorbench.store.pack.reading import Packed
from tensorbench.store.pack.writing import DIGITS, write_pack

from ...packs import files
from ...predicted import file_of, frame_of
from .many_trials import ManyTrials, predictions

#: A published pack, whose suite and configurations are those of real trials.
PUBLISHED = Path(__file__).parents[3] / "docs" / "quickstart-report" / "quickstart.tensorbench.zip"

#: The number of trials of a large suite, and the largest accepted size of its pack in bytes.
TRIALS, MOST = 2_000, 10_000_000
#: The number of examples of the largest test split and validation split of suites/study.yaml, and the number
#: of steps of its trials.
TEST, VALIDATION, STEPS = 2_500, 800, 3 * 128


def opened(path: Path) -> Packed:
    (source,) = open_results("", [str(path)])
    assert isinstance(source, Packed)
    return source


def packed(
    folder: Path, *frames: pd.DataFrame, adapters: bool = False, **how: Any
) -> tuple[ManyTrials, Path]:
    """Makes up a trial for each frame of predictions. Returns the trials and their pack."""
    source, path = ManyTrials(opened(PUBLISHED), list(frames), **how), folder / "small.tensorbench.zip"
    write_pack([source], path, adapters=adapters, force=True)
    return source, path


@pytest.mark.parametrize("examples", [TEST, VALIDATION])
def test_a_study_has_at_most_ten_megabytes(examples: int, tmp_path: Path) -> None:
    made = 100
    _, path = packed(tmp_path, *(predictions(seed, examples) for seed in range(made)), steps=STEPS)
    assert len(opened(path).records()) == made
    assert path.stat().st_size / made * TRIALS <= MOST


def test_classes_and_log_probabilities_are_what_the_logits_give(tmp_path: Path) -> None:
    frames = [predictions(0, 50), predictions(1, 50), predictions(2, 30, classes=10)]
    source, path = packed(tmp_path, *frames, steps=4)
    pack = opened(path)
    records = {record.run_id: record for record in pack.records()}
    for trial, frame in zip(source.records(), frames, strict=True):
        record = records[trial.run_id]
        content = pack.read(record, Artifact.PREDICTIONS)
        assert content is not None
        stored = frame_of(content)
        same = ["example", "label", "prediction"]
        pd.testing.assert_frame_equal(stored[same], frame[same])
        exact = log_probabilities(frame.filter(like="logit_").to_numpy(), frame["label"].to_numpy())
        assert np.abs(stored["log_probability"] - exact).max() <= STEP / 2 + 1e-12
        assert set(stored["classes"]) == {frame.shape[1] - 3}
        assert pack.read(record, Artifact.CONFIG) == source.read(trial, Artifact.CONFIG)
        # The hash of predictions is that of the compact file; other files keep their hashes.
        own = hashes(record)
        assert own.pop(Artifact.PREDICTIONS) == sha256_of(content)
        assert own.items() <= hashes(trial).items()
        assert record.metrics == trial.metrics
    # The three trials share two splits and have no files of their own.
    assert len(json.loads(files(path)[f"experiments/0000/{EXPERIMENT}"])["splits"]) == 2
    assert not [
        name for name in files(path) if "/artifacts/" in name and records.keys() & set(name.split("/"))
    ]


def test_losses_of_steps_are_rounded_and_no_other_point(tmp_path: Path) -> None:
    source, path = packed(tmp_path, predictions(0, 5), steps=50)
    curves, exact = opened(path).curves(), source.curves().sort_values(["run_id", "key", "step"])
    steps = (exact["key"] == "train/loss").to_numpy()
    difference = np.abs(curves["value"].to_numpy() / exact["value"].to_numpy() - 1)
    assert 0 < difference[steps].max() <= 2.0**-DIGITS
    assert not difference[~steps].any()
    write_pack([source], path, adapters=True, force=True)
    assert opened(path).curves()["value"].tolist() == exact["value"].tolist()


def wrong_answer(frame: pd.DataFrame) -> None:
    frame.loc[3, "prediction"] = 1 - frame.loc[3, "prediction"]


def no_number(frame: pd.DataFrame) -> None:
    frame.loc[3, "logit_0"] = np.nan


def several_labels(frame: pd.DataFrame) -> None:
    frame.rename(columns={"label": "label_0", "prediction": "prediction_0"}, inplace=True)


def no_answer(frame: pd.DataFrame) -> None:
    frame["prediction"] = frame["prediction"].astype(float).where(frame.index != 3)


INCOMPRESSIBLE: dict[str, Callable[[pd.DataFrame], Any]] = {
    "an answer that the logits do not give": wrong_answer,
    "logits that are no numbers": no_number,
    "several labels": several_labels,
    "no answer": no_answer,
    "written text": lambda frame: frame.insert(0, "text", "yes"),
    "a label beyond the classes": lambda frame: frame.update({"label": frame["label"].replace(1, 2)}),
    "one output": lambda frame: frame.drop(columns="logit_1", inplace=True),
    "a log-probability that 32 bits do not hold": lambda frame: frame.update(
        {"logit_1": frame["logit_1"] * 1e9}
    ),
}


@pytest.mark.parametrize("way", INCOMPRESSIBLE)
def test_what_cannot_be_compact_stays_whole(way: str, tmp_path: Path) -> None:
    frame = predictions(0, 50)
    INCOMPRESSIBLE[way](frame)
    source, path = packed(tmp_path, frame)
    ((trial,), (record,)) = source.records(), opened(path).records()
    assert opened(path).read(record, Artifact.PREDICTIONS) == file_of(frame)
    assert hashes(record) == hashes(trial)


@pytest.mark.parametrize(
    "how", [{"metric": "auroc"}, {"metric": "of a plug-in elsewhere"}, {"adapters": True}]
)
def test_where_logits_are_needed_they_stay(how: dict[str, Any], tmp_path: Path) -> None:
    frame = predictions(0, 50)
    _, path = packed(tmp_path, frame, **how)
    pack = opened(path)
    assert pack.read(pack.records()[0], Artifact.PREDICTIONS) == file_of(frame)


def test_a_pack_of_a_pack_has_the_same_bytes(tmp_path: Path) -> None:
    frames = [predictions(seed, 50) for seed in range(3)]
    several_labels(frames[1])
    _, path = packed(tmp_path, *frames, steps=9)
    again = tmp_path / "again.tensorbench.zip"
    write_pack([opened(path)], again)
    assert again.read_bytes() == path.read_bytes()


def test_compact_predictions_have_the_same_bytes_everywhere() -> None:
    """Their hash is stored, and a pack is read with another version of safetensors than it was written."""
    example, label = np.array([7, 3, 5]), np.array([0, 1, 1])
    logit = np.array([[2, 0, 0], [0, 0, 1], [0, 3, 0]], np.float32)
    made = compact(Predictions(example, label, logit.argmax(1), logit, 3))
    assert made is not None
    assert made.steps is not None
    assert made.steps.tolist() == [240, 1551, 95]
    assert sha256_of(made.file()) == "91fc5a1223c03392a64f5356ac5d866b1f882d4e1eb6734593c8781cdf830024"
    assert compact(read_predictions(made.file())).file() == made.file()  # type: ignore[union-attr]


#: Files of predictions that cannot be read: the tensors that are changed.
UNREADABLE: dict[str, dict[str, Any]] = {
    "fewer labels": {"label": np.zeros(2, np.int64)},
    "labels of texts": {"label": np.zeros(3, np.uint8).view(bool)},
    "examples in columns": {"example": np.zeros((3, 1), np.int64)},
    "fewer outputs": {"logit": np.zeros((2, 3), np.float32)},
    "outputs without classes": {"logit": np.zeros(3, np.float32)},
    "neither outputs nor probabilities": {"logit": None},
    "another tensor": {"more": np.zeros(3)},
    "a text less": {"text": np.zeros(4, np.uint8), "text_ends": np.array([2, 4])},
    "a text that ends before it begins": {"text": np.zeros(4, np.uint8), "text_ends": np.array([2, 1, 4])},
    "a class that is none": {"logit": None, "classes": np.array([2]), "steps": np.zeros(3, np.uint32)},
    "signed steps": {"logit": None, "classes": np.array([4]), "steps": np.zeros(3, np.int32)},
    "classes without a dimension": {"logit": None, "classes": np.array(3), "steps": np.zeros(3, np.uint32)},
    "half a class": {"logit": None, "classes": np.array([2.5]), "steps": np.zeros(3, np.uint32)},
    "outputs without a dimension": {"logit": np.array(1.0, np.float32)},
    "examples without a dimension": {"example": np.array(0)},
    "ends of texts without a dimension": {"text": np.zeros(4, np.uint8), "text_ends": np.array(4)},
    "one class": {"logit": None, "classes": np.array([1]), "steps": np.zeros(3, np.uint32)},
}


@pytest.mark.parametrize("way", UNREADABLE)
def test_files_of_predictions_that_cannot_be_read(way: str) -> None:
    numbers = {name: np.array([0, 1, 2]) for name in ("example", "label", "prediction")}
    sound = numbers | {"logit": np.zeros((3, 3), np.float32)}
    assert read_predictions(save(sound)).classes == 3
    tensors = {name: values for name, values in (sound | UNREADABLE[way]).items() if values is not None}
    with pytest.raises(ValueError, match=r"tensor|ends before"):
        read_predictions(save(tensors))
