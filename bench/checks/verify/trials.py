"""Verification of one finished run: recomputes the hashes of artifacts, the id, tags, score and counts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from tensorbench.backbones import BackboneInfo, describe
from tensorbench.checks.verify.examples import Splits, answers_in_words, check_rows, stored_objective
from tensorbench.checks.verify.findings import Examined
from tensorbench.machine.files import sha256, sha256_of
from tensorbench.methods import Method, UserError, from_identity
from tensorbench.methods.validation import explained
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.origin import StoredConfig
from tensorbench.records.predictions import STEP, Predictions, contradicted, read_predictions
from tensorbench.records.record import Record
from tensorbench.records.words import YES, Artifact, Tag
from tensorbench.store.access import Access, is_foreign
from tensorbench.store.artifacts import ChangedError, hashes
from tensorbench.store.source import Source

#: The artifacts that every finished trial should have left in the store.
LEFT = (Artifact.CONFIG, Artifact.PREDICTIONS, Artifact.ADAPTER)

#: The largest accepted differences between a stored and a recomputed number, divided by the recomputed number
#: if that is above 1. A score is recomputed from the same numbers, so that only the database's rounding
#: remains. A loss is summed in float32, in an order that differs between machines.
SCORES_AGREE, LOSSES_AGREE = 1e-9, 1e-4

#: The longest accepted header of an adapter's file, in bytes. It is enough for some 50,000 tensors.
MOST_HEADER = 8 * 2**20

#: Describes a backbone once for all trials on it.
_described = lru_cache(describe)

#: Reads the tag of final ranks.
FINAL_RANKS = TypeAdapter(dict[str, list[NonNegativeInt]])


@dataclass(frozen=True)
class Resolved:
    """The method of a trial, and this machine's description of its backbone."""

    method: Method
    info: BackboneInfo

    @property
    def count(self) -> int:
        """The number of adapter parameters, counted again from the stored ranks."""
        return self.method.count(self.info.geometry)

    @property
    def peak(self) -> int | None:
        """The number of adapter parameters at the start. None if it does not change during training."""
        peak = self.method.peak_count(self.info.geometry)
        return None if peak == self.count else peak


def examine(source: Source, record: Record, access: Access, splits: Splits) -> tuple[Examined, Trial | None]:
    """Checks one run. Returns the findings, and the run's trial if its configuration and id are right.

    `access` tells what a run from a pack may open. `splits` collects the examples on which the trial was
    scored.
    """
    findings = Examined(source.name, record)
    with TemporaryDirectory() as folder:
        files = _files(findings, source, record, Path(folder))
        trial = None
        if (config := files.get(Artifact.CONFIG)) is not None:
            trial = _trial(findings, record, config.read_bytes())
        if trial is None:
            return findings, None
        if (predictions := files.get(Artifact.PREDICTIONS)) is not None:
            try:
                stored = read_predictions(predictions.read_bytes())
            except (OSError, ValueError) as error:
                findings.broken(Artifact.PREDICTIONS, "outputs and labels of every example", f"{error}")
            else:
                _check_scores(findings, record, trial, stored)
                splits.add(findings, trial, stored)
        if (resolved := resolve(findings, trial, access if is_foreign(source, record) else None)) is not None:
            _check_words(findings, record, trial, resolved)
            _check_idle(findings, trial, resolved)
            _check_counts(findings, record, resolved, files.get(Artifact.ADAPTER))
    return findings, trial


def _files(findings: Examined, source: Source, record: Record, folder: Path) -> dict[Artifact, Path]:
    """Copies a run's artifacts into `folder`. Returns the paths of all whose content fits the stored hash.

    An artifact without a stored hash is also returned, with a finding.
    """
    try:
        digests = hashes(record)
    except UserError as error:
        findings.broken(f"tag {Tag.HASHES}", str(error), "hashes by name")
        return {}
    files = {}
    for name in LEFT:
        try:
            there = source.copy(record, name, folder / name)
        except ChangedError as error:
            findings.broken(f"{name}, sha256", error.stored, error.actual)
            continue
        except UserError as error:
            findings.broken(name, f"sha256 {digests.get(name, 'not known')}", str(error))
            continue
        if not there and name == Artifact.ADAPTER and is_foreign(source, record):
            findings.without_adapter = True
        elif not there and name in digests:
            findings.broken(name, f"sha256 {digests[name]}", "missing")
        elif not there:
            findings.cannot(name, "neither it nor its hash is there")
        elif name in digests and (actual := sha256(folder / name)) != digests[name]:
            findings.broken(f"{name}, sha256", digests[name], actual)
        else:
            if name not in digests:
                findings.cannot(f"{name}, sha256", "no hash of it is stored")
            files[name] = folder / name
    return files


