"""The sizes of the splits behind a report, with how many test examples are also in train."""

from __future__ import annotations

from bench.wire.splits import SplitSizes
from reports.study import Study


def split_sizes(study: Study) -> dict[str, list[str]]:
    """By task, what its trials stored, each once: seeds may deal splits of other sizes."""
    records = {id_: record for each in study.experiments for id_, record in each.records.items()}
    found: dict[str, list[str]] = {}
    for seed in study.all_seeds:
        record = records.get(seed.trial_id) if seed.finished else None
        sizes = SplitSizes.of(record.metrics) if record else None
        if sizes and str(sizes) not in (told := found.setdefault(seed.task, [])):
            told.append(str(sizes))
    return found
