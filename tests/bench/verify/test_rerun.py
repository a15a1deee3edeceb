"""Tests that stored trials that are run again give the stored results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import tensorbench.checks.verify.rerun
from tensorbench.checks.verify import verify
from tensorbench.checks.verify.findings import Examined
from tensorbench.checks.verify.rerun import Candidate, compared
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS
from tensorbench.records.record import Failure, Progress, Record, failed
from tensorbench.records.words import Artifact, Status
from tensorbench.store.store import Store

from ...messages import naming
from ...packs import packed
from ...predicted import frame_of
from ..toy_runs import raising, run_inline
from ..toy_suites import plan
from .forged import Forged
from .kept import Kept


def test_a_sample_runs_again_and_says_how_near_it_has_to_come(kept: Kept) -> None:
    result = verify(store=kept.store.uri, reruns=5)
    assert result.ok
    assert sorted(rerun.trial for rerun in result.reruns) == sorted(
        record.trial_id for record in kept.store.records() if record.status == Status.FINISHED
    )
    assert all((rerun.score, rerun.allowed) == (rerun.stored, 1e-6) for rerun in result.reruns)


def test_the_seed_alone_decides_which_trials_run_again(kept: Kept) -> None:
    def drawn(seed: int) -> str:
        (rerun,) = verify(store=kept.store.uri, reruns=1, sample_seed=seed).reruns
        return rerun.trial

    # Seed 0 draws the second of two trials, seeds 1 and 2 the first.
    assert drawn(1) == drawn(2) != drawn(0)


def test_a_negative_number_of_reruns_is_refused(kept: Kept) -> None:
    with pytest.raises(UserError, match=naming("reruns", "at least 0", "-1")):
        verify(store=kept.store.uri, reruns=-1)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_another_run_has_the_stored_validation_loss(kept: Kept, elsewhere: bool) -> None:
    """On another processor it may differ, however near scores have to be."""
    if elsewhere:
        kept.store.client.set_tag(kept.record.run_id, "provenance.cpu_kind", "another")
    loss = kept.record.measure(Measure.SELECTED_LOSS)
    assert loss is not None
    kept.measure(Measure.SELECTED_LOSS, loss - 0.001)
    result = verify(store=kept.store.uri, reruns=2, tolerance=1e-6)
    whats = {fault.what for fault in result.faults if fault.run == kept.record.run_id}
    assert ("validation loss of another run" in whats) != elsewhere


def test_a_trial_whose_data_are_not_here_cannot_run_again(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorbench.checks.verify.rerun, "prepare_all", raising(UserError("no data here")))
    result = verify(store=kept.store.uri, reruns=1)
    assert [(missing.what, missing.why) for missing in result.unchecked] == [
        ("score of another run", "no data here")
    ]
    assert (result.verified, result.reruns, result.ok) == (1, [], False)


def test_scores_of_other_hardware_may_be_further_apart_and_labels_may_not(kept: Kept) -> None:
    """The test changes a trial's labels, all that is computed from them, and the kind of its processor.

    Its name stays, as with processors of two generations in a cloud.
    """

    def change(frame: pd.DataFrame) -> None:
        frame.loc[:, "label"] = frame["prediction"]

    kept.store.client.set_tag(kept.record.run_id, "provenance.cpu_kind", "another")
    content = kept.predictions(change)
    kept.replace(Artifact.PREDICTIONS, content)
    frame = frame_of(content)
    logits = torch.tensor(frame.filter(like="logit_").to_numpy())
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(frame["label"].to_numpy()))
    kept.measure("score", 1.0)
    kept.measure("score_loss", loss.item())
    # The changed labels differ from the other trial's and, as only a rerun shows, from the data's.
    without = [fault.what for fault in verify(store=kept.store.uri).faults]
    result = verify(store=kept.store.uri, reruns=2, tolerance=1.0)
    assert [fault.what for fault in result.faults] == [*without, "examples and labels"]
    (elsewhere,) = (rerun for rerun in result.reruns if rerun.run == kept.record.run_id)
    assert (elsewhere.allowed, elsewhere.reason) == (1.0, "not the same cpu_kind as then")
    result = verify(store=kept.store.uri, reruns=2, tolerance=0.02)
    assert "score of another run, to 0.02" in [fault.what for fault in result.faults]
    result = verify(store=kept.store.uri, reruns=2)
    assert f"score of another run, to {5 / len(frame):.3g}" in [fault.what for fault in result.faults]


@pytest.mark.parametrize(("stored", "now", "broken"), [(5e4, 5e4 + 1, False), (0.001, 0.009, True)])
def test_scores_with_a_unit_may_differ_by_a_share_of_them(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, stored: float, now: float, broken: bool
) -> None:
    monkeypatch.setattr(METRICS.get("accuracy"), "in_units", True)
    kept.measure("score", stored)
    trial = Trial.model_validate(json.loads(kept.file(Artifact.CONFIG).read_text())["trial"])
    files = {Artifact.PREDICTIONS: kept.file(Artifact.PREDICTIONS).read_bytes()}
    ending = Record(status=Status.FINISHED, metrics={Measure.SCORE: now}, files=files)
    findings = Examined("toy")
    compared(Candidate(findings, kept.store, kept.record, trial), ending, [], {})
    assert bool(findings.faults) == broken


@dataclass
class Change:
    """How a run on other hardware differs from the stored one, whose losses are all 1."""

    #: Steps, and by how much the new loss is higher there.
    higher: dict[int, float] = field(default_factory=dict)
    #: A step without a stored loss.
    gone: int = 0
    #: By how much the new score is lower.
    worse: float = 0.0
    #: The failures of both runs.
    then: Failure | None = None
    now: Failure | None = None


#: The changes, and what is broken then. None: the scores cannot be compared.
CHANGES: dict[str, tuple[Change, list[str] | None]] = {
    "an early loss": (Change({10: 0.05}), ["train/loss"]),
    "an early loss and the score": (Change({10: 0.05, 11: 0.2}, worse=0.5), ["train/loss", "score"]),
    "slightly a later loss, and the score": (Change({11: 0.05}, worse=0.5), ["score"]),
    "a later loss": (Change({11: 0.2}), []),
    "a later loss and the score": (Change({11: 0.2}, worse=0.5), None),
    "a curve that ends": (Change(gone=11, worse=0.5), ["train/loss", "score"]),
    "divergence now": (Change(now="diverged"), None),
    "divergence now, and an early loss": (Change({10: 0.05}, now="diverged"), ["train/loss", "failure"]),
    "divergence then": (Change(gone=11, then="diverged"), None),
    "divergence both times": (Change({10: 0.05}, gone=9, then="diverged", now="diverged"), []),
    "another failure now": (Change({11: 0.2}, now="error"), ["failure"]),
    "divergence in place of another failure": (Change(then="error", now="diverged"), ["failure"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_rounding_of_other_hardware_may_decide_a_score_after_the_first_steps(kept: Kept, case: str) -> None:
    change, broken = CHANGES[case]
    steps, record = range(1, 13), kept.record
    for step in steps:
        if step != change.gone:
            kept.store.client.log_metric(record.run_id, Measure.TRAIN_LOSS, 1.0, step=step)
    assert record.score is not None
    trial = Trial.model_validate(json.loads(kept.file(Artifact.CONFIG).read_text())["trial"])
    files = {Artifact.PREDICTIONS: kept.file(Artifact.PREDICTIONS).read_bytes()}
    ending = Record(status=Status.FINISHED, metrics={Measure.SCORE: record.score - change.worse}, files=files)
    if change.now:
        ending = failed(change.now, "as it happens", "")
    if change.then:
        then = failed(change.then, "as it happened", "")
        record = replace(record, status=then.status, tags={**record.tags, **then.tags})
    losses = [(step, 1.0 + change.higher.get(step, 0.0)) for step in steps]
    findings, reports = Examined("toy"), [Progress(step=12, steps=12, epoch=1, losses=losses)]
    rerun = compared(Candidate(findings, kept.store, record, trial), ending, reports, {})
    assert [fault.what.split(" of ")[0] for fault in findings.faults] == (broken or [])
    assert rerun.incomparable == bool(findings.unchecked) == (broken is None)


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Path:
    """A pack of one method on two seeds. Its suite states no learning rate."""
    folder = tmp_path_factory.mktemp("seeds")
    store = Store.create(new_store(folder), "toy")
    run_inline(store, plan(methods=["full"], seeds=[0, 1], training={"batch_size": 16, "epochs": 2}))
    return packed(store.uri, "toy", folder)


def unchanged(forged: Forged) -> None:
    """Leaves the pack as it is."""


def results_swapped(forged: Forged) -> None:
    first, second = forged.trials
    before = replace(first)
    first.result_of(second)
    second.result_of(before)


def a_rate(forged: Forged) -> None:
    for trial in forged.trials:
        trial.trial["recipe"]["lr"] *= 1.1


def no_curve(forged: Forged) -> None:
    for trial in forged.trials:
        trial.points = trial.points[trial.points["key"] != Measure.TRAIN_LOSS]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("forgery", [unchanged, results_swapped, a_rate, no_curve])
def test_forged_results_of_seeds_are_seen_by_their_curves_on_any_processor(
    two_seeds: Path, tmp_path: Path, forgery: Callable[[Forged], None], elsewhere: bool
) -> None:
    forged = Forged(two_seeds)
    forgery(forged)
    if elsewhere:
        for trial in forged.trials:
            tags = {**trial.record.tags, "provenance.cpu_kind": "another"}
            trial.record = replace(trial.record, tags=tags)
    pack = str(forged.write(tmp_path / "forged.tensorbench.zip"))
    assert not verify(pack).faults
    result = verify(pack, reruns=2, tolerance=1.0)
    curves = {fault.run for fault in result.faults if "/loss of another run" in fault.what}
    assert len(curves) == (0 if forgery is unchanged else 2)
    assert forgery is not unchanged or not result.faults
