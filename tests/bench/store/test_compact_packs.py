"""Tests the size of packs, the compact form of their predictions, and packs of version 1."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tensorbench.records.pack_format import CONFIGS_TABLE, MANIFEST, PREDICTIONS_TABLE, SPLITS_TABLE
from tensorbench.records.predictions import STEP, compact, frame_of, log_probabilities
from tensorbench.records.words import Artifact
from tensorbench.store.artifacts import digest, hashes
from tensorbench.store.opening import open_results
from tensorbench.store.pack import compact as tables
from tensorbench.store.pack import parquet
from tensorbench.store.pack.archive import PackError
from tensorbench.store.pack.reading import Packed
from tensorbench.store.pack.writing import write_pack

from ...packs import Files, changed, files
from .many_trials import ManyTrials, file_of, predictions

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
        # The hash of predictions is that of the compact values; other files keep their hashes.
        (tmp_path / "file").write_bytes(content)
        own = hashes(record)
        assert own.pop(Artifact.PREDICTIONS) == digest(Artifact.PREDICTIONS, tmp_path / "file")
        assert own.items() <= hashes(trial).items()
        assert record.metrics == trial.metrics
    # The three trials share two splits and have no files of their own.
    assert len(pq.read_table(io.BytesIO(files(path)[f"experiments/0000/{SPLITS_TABLE}"]))) == 2
    assert not [
        name for name in files(path) if "/artifacts/" in name and records.keys() & set(name.split("/"))
    ]


def test_losses_of_steps_are_rounded_and_no_other_point(tmp_path: Path) -> None:
    source, path = packed(tmp_path, predictions(0, 5), steps=50)
    curves, exact = opened(path).curves(), source.curves().sort_values(["run_id", "key", "step"])
    steps = (exact["key"] == "train/loss").to_numpy()
    difference = np.abs(curves["value"].to_numpy() / exact["value"].to_numpy() - 1)
    assert 0 < difference[steps].max() <= 2.0**-tables.DIGITS
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
    "no ids": lambda frame: frame.drop(columns="example", inplace=True),
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


def earlier(content: Files) -> None:
    """Converts a pack with full predictions to the layout of version 1."""
    table = pq.read_table(io.BytesIO(content.pop(f"experiments/0000/{CONFIGS_TABLE}")))
    for row in table.to_pylist():
        name = f"experiments/0000/artifacts/{row['run_id']}/{Artifact.CONFIG}"
        content[name] = "\n".join(row["lines"]).encode()
    content[MANIFEST] = json.dumps(json.loads(content[MANIFEST]) | {"schema": 1}).encode()


def test_a_pack_of_version_1_is_read_and_packed_again_as_its_store(tmp_path: Path) -> None:
    source, path = packed(tmp_path, *(predictions(seed, 50) for seed in range(3)), adapters=True, steps=9)
    old = opened(changed(path, tmp_path / "old.tensorbench.zip", earlier))
    assert json.loads(files(old.archive.path)[MANIFEST])["schema"] == 1
    for record in old.records():
        for name in (Artifact.CONFIG, Artifact.PREDICTIONS):
            assert old.has(record, name)
            assert old.read(record, name) == source.read(record, name)
    write_pack([source], path, force=True)
    again = tmp_path / "again.tensorbench.zip"
    for one in (old, opened(path)):
        write_pack([one], again, force=True)
        assert again.read_bytes() == path.read_bytes()


# --- changed tables ---


def rows(table: str, change: Callable[[list[dict[str, Any]]], None]) -> Callable[[Files], None]:
    """Returns a change of a pack's files. It applies `change` to the rows of one table."""
    schema = {
        CONFIGS_TABLE: parquet.CONFIGS,
        SPLITS_TABLE: parquet.SPLITS,
        PREDICTIONS_TABLE: parquet.PREDICTIONS,
    }[table]

    def edit(content: Files) -> None:
        name = f"experiments/0000/{table}"
        lines = pq.read_table(io.BytesIO(content[name])).to_pylist()
        change(lines)
        content[name] = parquet.written(pa.Table.from_pylist(lines, schema))

    return edit


