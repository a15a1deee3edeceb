"""Tests results as data frames: stored values in documented columns."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tensorbench
from tensorbench.methods import UserError
from tensorbench.records.words import Artifact
from tensorbench.reports.loading import CURVES, PREDICTIONS, TRIALS, Column, LoadedResults
from tensorbench.store.opening import open_results
from tensorbench.store.pack.writing import write_pack

from ..messages import naming
from ..predicted import file_of
from .made_up import EXAMPLES, NAME, SMALL, Stored, plan_of, result

DOCS = Path(__file__).parents[2] / "docs"

FRAMES = {"trials": TRIALS, "curves": CURVES, "predictions": PREDICTIONS}


@pytest.fixture(scope="module")
def results(rich: str) -> LoadedResults:
    return tensorbench.load_results(NAME, store=rich)


def types(columns: Mapping[str, Column]) -> dict[str, np.dtype | pd.api.extensions.ExtensionDtype]:
    return {name: pd.Series(dtype=column.dtype).dtype for name, column in columns.items()}


def test_trials_are_the_stored_runs(results: LoadedResults) -> None:
    (experiment,) = results.experiments
    trials = results.trials.set_index("trial_id")
    assert set(trials.index) == set(experiment.records)
    assert trials["score"].notna().sum() == (trials["status"] == "FINISHED").sum()
    seeds = results.seeds[results.seeds["status"] == "FINISHED"].drop_duplicates("trial_id")
    assert trials.loc[seeds["trial_id"], "score"].tolist() == seeds["score"].tolist()
    for column in ("started", "ended"):
        stored_values = [getattr(experiment.records[id_], column) for id_ in trials.index]
        assert trials[column].astype("int64").tolist() == stored_values
    full = trials["method"].str.startswith("full fine-tuning")
    assert set(trials.loc[full, "budget"]) == {"fixed size"}
    assert trials["started"].dt.tz is not None


def test_every_seed_says_of_which_cell_it_is(results: LoadedResults) -> None:
    of = ["task", "backbone", "budget", "method"]
    cells = results.cells.loc[results.seeds["cell"], of].reset_index(drop=True)
    pd.testing.assert_frame_equal(results.seeds[of], cells, check_index_type=False)


def test_predictions_give_the_scores(results: LoadedResults) -> None:
    predictions = results.predictions
    trials = results.trials.set_index("trial_id")
    assert set(predictions["trial_id"]) == set(trials.index[trials["status"] == "FINISHED"])
    right = predictions.groupby("trial_id")["correct"].agg(["mean", "size"])
    assert (right["size"] == EXAMPLES).all()
    np.testing.assert_allclose(right["mean"], trials.loc[right.index, "score"])


def test_curves_have_every_point(results: LoadedResults) -> None:
    (experiment,) = results.experiments
    record = next(iter(experiment.records.values()))
    points = results.curves[results.curves["trial_id"] == record.trial_id]
    own = points[points["measure"] == "validation/accuracy"]
    stored = experiment.source.curves("validation/accuracy", [record.run_id])
    assert own[["step", "value"]].values.tolist() == stored[["step", "value"]].values.tolist() != []
    assert set(points["measure"]) == {"train/loss", "validation/accuracy"}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_has_its_columns_also_where_it_has_no_line(results: LoadedResults, name: str) -> None:
    columns = types(FRAMES[name])
    frame = getattr(results, name)
    assert frame.dtypes.to_dict() == columns
    bare = tuple(replace(experiment, records={}) for experiment in results.experiments)
    empty = getattr(LoadedResults(bare, (), ()), name)
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == columns


def test_logits_are_there_where_they_are_stored(small: str, tmp_path: Path) -> None:
    """If two trials have different numbers of classes, the trial with fewer classes lacks the last logits."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    shutil.copyfile(small.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    shutil.copytree(Path(small.removeprefix("sqlite:///")).parent / "mlartifacts", tmp_path / "mlartifacts")
    results = tensorbench.load_results("small", store=uri)
    (experiment,) = results.experiments
    ids = list(experiment.records)[:2]
    files = {}
    for classes, id_ in zip((2, 3), ids, strict=True):
        frame = pd.DataFrame({"example": [0], "label": [1], "prediction": [1]})
        for number in range(classes):
            frame[f"logit_{number}"] = np.float32(number)
        files[experiment.records[id_].run_id] = file_of(frame)
    source = experiment.source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "read", lambda record, name: files.get(record.run_id))
        predictions = results.predictions
    assert list(predictions.columns) == [*PREDICTIONS, "logit_0", "logit_1", "logit_2"]
    assert predictions.set_index("trial_id")["logit_2"].isna().to_dict() == {ids[0]: True, ids[1]: False}