def _trial(findings: Examined, record: Record, config: bytes) -> Trial | None:
    """Returns the trial of a configuration. None, with a finding, if it is invalid or has another id."""
    try:
        stored = StoredConfig.model_validate_json(config)
        trial = Trial.model_validate(stored.trial)
    except ValidationError as error:
        findings.broken(Artifact.CONFIG, "a trial", explained(error, Trial)[0])
        return None
    try:
        actual_id = trial.id
    except UserError as error:
        findings.cannot("trial id", str(error))
        return None
    if actual_id != record.trial_id:
        findings.broken("trial id", record.trial_id, actual_id)
        return None
    source = stored.start.suite if stored.start else None
    # A pack has the text without folders, but the hash of the original text.
    actual = (source.sha256 if source.cleaned else sha256_of(source.text.encode())) if source else ""
    findings.compare("sha256 of the suite", record.tag(Tag.SUITE_HASH), actual)
    return trial


def resolve(findings: Examined, trial: Trial, access: Access | None) -> Resolved | None:
    """Returns the method and backbone of a trial.

    Returns None, with a finding, if this machine lacks one of them or has other weights of the backbone.
    `access` tells which files and repositories may be opened. If it is None, all may be opened.
    """
    try:
        backbone = trial.backbone if access is None else access.backbone(trial.backbone)
        method, info = from_identity(trial.method), _described(backbone)
    except UserError as error:
        findings.cannot("ranks and parameters", str(error))
        return None
    if info.weights_hash != trial.weights_hash:
        findings.cannot(
            "ranks and parameters", f"backbone '{info.name}' has other weights here than those of the trial"
        )
        return None
    return Resolved(method, info)


def _check_words(findings: Examined, record: Record, trial: Trial, resolved: Resolved) -> None:
    """Compares the tags that lists and tables show with the configuration. Display names are not compared."""
    expected = {
        Tag.FAMILY: trial.method["method"],
        Tag.SEED: str(trial.seed),
        Tag.EVALUATED: trial.evaluate,
        Tag.RANKS: ",".join(map(str, resolved.method.size or ())),
    }
    for tag, value in expected.items():
        findings.compare(f"tag {tag}", record.tag(tag), value)
    try:
        budgets = json.loads(record.tag(Tag.BUDGETS, "[]"))
        for budget in budgets:
            if budget["asked"] is not None:
                recounted = resolved.count / budget["asked"]
                findings.near(f"ratio to budget {budget['budget']}", budget["ratio"], recounted, 1e-9)
        missed = YES if any(budget["within"] is False for budget in budgets) else "no"
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        findings.broken(f"tag {Tag.BUDGETS}", record.tag(Tag.BUDGETS), f"no list of budgets: {error!r}")
        return
    if Tag.BUDGET_MISSED in record.tags:
        findings.compare(f"tag {Tag.BUDGET_MISSED}", record.tag(Tag.BUDGET_MISSED), missed)


def _check_idle(findings: Examined, trial: Trial, resolved: Resolved) -> None:
    """Checks that the fields left out of the trial's id are exactly those that cannot change its result."""
    try:
        trains_head = not (answers_in_words(trial.task) or resolved.method.fits_head)
    except UserError as error:
        findings.cannot("fields without effect", str(error))
        return
    idle = Recipe.idle(trains_adapter=resolved.count > 0, trains_head=trains_head)
    # A field that is newer than the trial has its default, which enters no id.
    known = [name for name in idle if name in trial.recipe.model_fields_set]
    findings.compare("fields without effect", sorted(trial.idle), known)


def _check_counts(findings: Examined, record: Record, resolved: Resolved, adapter: Path | None) -> None:
    """Compares the stored parameter counts with those of the ranks, the final ranks and the tensors."""
    stored = record.measure(Measure.ADAPTER_PARAMETERS)
    if not resolved.method.varying_count:
        findings.compare(f"{Measure.ADAPTER_PARAMETERS} by the ranks", stored, float(resolved.count))
    peak = record.measure(Measure.PEAK_PARAMETERS)
    findings.compare(f"{Measure.PEAK_PARAMETERS} by the ranks", peak, resolved.peak)
    if text := record.tag(Tag.FINAL_RANKS):
        try:
            left = float(resolved.method.count_left(resolved.info.geometry, FINAL_RANKS.validate_json(text)))
        except (UserError, ValidationError) as error:
            findings.broken(f"tag {Tag.FINAL_RANKS}", text, f"no ranks that training left: {error}")
        else:
            findings.compare(f"{Measure.ADAPTER_PARAMETERS} by the final ranks", stored, left)
    if adapter is None:
        return
    try:
        sizes = _tensor_sizes(adapter)
    except (SafetensorError, ValueError) as error:
        findings.broken(Artifact.ADAPTER, "tensors", str(error))
        return
    frozen = resolved.method.kept_count(resolved.info.geometry)
    for part, measure, beside in (
        ("adapter.", Measure.ADAPTER_PARAMETERS, frozen),
        ("head.", Measure.HEAD_PARAMETERS, 0),
    ):
        real = float(sum(size for name, size in sizes.items() if name.startswith(part)) - beside)
        findings.compare(f"{measure} by the tensors of {Artifact.ADAPTER}", record.measure(measure), real)


