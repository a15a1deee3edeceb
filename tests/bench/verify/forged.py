"""Packs with chosen or changed results whose ids, hashes and plan agree, as a skilled forger makes them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tensorbench.machine.files import sha256_of
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.plan.yaml_text import parse, written
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.words import Artifact, RunKind, Tag
from tensorbench.store.artifacts import hashes
from tensorbench.store.pack.reading import open_pack
from tensorbench.store.pack.writing import write_pack
from tensorbench.store.source import Source

#: The artifacts and values that a copied result takes along.
RESULTS = ("metrics", "predictions", "points")


@dataclass
class ForgedTrial:
    """A trial of a pack. Everything about it may be changed; its id and its hashes follow."""

    record: Record
    metrics: dict[str, float]
    config: dict[str, Any]
    predictions: bytes
    points: pd.DataFrame
    #: The row of the plan, and the trial's study, point, offset and rate there.
    row: int
    place: dict[str, Any]
    #: Whether the pack has the run. Otherwise only the plan names the trial.
    ran: bool = True

    @property
    def trial(self) -> dict[str, Any]:
        fields: dict[str, Any] = self.config["trial"]
        return fields

    @property
    def study(self) -> int:
        study: int = self.place["study"]
        return study

    def renumber(self, study: int, point: int | None = None) -> None:
        """Gives the trial the seed and the number of another study, and leaves its rate."""
        point = self.place["point"] if point is None else point
        self.place |= {"study": study, "point": point}
        self.trial["seed"] = 10_000 + 1_000 * study + point

    def rate(self, lr: float, offset: float | None = None) -> None:
        self.place |= {"lr": lr, "offset": self.place["offset"] if offset is None else offset}
        self.trial["recipe"]["lr"] = lr

    def result_of(self, other: ForgedTrial) -> None:
        """Takes over another trial's scores, predictions and curves."""
        for name in RESULTS:
            setattr(self, name, copy.copy(getattr(other, name)))


