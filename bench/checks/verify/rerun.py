"""Runs a sample of trials again and compares the results with the stored ones."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from tensorbench.checks.verify.findings import Examined, Rerun
from tensorbench.execution.perform import perform, prepare_all
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS
from tensorbench.records.origin import HARDWARE
from tensorbench.records.predictions import log_probabilities, read_predictions
from tensorbench.records.record import Point, Progress, Record
from tensorbench.records.words import Artifact, Status, Tag
from tensorbench.store.access import Access, is_foreign
from tensorbench.store.pack.writing import DIGITS
from tensorbench.store.source import Source
from tensorbench.store.trained import put_back
from tensorbench.training.loop import evaluate
from tensorbench.training.measure import provenance
from tensorbench.training.saving import Saving
from tensorbench.training.trial import Resources

#: The largest accepted difference between two scores. It is SAME if sums are in the same order: on the same
#: hardware, with the same libraries and, on a GPU, a deterministic recipe. Otherwise it is ELSEWHERE, or the
#: share of EXAMPLES examples in the split if that is larger. Of scores with a unit, it is this share.
SAME, ELSEWHERE, EXAMPLES = 1e-6, 0.02, 5
#: The errors raised when reading an artifact that is missing, changed or malformed.
UNREADABLE = (UserError, OSError, ValueError)

#: The largest accepted difference between two losses, divided by the stored loss if that is above 1.
#: SAME_LOSS is for the same hardware. LOSSES is for the first FIRST_STEPS steps on other hardware, by the
#: precision of training. Later, rounding may decide where training goes. If a difference exceeds APART, it
#: may decide the score as well. docs/guides/verify.md has measurements.
SAME_LOSS, LOSSES = 1e-4, {"fp32": 1e-4, "tf32": 0.02, "bf16": 0.02}
FIRST_STEPS, APART = 10, 0.1

#: The relative rounding of training losses in packs.
PACKED = 2.0**-DIGITS

#: The largest accepted difference between the outputs of a stored adapter and the stored outputs, divided by
#: the largest stored output if that is above 1. SAME_LOGITS is for the same hardware. LOGITS is for other
#: hardware, by the precision of training.
SAME_LOGITS, LOGITS = 1e-3, {"fp32": 0.01, "tf32": 0.1, "bf16": 0.1}


@dataclass(frozen=True)
class Candidate:
    """A finished trial that may be run again."""

    #: The findings about the trial. Running it again adds to them.
    findings: Examined
    source: Source
    record: Record
    trial: Trial


def chosen(candidates: Iterable[Candidate], count: int, seed: int) -> list[Candidate]:
    """Draws a sample of `count` candidates, or returns all if there are fewer.

    The sample depends on `seed`, and not on the order of the candidates.
    """
    in_order = sorted(candidates, key=lambda candidate: (candidate.source.name, candidate.trial.id))
    return random.Random(seed).sample(in_order, min(count, len(in_order)))


def run_again(
    candidates: Sequence[Candidate], tolerance: float | None, access: Access, watching: Callable[[str], None]
) -> Iterator[Rerun]:
    """Runs each candidate again, compares the results, and yields both scores.

    A candidate that cannot run on this machine gets a finding instead. `tolerance` is the largest accepted
    difference between scores on other hardware; None means the default of `verify`. `access` tells which
    files and repositories trials from packs may open.
    """
    resources: Resources | None = None
    for candidate in candidates:
        watching(f"running trial {candidate.trial.id} again: {candidate.record.name}")
        device = "cuda" if candidate.record.provenance.get("gpu") and torch.cuda.is_available() else "cpu"
        if resources is None or resources.device.type != device:
            resources = Resources(device)
        resources.saving = Saving.of(candidate.record.provenance)
        with _threads(candidate.record):
            try:
                if is_foreign(candidate.source, candidate.record):
                    candidate = replace(candidate, trial=access.trial(candidate.trial))
                prepare_all([candidate.trial], resources)
            except UserError as error:
                candidate.findings.cannot("score of another run", str(error))
                continue
            reports: list[Progress] = []
            ending = perform(candidate.trial, resources, reports.append, (KeyboardInterrupt,))
            now = provenance(str(resources.device)) | {"threads": str(torch.get_num_threads())}
            rerun = compared(candidate, ending, reports, now, tolerance)
            if rerun.score is not None:
                same = not _differing(candidate, now)
                largest = SAME_LOGITS if same else LOGITS[candidate.trial.recipe.precision]
                _compare_adapter(candidate, resources, largest)
            yield rerun


def compared(
    candidate: Candidate,
    ending: Record,
    reports: Sequence[Progress],
    now: Mapping[str, str],
    tolerance: float | None = None,
) -> Rerun:
    """Compares a new run of a trial with the stored run. Adds differences to the candidate's findings.

    `ending`, `reports` and `now` are the final record, the progress and the provenance of the new run. For
    `tolerance` see `verify`. A trial that failed has to fail again for the same reason.
    """
    record, findings = candidate.record, candidate.findings
    score = ending.metrics.get(Measure.SCORE)
    if tolerance is None:
        predictions = ending.files.get(Artifact.PREDICTIONS)
        share = EXAMPLES / len(read_predictions(predictions).example) if predictions else 0.0
        tolerance = max(ELSEWHERE, share)
        if score is not None and METRICS.get(candidate.trial.task.lookup().metric).in_units:
            tolerance *= abs(record.score or 0.0) or 1.0
    reason = _differing(candidate, now)
    same = not reason
    allowed = SAME if same else tolerance
    known = len(findings.faults)
    failed = record.status == Status.FAILED or score is None
    if failed:
        agree = record.verdict == ending.verdict
        # The rounding of other hardware may let one of two runs diverge.
        apart = not (agree or same) and {record.tag(Tag.FAILURE), ending.tag(Tag.FAILURE)} <= {"diverged", ""}
        if apart:
            _compare_curves(candidate, reports, same=same)
    else:
        apart = _compare_curves(candidate, reports, same=same)
        agree = record.score is not None and score is not None and abs(record.score - score) <= allowed
    incomparable = not agree and apart and len(findings.faults) == known
    if incomparable:
        findings.cannot(
            "score of another run",
            f"losses up to step {FIRST_STEPS} agree, and then training took another course ({reason}): "
            "rounding may decide the score at this learning rate",
        )
    elif failed and not agree:
        findings.broken("failure of another run", record.verdict, ending.failure or ending.verdict)
    elif not agree:
        findings.broken(f"score of another run, to {allowed:.3g}", record.score, score)
    if not failed:
        stored, repeated = record.measure(Measure.SELECTED_LOSS), ending.metrics.get(Measure.SELECTED_LOSS)
        if same and stored is not None and repeated is not None:
            most = SAME_LOSS * max(1.0, abs(stored))
            findings.near("validation loss of another run", stored, repeated, most)
        _compare_examples(findings, candidate, ending.files[Artifact.PREDICTIONS])
    return Rerun(
        candidate.source.name,
        record.trial_id,
        record.run_id,
        record.name,
        record.score,
        score,
        allowed,
        reason or "the same hardware",
        incomparable,
    )


def _differing(candidate: Candidate, now: Mapping[str, str]) -> str:
    """Says why sums may be in another order than in the stored run. Empty on the same hardware.

    `now` is the provenance of the new run.
    """
    before = candidate.record.provenance
    if other := [key for key in (*HARDWARE, "threads") if before.get(key) != now.get(key)]:
        return f"not the same {', '.join(other)} as then"
    if now.get("gpu") and not candidate.trial.recipe.deterministic:
        return "the recipe is not deterministic on a GPU"
    return ""


def _compare_curves(candidate: Candidate, reports: Sequence[Progress], *, same: bool) -> bool:
    """Compares the losses and validation scores of every step and epoch with the stored curves.

    If `same` is false, the new run was on other hardware, or on a GPU without a deterministic recipe. Then
    only losses up to step FIRST_STEPS have to agree, and no scores. Returns whether a later training loss
    differs by more than APART.
    """
    record, largest = candidate.record, SAME_LOSS if same else LOSSES[candidate.trial.recipe.precision]
    points: defaultdict[str, list[tuple[Point, bool]]] = defaultdict(list)
    for progress in reports:
        for point in progress.points(record.tag(Tag.METRIC)):
            # Points of validation curves have the epoch for their step.
            step = point.step if point.key == Measure.TRAIN_LOSS else progress.step
            has_to_agree = same or step <= FIRST_STEPS
            if has_to_agree or point.key == Measure.TRAIN_LOSS:
                points[point.key].append((point, has_to_agree))
    apart = False
    for key, reported in points.items():
        scores = key not in (Measure.TRAIN_LOSS, Measure.VALIDATION_LOSS)
        if scores and not same:
            continue
        curve = candidate.source.curves(key, [record.run_id])
        stored = dict(zip(curve["step"], curve["value"], strict=True))
        rounding = PACKED if key == Measure.TRAIN_LOSS else 0.0
        for point, has_to_agree in reported:
            missing = point.step not in stored
            if missing and record.status == Status.FAILED:
                continue
            before = stored.get(point.step, math.nan)
            most = (largest if has_to_agree else APART) * max(1.0, abs(before)) + rounding * abs(before)
            allowed = SAME if scores else most
            # Written so that NaN fails as well.
            if abs(before - point.value) <= allowed:
                continue
            if has_to_agree or missing:
                what = f"{key} of another run at {point.step}, to {allowed:.3g}"
                candidate.findings.broken(what, None if missing else before, point.value)
            else:
                apart = True
            break
    return apart


def _compare_examples(findings: Examined, candidate: Candidate, repeated: bytes) -> None:
    """Checks that the stored predictions have the same examples and labels as the new predictions."""
    try:
        content = candidate.source.read(candidate.record, Artifact.PREDICTIONS)
        before = None if content is None else read_predictions(content)
    except UNREADABLE:
        # It is reported already.
        return
    now = read_predictions(repeated)
    if before is not None and not (
        np.array_equal(before.example, now.example) and np.array_equal(before.label, now.label)
    ):
        findings.broken("examples and labels", "as in the predictions", "others in the task's data")


def _compare_adapter(candidate: Candidate, resources: Resources, allowed: float) -> None:
    """Checks that the stored adapter gives the stored outputs.

    For predictions without logits, it compares the labels' log-probabilities instead. `allowed` is the
    largest accepted difference, divided by the largest stored value if that is above 1.
    """
    try:
        weights = candidate.source.read(candidate.record, Artifact.ADAPTER)
        content = candidate.source.read(candidate.record, Artifact.PREDICTIONS)
        predictions = None if content is None else read_predictions(content)
    except UNREADABLE:
        # It is reported already.
        return
    if weights is None or predictions is None:
        return
    trial, backbone = candidate.trial, resources.backbone(candidate.trial)
    data = resources.data(trial, backbone.info.input)
    split = data.test if trial.evaluate == "test" else data.validation
    try:
        with put_back(candidate.record, trial, weights, backbone, data.classes) as (_, adapter):
            actual = evaluate(backbone, adapter, split, trial.recipe, data.objective, resources.saving).logits
    except (UserError, ValueError, KeyError, RuntimeError) as error:
        candidate.findings.broken(f"outputs of {Artifact.ADAPTER}", "as in the predictions", str(error))
        return
    if predictions.logit is None:
        stored = torch.from_numpy(predictions.log_probability)
        actual = torch.from_numpy(log_probabilities(actual.numpy(), predictions.label))
    else:
        stored = torch.tensor(predictions.logit)
    difference = float((stored - actual).abs().max()) if stored.shape == actual.shape else math.inf
    # Written so that NaN fails as well.
    if not difference <= allowed * max(1.0, float(stored.abs().max())):
        said = f"others by up to {difference:.3g}"
        candidate.findings.broken(f"outputs of {Artifact.ADAPTER}", "as in the predictions", said)


@contextmanager
def _threads(record: Record) -> Iterator[None]:
    """A context in which torch uses as many threads as in the stored run, because sums depend on them."""
    before, then = torch.get_num_threads(), record.provenance.get("threads", "")
    # Python reads no number of more than 4300 digits, which a tag of a pack may have.
    if then.isdecimal() and len(then) < 10 and int(then) > 0:
        torch.set_num_threads(min(int(then), 1024))
    try:
        yield
    finally:
        torch.set_num_threads(before)
