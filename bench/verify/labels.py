"""Reads from an experiment's suites what trial ids do not contain: labels, and the tolerances of budgets.

A label is a name that a suite gives to a method, a backbone or a task. Tables show it in place of the name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tensorbench.backbones import BackboneSpec
from tensorbench.methods import UserError
from tensorbench.plan.suite import Suite
from tensorbench.plan.yaml_text import parse
from tensorbench.records.origin import StoredConfig
from tensorbench.records.stored_plan import StoredSuite
from tensorbench.records.words import Artifact, RunKind, Tag
from tensorbench.store.source import Source
from tensorbench.verify.findings import Examined

#: For each label, the names of the methods, backbones or tasks that suites gave it to. `ANY` stands for
#: every name. It is used for a suite that this version cannot read completely, so that only its labels are
#: known.
NamesByLabel = Mapping[str, set[str]]
ANY = "*"


@dataclass
class Labels:
    """The labels of an experiment's suites, as in `NamesByLabel`, and the tolerances of budgets.

    `tolerances` has the label of a budget as its key.
    """

    methods: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    #: The names of backbones are the texts that `source_of` returns.
    backbones: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    tasks: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    tolerances: defaultdict[str, set[float]] = field(default_factory=lambda: defaultdict(set))

    def add(self, fields: dict[str, Any]) -> None:
        """Adds the labels and tolerances of a suite, given its fields.

        If this version cannot read the suite, only its labels are added.
        """
        try:
            self._add(Suite.model_validate(fields))
        except (ValidationError, UserError):
            for part in ("methods", "backbones", "tasks"):
                rows = fields.get(part)
                for row in rows if isinstance(rows, list) else ():
                    if isinstance(row, dict) and isinstance(label := row.get("label"), str):
                        getattr(self, part)[label].add(ANY)

    def _add(self, suite: Suite) -> None:
        methods = [variant for row in suite.methods for variant in row.variants()]
        for row, method in methods:
            if row.label:
                self.methods[row.label].add(method.label)
        for spec in suite.backbones:
            if spec.label:
                self.backbones[spec.label].add(source_of(spec))
        for task in suite.tasks:
            if task.label:
                self.tasks[task.label].add(task.task)
        for budget in (*suite.budgets, *(budget for row in suite.methods for budget in row.budgets or ())):
            self.tolerances[budget.label].add(budget.tolerance)


def labels_of(source: Source) -> Labels:
    """Returns the labels and tolerances in all suites of an experiment. Unreadable files are skipped."""
    labels = Labels()
    for _, fields in suites_of(source):
        labels.add(fields)
    return labels


def suites_of(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the fields of the stored suites, and of the suites with which trials were started.

    Each comes with its hash in the tags of these trials. A stored suite has the hash "". The suite of the
    plan is the last of them; the suites of trials may be older. Unreadable suites are left out.
    """
    for run in source.records(RunKind.SUITE):
        try:
            stored = source.content(run, Artifact.SUITE, StoredSuite)
        except UserError:
            continue
        if stored is not None:
            yield "", stored.suite
    seen: set[str] = set()
    for record in source.records():
        digest = record.tag(Tag.SUITE_HASH)
        if not digest or digest in seen:
            continue
        try:
            config = source.content(record, Artifact.CONFIG, StoredConfig)
            fields = parse(config.start.suite.text) if config and config.start else None
        except (UserError, ValueError):
            continue
        if isinstance(fields, dict):
            seen.add(digest)
            yield digest, fields


def source_of(spec: BackboneSpec) -> str:
    """Returns a text for the source of a backbone. It is the same on every machine and for every revision."""
    place = spec.local.name if spec.local else ""
    timm = (spec.timm or "").partition("@")[0]
    fields = (spec.name, spec.hub, timm, place, spec.image_size, spec.dtype, spec.quantise)
    return " ".join(filter(None, map(str, fields)))


def compare_name(
    findings: Examined,
    what: str,
    stored: str,
    own: str,
    names_by_label: NamesByLabel,
    known_as: str | None = None,
) -> None:
    """Adds a finding unless a stored name is `own`, the object's own name, or a label that a suite gave it.

    `what` describes the stored name in the finding. `known_as` is the object's name in the sets of
    `names_by_label`, if it differs from `own`.
    """
    # For a partly unreadable suite, labels are known only without the values of variants.
    named = names_by_label.get(stored) or names_by_label.get(stored.partition(" [")[0], set()) & {ANY}
    if stored != own and not {known_as or own, ANY} & named:
        findings.broken(what, stored, own)