def test_targets_of_other_kinds_than_one_class_have_their_columns(results: LoadedResults) -> None:
    labels, answers = {"label_0": [1, 0], "label_1": [0, 0]}, {"prediction_0": [1, 1], "prediction_1": [0, 0]}
    several = pd.DataFrame({"example": [0, 1], **labels, **answers})
    number = pd.DataFrame({"example": [0], "label": [2.5], "prediction": [2.25], "logit_0": [0.5]})
    (experiment,) = results.experiments
    files = [file_of(several), file_of(number)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.source, "read", lambda record, name: files.pop() if files else None)
        predictions = LoadedResults(results.experiments, results.all_cells, ()).predictions
    of_number, of_several = (
        predictions[predictions["label"].notna()],
        predictions[predictions["label"].isna()],
    )
    assert of_number[["label", "prediction", "correct"]].values.tolist() == [[2.5, 2.25, pd.NA]]
    assert of_several["correct"].tolist() == [True, False]
    assert of_several[["label_0", "prediction_0"]].values.tolist() == [[1, 1], [0, 1]]
    assert predictions["logit_0"].dtype == "float32"


def test_a_pack_gives_the_frames_of_its_store(rich: str, results: LoadedResults, tmp_path: Path) -> None:
    pack = tmp_path / "rich.tensorbench.zip"
    write_pack(open_results(rich, [NAME]), pack)
    packed = tensorbench.load_results(pack)
    for name in ("cells", "seeds", *FRAMES):
        pd.testing.assert_frame_equal(getattr(packed, name), getattr(results, name))


def test_a_trial_of_several_experiments_is_in_each_frame_once(stored: Stored) -> None:
    other = SMALL | {"name": "other", "seeds": [0, 1, 2]}
    uri = stored(result, plan_of(**SMALL), plan_of(**other))
    both = tensorbench.load_results("small", "other", store=uri)
    assert len(both.trials) == 6
    for name, keys in (("trials", []), ("curves", ["measure", "step"]), ("predictions", ["example"])):
        frame = getattr(both, name)
        assert not frame.duplicated(["trial_id", *keys]).any()
        assert frame.groupby("experiment")["trial_id"].nunique().to_dict() == {"small": 4, "other": 2}
    # The runs of these trials are those of the first experiment's rows.
    seeds = both.seeds[both.seeds["experiment"] == "small"].set_index("trial_id")["run_id"].to_dict()
    assert seeds.items() <= both.trials.set_index("trial_id")["run_id"].to_dict().items()


def test_predictions_that_cannot_be_read_are_named(results: LoadedResults) -> None:
    broken = LoadedResults(results.experiments, results.all_cells, ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results.experiments[0].source, "read", lambda record, name: b"PAR1")
        with pytest.raises(UserError, match=naming(Artifact.PREDICTIONS, "run")):
            broken.predictions  # noqa: B018


def test_loading_no_experiment_is_refused() -> None:
    with pytest.raises(UserError, match="at least one experiment"):
        tensorbench.load_results()


@pytest.mark.parametrize("experiment", [["notebook"], None])
def test_experiments_of_another_type_are_refused(experiment: Any) -> None:
    with pytest.raises(UserError, match=naming("experiments", "names of experiments", repr(experiment))):
        tensorbench.load_results(experiment)
    with pytest.raises(UserError, match=naming("experiments", "names of experiments", repr(experiment))):
        tensorbench.write_report(experiment, out="report")


def test_unknown_numbers_are_nan_in_every_column(results: LoadedResults) -> None:
    cells = results.cells
    # No method of these results prunes ranks.
    assert cells["peak"].dtype == "float64"
    assert cells["peak"].isna().all()
    assert cells["parameters"].dtype == "int64"
    for frame in (cells, results.tables["cells"]):
        asked = frame["asked"].notna()
        assert frame["within"].dtype == "boolean"
        assert (frame["within"].notna() == asked).all()
        assert 0 < asked.sum() < len(frame)
    for name, table in results.tables.items():
        of_objects = [column for column in table if table[column].dtype == object]
        assert not [column for column in of_objects if table[column].isna().any()], name


@pytest.mark.parametrize("name", FRAMES)
def test_the_document_has_every_column_with_type_and_unit(name: str) -> None:
    sections = (DOCS / "reference" / "data-frames.md").read_text(encoding="utf-8").split("\n## ")
    (section,) = (section for section in sections if section.startswith(f"`{name}`\n"))
    columns = list(FRAMES[name].items())
    if name != "trials":
        # The page states once that all frames begin with the same eight columns.
        assert columns[:8] == list(FRAMES["trials"].items())[:8]
        columns = columns[8:]
    lines = [
        f"| `{column}` | {', '.join(filter(None, (field.dtype, field.unit)))} | {field.meaning} |"
        for column, field in columns
    ]
    assert [line for line in section.splitlines() if line.startswith("| `")] == lines
