"""The answer to question f of leaderboard.md: how ranks are chosen, and which modes are redundant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bench.wire.words import Tag
from reports import ablation
from reports.inference.crossed import of_seeds
from reports.inference.effects import effect
from reports.inference.intervals import simultaneous
from reports.study import Experiment
from reports.words import listed, many

from .answer import Answer
from .packed import Packed, bounds, number, points, table
from .pairs import of_pairs
from .questions import IN_TRAINING, STUDIES
from .spectra import Spectra, updates_of

SPECTRA = (
    "Spectra of trained updates, stacked: the effective rank of each mode, the mean over adapters, of what "
    "it can be at most"
)


def of_ranks(packed: Packed, others: Sequence[Packed]) -> Answer:
    """Question f: cuts during training, what searches and allocations chose, and the spectra of updates.

    `others` are packs that may hold further adapters' spectra.
    """
    during = of_pairs(packed, IN_TRAINING)
    found = [one for one in ablation.read(packed.study) if one.final] if packed.study else []
    searched = f"{len(found)} of {STUDIES} searches and allocations"
    told = [during.told]
    if found:
        rows = [row for one in found for row in _finalists(packed, one)]
        head = ["task", "by", "ranks", "parameters", "accuracy", "from the heuristic", "interval"]
        note = "Intervals are of seeds alone, and those of one search or allocation hold at once with 95%."
        told += [f"Of {searched}, on final seeds:", table(head, rows), note]
    else:
        told.append(f"**Not run yet**: {searched}.")
    pictures = list(during.pictures)
    if updates := updates_of([packed, *others]):
        spectra = Spectra(updates)
        pictures.append(spectra)
        told += [f"{SPECTRA}:", spectra.table, spectra.shown]
    return Answer(f"{during.state}; {searched}", "\n\n".join(told), pictures)


def _finalists(packed: Packed, found: ablation.StoredAblation) -> Iterator[list[str]]:
    """What was chosen, and the heuristic's ranks beside it."""
    assert packed.study is not None
    scores = {one.label: _scores(packed.study.experiments, one) for one in found.final}
    heuristic = scores.get("heuristic", {})
    for one in found.final:
        own = scores[one.label]
        both = sorted(own.keys() & heuristic.keys()) if one.label != "heuristic" else []
        told = ["–", "–"]
        if both:
            whole = effect([of_seeds(np.array([own[seed] - heuristic[seed] for seed in both]))])
            told = [points(whole.difference), bounds(whole.interval(simultaneous(len(found.final) - 1)))]
        mean = "–" if one.value is None else number(100 * one.value)
        by = f"{found.kind}: {one.label} ({many(len(own), 'seed')})"
        yield [found.task, by, listed(one.ranks), f"{one.parameters or 0:,}", mean, *told]


def _scores(experiments: Sequence[Experiment], one: ablation.Scored) -> dict[int, float]:
    """By seed."""
    records = (record for each in experiments for record in each.records.values())
    return {
        int(record.tag(Tag.SEED)): record.score
        for record in records
        if record.origin in one.runs and record.score is not None
    }