class Forged(Source):
    """The experiment of a pack, to be changed and packed again."""

    def __init__(self, pack: Path) -> None:
        (source,) = open_pack(pack)
        (self._suite_run,) = source.records(RunKind.SUITE)
        self._name = source.name
        self.stored_plan = self._json(source, Artifact.PLAN)
        self.suite = self._json(source, Artifact.SUITE)
        rows = {id_: (n, s) for n, row in enumerate(self.rows) for s, id_ in row["trials"].items()}
        points = dict(list(source.curves().groupby("run_id")))
        self.trials = []
        for record in source.records():
            row, seed = rows[record.trial_id]
            studies = self.rows[row]["studies"]
            config, predictions = (
                source.read(record, name) for name in (Artifact.CONFIG, Artifact.PREDICTIONS)
            )
            assert config is not None
            assert predictions is not None
            self.trials.append(
                ForgedTrial(
                    record,
                    dict(record.metrics),
                    json.loads(config),
                    predictions,
                    points.get(record.run_id, source.curves("none")),
                    row,
                    dict(studies["trials"][seed]) if studies else {"study": 0, "point": 0},
                )
            )

    def _json(self, source: Source, name: Artifact) -> dict[str, Any]:
        content = source.read(self._suite_run, name)
        assert content is not None
        document: dict[str, Any] = json.loads(content)
        return document

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.stored_plan["rows"]
        return rows

    def of(self, row: int, study: int | None = None) -> list[ForgedTrial]:
        return [trial for trial in self.trials if trial.row == row and study in (None, trial.study)]

    def change(self, section: str, *, row: int | None = None, **fields: object) -> None:
        """Replaces fields in a section of the configuration of all trials, or of those of a row."""
        for trial in self.trials:
            if row in (None, trial.row):
                trial.trial[section].update(fields)

    def keep(self, wanted: Callable[[ForgedTrial], bool]) -> None:
        self.trials = [trial for trial in self.trials if wanted(trial)]

    def plan_studies(self, studies: int) -> None:
        """Writes another number of studies into the rows of the plan."""
        for row in self.rows:
            if row["studies"]:
                row["studies"]["studies"] = studies

    def rewrite_suites(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes the stored suite, and the suite's text in every configuration with its hash."""
        change(self.suite["suite"])
        for trial in self.trials:
            fields = parse(trial.config["start"]["suite"]["text"])
            change(fields)
            trial.config["start"]["suite"]["text"] = written(fields)

    def write(self, path: Path) -> Path:
        """Packs the experiment, with the plan and all ids and hashes as the changed trials give them."""
        mine: list[tuple[ForgedTrial, Trial]] = []
        for trial in self.trials:
            trial.trial["recipe"]["lr"] = float(trial.trial["recipe"]["lr"])
            mine.append((trial, _identified(trial.trial)))
        for number, row in enumerate(self.rows):
            own = [(forged, trial) for forged, trial in mine if forged.row == number]
            row["trials"] = {str(trial.seed): trial.id for _, trial in own}
            if row["studies"]:
                row["studies"]["trials"] = {str(trial.seed): forged.place for forged, trial in own}
        self.stored_plan["rows"] = [row for row in self.rows if row["trials"]]
        self.stored_plan["trials"] = [{"id": trial.id, **trial.model_dump(mode="json")} for _, trial in mine]
        self._records = [self._record(forged, trial) for forged, trial in mine if forged.ran]
        self._own = {
            record.run_id: forged
            for record, forged in zip(
                self._records, (forged for forged, _ in mine if forged.ran), strict=True
            )
        }
        write_pack([self], path, force=True)
        return path

    def _record(self, forged: ForgedTrial, trial: Trial) -> Record:
        suite = forged.config["start"]["suite"]
        suite["sha256"] = suite["sha256"] if suite.get("cleaned") else sha256_of(suite["text"].encode())
        digests = hashes(forged.record) | {Artifact.CONFIG: sha256_of(self._config(forged))}
        tags = {
            Tag.TRIAL_ID: trial.id,
            Tag.SEED: str(trial.seed),
            Tag.SUITE_HASH: suite["sha256"],
            Tag.HASHES: json.dumps({str(name): digest for name, digest in digests.items()}),
        }
        return replace(
            forged.record, trial_id=trial.id, tags={**forged.record.tags, **tags}, metrics=forged.metrics
        )

    def _config(self, forged: ForgedTrial) -> bytes:
        return json.dumps(forged.config, indent=1).encode()

    # The experiment, as `write_pack` reads it.

    @property
    def name(self) -> str:
        return self._name

    @property
    def where(self) -> str:
        return "forged"

    def records(self, kind: RunKind = RunKind.TRIAL) -> list[Record]:
        return {RunKind.TRIAL: self._records, RunKind.SUITE: [self._suite_run]}.get(kind, [])

    def read(self, record: Record, name: Artifact) -> bytes | None:
        if record is self._suite_run:
            return json.dumps(self.stored_plan if name == Artifact.PLAN else self.suite, indent=1).encode()
        forged = self._own[record.run_id]
        return {Artifact.CONFIG: self._config(forged), Artifact.PREDICTIONS: forged.predictions}.get(name)

    def has(self, record: Record, name: Artifact) -> bool:
        return self.read(record, name) is not None

    def curves(self, key: str | None = None, runs: Collection[str] = ()) -> pd.DataFrame:
        return pd.concat(forged.points.assign(run_id=run_id) for run_id, forged in self._own.items())


def best_studies(trials: Iterable[ForgedTrial], count: int) -> list[int]:
    """The studies whose kept trials have the highest mean test scores."""
    kept: dict[tuple[int, int], ForgedTrial] = {}
    for trial in trials:
        key = trial.row, trial.study
        if key not in kept or trial.metrics[Measure.SELECTED_LOSS] < kept[key].metrics[Measure.SELECTED_LOSS]:
            kept[key] = trial
    scores = pd.DataFrame([(study, trial.metrics[Measure.SCORE]) for (_, study), trial in kept.items()])
    order = scores.groupby(0)[1].mean().sort_values(ascending=False)
    return [int(study) for study in order.index[:count]]


def _identified(stored: dict[str, Any]) -> Trial:
    """The trial of a configuration. If no version here knows its method, it has an id of the forger's."""
    trial = Trial.model_validate(stored)
    try:
        _ = trial.id
    except UserError:
        vars(trial)["id"] = sha256_of(json.dumps(stored).encode())[:16]
    return trial
