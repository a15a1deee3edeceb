"""An experiment in memory with thousands of trials, to measure its packs without a store."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from tensorbench.machine.files import sha256_of
from tensorbench.records.record import Record
from tensorbench.records.words import Artifact, RunKind, Tag
from tensorbench.store.source import CURVE, Source

from ...predicted import file_of


def predictions(seed: int, examples: int, classes: int = 2) -> pd.DataFrame:
    """Predictions as after training in bf16: logits have 8 binary digits, and 4 of 5 answers are right."""
    numbers = np.random.default_rng(seed)
    # Every trial of a split has the same examples.
    split = np.random.default_rng(examples)
    example, label = split.permutation(3 * examples)[:examples], split.integers(classes, size=examples)
    logits = numbers.normal(size=(examples, classes)) + 1.7 * np.eye(classes)[label]
    logits = (logits.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    answered = {"example": example, "label": label, "prediction": logits.argmax(1)}
    return pd.DataFrame(answered | {f"logit_{number}": logits[:, number] for number in range(classes)})


class ManyTrials(Source):
    """Many trials made from one stored trial, each with its own id, hash, settings, measures and curves."""

    def __init__(
        self, like: Source, frames: list[pd.DataFrame], steps: int = 0, metric: str = "accuracy"
    ) -> None:
        self._like, self._steps = like, steps
        (self._suite,) = like.records(RunKind.SUITE)
        stored = next(record for record in like.records() if like.has(record, Artifact.CONFIG))
        self._config = json.loads(like.read(stored, Artifact.CONFIG) or b"")
        self._files: dict[tuple[str, Artifact], bytes] = {}
        self._trials = []
        for seed, frame in enumerate(frames):
            numbers = random.Random(seed)
            record = replace(stored, run_id=f"{numbers.getrandbits(128):032x}")
            files = {Artifact.CONFIG: self._changed(seed, numbers), Artifact.PREDICTIONS: file_of(frame)}
            self._files |= {(record.run_id, name): content for name, content in files.items()}
            digests = {name: sha256_of(content) for name, content in files.items()}
            digests[Artifact.ADAPTER] = sha256_of(record.run_id.encode())
            tags = {
                Tag.TRIAL_ID: f"{numbers.getrandbits(64):016x}",
                Tag.SEED: str(seed),
                Tag.METRIC: metric,
                Tag.HASHES: json.dumps(digests),
            }
            metrics = {key: value * (1 + 0.01 * numbers.random()) for key, value in stored.metrics.items()}
            self._trials.append(
                replace(
                    record,
                    trial_id=tags[Tag.TRIAL_ID],
                    started=stored.started + 60_000 * seed + numbers.randrange(60_000),
                    tags=dict(stored.tags) | tags,
                    metrics=metrics,
                )
            )

    def _changed(self, seed: int, numbers: random.Random) -> bytes:
        recipe = self._config["trial"]["recipe"] | {"lr": 10 ** numbers.uniform(-4, -2)}
        trial = self._config["trial"] | {"seed": seed, "recipe": recipe}
        streams = {name: numbers.getrandbits(63) for name in self._config["start"]["streams"]}
        start = self._config["start"] | {"streams": streams}
        return json.dumps(self._config | {"trial": trial, "start": start}, indent=1).encode()

    @property
    def name(self) -> str:
        return self._like.name

    @property
    def where(self) -> str:
        return "memory"

    def records(self, kind: RunKind = RunKind.TRIAL) -> list[Record]:
        return {RunKind.TRIAL: self._trials, RunKind.SUITE: [self._suite]}.get(kind, [])

    def has(self, record: Record, name: Artifact) -> bool:
        return self.read(record, name) is not None

    def read(self, record: Record, name: Artifact) -> bytes | None:
        if record is self._suite:
            return self._like.read(record, name)
        return self._files.get((record.run_id, name))

    def curves(self, key: str | None = None, runs: Collection[str] = ()) -> pd.DataFrame:
        lines: list[tuple[Any, ...]] = []
        for number, record in enumerate(self._trials):
            numbers = np.random.default_rng(number)
            losses = (0.4 + numbers.gamma(2.0, 0.1, size=self._steps)).astype(np.float32)
            lines += [(record.run_id, "train/loss", step, float(loss)) for step, loss in enumerate(losses, 1)]
            for epoch in range(1, 1 + 3 * bool(self._steps)):
                lines.append((record.run_id, "validation/accuracy", epoch, numbers.integers(600, 800) / 800))
                lines.append((record.run_id, "validation/loss", epoch, float(np.float32(numbers.random()))))
        return pd.DataFrame(lines, columns=list(CURVE)).astype({"step": "int64", "value": "float64"})