def _tensor_sizes(file: Path) -> dict[str, int]:
    """Returns the number of parameters of each tensor in a file. Integer tensors are seeds and are left out.

    Only the header is read, since the tensors may exceed memory. Raises ValueError if the header is longer
    than `MOST_HEADER`, and SafetensorError if the file is broken.
    """
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > MOST_HEADER:
        raise ValueError(f"a header of {header:,} bytes, more than {MOST_HEADER:,}")
    with safe_open(file, framework="pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  # no mapping
        # Integer tensors are seeds, not parameters.
        return {
            name: math.prod(part.get_shape())
            for name, part in slices.items()
            if part.get_dtype().startswith(("F", "BF"))
        }


def _check_scores(findings: Examined, record: Record, trial: Trial, stored: Predictions) -> None:
    """Recomputes score, loss and answers from the stored outputs, and compares them with the stored ones."""
    try:
        goal = stored_objective(trial, stored.classes)
        check_rows(findings, record, trial, stored)
    except UserError as error:
        findings.cannot("score", str(error))
        return
    except (ValueError, KeyError, IndexError) as error:
        findings.broken(Artifact.PREDICTIONS, "outputs and labels of every example", f"{error}")
        return
    findings.compare(f"tag {Tag.METRIC}", record.tag(Tag.METRIC), goal.metric.name)
    if goal.scale:
        centre, spread = record.metrics.get(Measure.TARGET_MEAN), record.metrics.get(Measure.TARGET_SD)
        goal = replace(goal, centre=centre or 0.0, spread=spread or math.nan)
    # The largest difference that rounding of the stored outputs can make in the loss.
    rounding = 0.0
    try:
        if stored.logit is None:
            if goal.kind != "single label" or goal.metric.reads != "answers":
                raise ValueError(f"metric '{goal.metric.name}' needs logits")
            score = goal.score_of(stored.prediction, stored.label)
            loss = -float(stored.log_probability.mean())
            wrong, rounding = contradicted(stored), STEP / 2
        else:
            labels, outputs = torch.tensor(stored.label), torch.tensor(stored.logit)
            score = goal.score(outputs, labels)
            loss = goal.loss(outputs, labels.to(outputs) if labels.ndim > 1 else labels).item()
            wrong = int((stored.prediction != goal.answers(outputs)).sum())
    except (UserError, ValueError, TypeError, RuntimeError, IndexError) as error:
        findings.broken(Artifact.PREDICTIONS, "outputs and labels of every example", f"{error}")
        return
    findings.near("score", record.metrics.get(Measure.SCORE), score, SCORES_AGREE * max(1.0, abs(score)))
    allowed = LOSSES_AGREE * max(1.0, abs(loss)) + rounding if math.isfinite(loss) else 0.0
    findings.near("loss", record.metrics.get(Measure.SCORE_LOSS), loss, allowed)
    findings.compare("predictions that their outputs do not give", 0, wrong)


def check_selected(findings: Examined, record: Record, losses: Mapping[float, float]) -> None:
    """Checks that a finite validation loss is stored, and compares it with the curve of validation losses.

    `losses` is this curve, by epoch. It is empty for a head that was fitted. Then the loss only has to be
    finite.
    """
    stored, epoch = record.measure(Measure.SELECTED_LOSS), record.measure(Measure.SELECTED_EPOCH)
    if losses:
        of_epoch = math.nan if epoch is None else losses.get(epoch, math.nan)
        findings.near("validation loss", stored, of_epoch, SCORES_AGREE * max(1.0, abs(of_epoch)))
    elif stored is None or not math.isfinite(stored):
        # Without it, a study of the trial would be left out.
        findings.broken("validation loss", stored, "a finite number")


def check_failed(findings: Examined, source: Source, record: Record) -> None:
    """Checks that a failed run states why, and has no result, which only finished runs have."""
    if not record.tag(Tag.FAILURE):
        findings.broken(f"tag {Tag.FAILURE}", None, "why the trial failed")
    findings.compare("score of a failed trial", record.measure(Measure.SCORE), None)
    if source.has(record, Artifact.PREDICTIONS):
        findings.broken("predictions of a failed trial", "there", None)
