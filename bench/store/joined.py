"""Parts of one experiment, from several packs or from a store and packs, read as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from bench.store.artifacts import as_json
from bench.store.merging import (
    brings_adapter,
    brings_more,
    one_plan,
    refuse_other_result,
    refuse_other_scores,
)
from bench.store.source import Source
from bench.wire.found import FOUND
from bench.wire.plan import StoredPlan
from bench.wire.record import Record, latest
from bench.wire.words import Artifact, Kind, Tag

if TYPE_CHECKING:
    import pandas as pd


class Joined(Source):
    """Raises UserError where the parts contradict each other: other scores of a trial, other results of a
    search, or other protocols.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = parts
        self._plan = one_plan(plan for part in parts if (plan := part.plan()) is not None)
        #: The part that has a run.
        self._of_run: dict[str, Source] = {}
        self._records = {kind: self._joined(kind) for kind in Kind}

    def _joined(self, kind: Kind) -> list[Record]:
        """The runs of a kind that count, each with its part noted."""
        chosen: dict[str, Record] = {}
        #: Every run of each search and allocation, with its part.
        nested: defaultdict[str, list[tuple[Source, Record]]] = defaultdict(list)
        for part in self._parts:
            found = part.records(kind)
            if kind == Kind.TRIAL:
                found = list(latest(found).values())
                refuse_other_scores(self.name, chosen, found)
            for record in found:
                # There is one run of a suite, and one of each search.
                key = record.trial_id or record.tag(Tag.STUDY)
                if kind in FOUND:
                    for other in nested[key]:
                        if other[0] is not part:
                            refuse_other_result(other, (part, record))
                    nested[key].append((part, record))
                known = chosen.get(key)
                if brings_more(record, known) or (
                    known is not None and brings_adapter((part, record), (self._of_run[known.run_id], known))
                ):
                    chosen[key] = record
                    self._of_run[record.run_id] = part
        return sorted(chosen.values(), key=lambda record: (record.started, record.origin))

    @property
    def name(self) -> str:
        return self._parts[0].name

    @property
    def where(self) -> str:
        return ", ".join(part.where for part in self._parts)

    def records(self, kind: Kind = Kind.TRIAL) -> list[Record]:
        return self._records[kind]

    def has(self, record: Record, name: Artifact) -> bool:
        return self._of_run[record.run_id].has(record, name)

    def read(self, record: Record, name: Artifact) -> bytes | None:
        part = self._of_run[record.run_id]
        if name == Artifact.PLAN and self._plan is not None and part.plan() != self._plan:
            return as_json(self._plan).encode()
        return part.read(record, name)

    def curves(self, key: str | None = None, runs: Collection[str] = ()) -> pd.DataFrame:
        import pandas as pd

        found = [part.curves(key, runs) for part in self._parts]
        own = [
            frame[[self._of_run.get(run_id) is part for run_id in frame["run_id"]]]
            for part, frame in zip(self._parts, found, strict=True)
        ]
        return pd.concat(own).sort_values(["run_id", "key", "step"], ignore_index=True)

    def plan(self) -> StoredPlan | None:
        return self._plan
