"""The names that a suite gives to its methods, backbones and tasks in tables: no trial's id knows them."""

from __future__ import annotations

from collections.abc import Mapping

from bench.store.source import Source
from bench.verify.findings import Examined
from bench.wire.plan import StoredSuite
from bench.wire.words import Artifact, Kind
from methods import UserError

#: The labels of each part of a suite: `methods`, `backbones`, `tasks`.
Labels = Mapping[str, frozenset[str]]

PARTS = ("methods", "backbones", "tasks")


def labels_of(source: Source) -> Labels:
    """What the stored suites of an experiment give. A suite that cannot be read gives none."""
    found: dict[str, set[str]] = {part: set() for part in PARTS}
    for run in source.records(Kind.SUITE):
        try:
            stored = source.content(run, Artifact.SUITE, StoredSuite)
        except UserError:
            continue
        if stored is None:
            continue
        for part in PARTS:
            rows = (row for row in stored.suite.get(part, ()) if isinstance(row, dict))
            found[part] |= {label for row in rows if isinstance(label := row.get("label"), str)}
    return {part: frozenset(labels) for part, labels in found.items()}


def compare_name(found: Examined, what: str, stored: str, own: str, labels: frozenset[str]) -> None:
    """A stored name is its own, or a label; one of several rows has the values of each behind it."""
    if stored != own and stored.partition(" [")[0] not in labels:
        found.broken(what, stored, own)
