"""A store with two finished trials, and ways to damage it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tensorbench.machine.files import sha256_of
from tensorbench.records.record import Record
from tensorbench.records.words import Artifact, RunKind, Tag
from tensorbench.store.artifacts import hashes
from tensorbench.store.store import Store

from ...predicted import file_of, frame_of


@dataclass
class Kept:
    """A store with two finished trials that a test may damage."""

    store: Store

    @property
    def folder(self) -> Path:
        return Path(self.store.uri.removeprefix("sqlite:///")).parent

    @property
    def record(self) -> Record:
        return next(record for record in self.store.records() if record.tag(Tag.FAMILY) == "lora")

    def file(self, name: Artifact, kind: RunKind = RunKind.TRIAL) -> Path:
        record = self.record if kind == RunKind.TRIAL else self.store.records(kind)[-1]
        return Path(record.artifacts.removeprefix("file://")) / name

    def tag(self, tag: Tag, value: str) -> None:
        self.store.client.set_tag(self.record.run_id, tag, value)

    def measure(self, key: str, value: float) -> None:
        run_id = self.record.run_id
        measures = json.loads(self.store.client.get_run(run_id).data.tags[Tag.MEASURES])
        if key in measures:
            self.tag(Tag.MEASURES, json.dumps(measures | {key: value}))
            return
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database, database:
            changed = "update latest_metrics set value = ? where run_uuid = ? and key = ?"
            assert database.execute(changed, [value, run_id, key]).rowcount == 1

    def replace(self, name: Artifact, content: bytes) -> None:
        """Replaces an artifact of `record`, and also its stored hash."""
        self.file(name).write_bytes(content)
        self.tag(Tag.HASHES, json.dumps(hashes(self.record) | {str(name): sha256_of(content)}))

    def predictions(self, change: Callable[[pd.DataFrame], None]) -> bytes:
        frame = frame_of(self.file(Artifact.PREDICTIONS).read_bytes())
        change(frame)
        return file_of(frame)

    def configuration(self, change: Callable[[dict[str, Any]], None]) -> bytes:
        content = json.loads(self.file(Artifact.CONFIG).read_text())
        change(content)
        return json.dumps(content).encode()