STEPS_COLUMN = "log_probability_thousandths"
CHANGES: dict[str, tuple[Callable[[Files], None], str]] = {
    "a config of no trial": (rows(CONFIGS_TABLE, lambda lines: lines[0].update(run_id="x")), CONFIGS_TABLE),
    "a config twice": (rows(CONFIGS_TABLE, lambda lines: lines.append(lines[0])), CONFIGS_TABLE),
    "a line that is missing": (
        rows(CONFIGS_TABLE, lambda lines: lines[0]["lines"].append(None)),
        CONFIGS_TABLE,
    ),
    "no lines": (rows(CONFIGS_TABLE, lambda lines: lines[0].update(lines=None)), CONFIGS_TABLE),
    "predictions twice": (rows(PREDICTIONS_TABLE, lambda lines: lines.append(lines[0])), PREDICTIONS_TABLE),
    "another split": (rows(PREDICTIONS_TABLE, lambda lines: lines[0].update(split=7)), PREDICTIONS_TABLE),
    "fewer answers": (rows(PREDICTIONS_TABLE, lambda lines: lines[0]["prediction"].pop()), PREDICTIONS_TABLE),
    "fewer steps": (rows(PREDICTIONS_TABLE, lambda lines: lines[0][STEPS_COLUMN].pop()), PREDICTIONS_TABLE),
    "no class": (
        rows(PREDICTIONS_TABLE, lambda lines: lines[0]["prediction"].__setitem__(0, 9)),
        "out of range",
    ),
    "above 1": (
        rows(PREDICTIONS_TABLE, lambda lines: lines[0][STEPS_COLUMN].__setitem__(0, 1)),
        "out of range",
    ),
    "fewer labels": (rows(SPLITS_TABLE, lambda lines: lines[0]["label"].pop()), PREDICTIONS_TABLE),
    "other labels": (rows(SPLITS_TABLE, lambda lines: lines[0]["label"].__setitem__(0, -1)), "out of range"),
    "one class": (rows(SPLITS_TABLE, lambda lines: lines[0].update(classes=1)), PREDICTIONS_TABLE),
    "no splits": (lambda content: content.pop(f"experiments/0000/{SPLITS_TABLE}"), SPLITS_TABLE),
}


@pytest.mark.parametrize("way", CHANGES)
def test_tables_that_do_not_fit_together_are_refused(way: str, tmp_path: Path) -> None:
    _, path = packed(tmp_path, *(predictions(seed, 20) for seed in range(3)))
    change, said = CHANGES[way]
    with pytest.raises(PackError, match=f"is refused: .*{said}"):
        opened(changed(path, tmp_path / "changed.tensorbench.zip", change))


def test_a_configuration_of_gigabytes_is_refused(tmp_path: Path) -> None:
    """The file stores a line of one megabyte once, but every row repeats this line a thousand times."""
    _, path = packed(tmp_path, predictions(0, 20))
    lines = ["x" * 2**20] * 1_000
    bomb = changed(
        path, tmp_path / "bomb.tensorbench.zip", rows(CONFIGS_TABLE, lambda rows: rows[0].update(lines=lines))
    )
    assert bomb.stat().st_size < 2**17
    pack = opened(bomb)
    with pytest.raises(PackError, match=CONFIGS_TABLE):
        pack.read(pack.records()[0], Artifact.CONFIG)


def test_predictions_that_compress_to_nothing_are_refused(tmp_path: Path) -> None:
    _, path = packed(tmp_path, predictions(0, 20))

    def many(lines: list[dict[str, Any]]) -> None:
        lines[0].update({"prediction": [0] * 10**7, STEPS_COLUMN: [0] * 10**7})

    bomb = changed(path, tmp_path / "bomb.tensorbench.zip", rows(PREDICTIONS_TABLE, many))
    assert bomb.stat().st_size < 2**17
    with pytest.raises(PackError, match=rf"{PREDICTIONS_TABLE}.* need [\d,]+ bytes"):
        opened(bomb)


def test_compact_predictions_are_the_same_when_read_again() -> None:
    first = compact(file_of(predictions(0, 100, classes=3)))
    assert first is not None
    again = compact(first.file())
    assert again is not None
    assert again.digest == first.digest
    assert again.classes == 3
