"""The answer to question f of first-leaderboard.md: how ranks are chosen, and which modes are redundant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.records.words import Tag
from reports import ablation
from reports.inference.crossed import of_seeds
from reports.inference.effects import effect, verdict
from reports.inference.intervals import simultaneous
from reports.study import Experiment, Study
from reports.thresholds import DEFAULT
from reports.words import listed, many

from .answer import Answer, Outcome, shortly
from .forest import Forest, Row
from .packed import Packed, bounds, number, points, table
from .pairs import of_pairs
from .questions import IN_TRAINING, STUDIES
from .spectra import Spectra, updates_of

HEURISTIC, COMPLETE = "heuristic", "complete"
SPECTRA = (
    "Spectra of trained updates, stacked: the "
    "[effective rank](../explanations/rank-allocation.md#redundancy) "
    "of each mode, the mean over adapters, of the mode's size"
)


def of_ranks(packed: Packed, others: Sequence[Packed]) -> Answer:
    """Question f: cuts during training, what searches and allocations chose, and the spectra of updates.

    `others` are packs that may hold further adapters' spectra.
    """
    during = of_pairs(packed, IN_TRAINING)
    every = ablation.read(packed.study) if packed.study else []
    found = [one for one in every if one.final and all(final.state == COMPLETE for final in one.final)]
    searched = f"{len(found)} of {STUDIES} searches and allocations"
    told, pictures, short = [during.told], list(during.pictures), ""
    if packed.study and found:
        lines = [line for one in found for line in _finalists(packed.study, one)]
        head = ["task", "by", "ranks", "parameters", "accuracy", "from the heuristic", "interval", "verdict"]
        note = f"Intervals are of seeds alone. All {STUDIES}, and that of cuts above, hold at once with 95%."
        told += [f"Of {searched}, on final seeds:", table(head, [line.cells for line in lines]), note]
        if gains := [line.gain for line in lines if line.gain]:
            chosen = Forest("f-choices", gains)
            pictures.append(chosen)
            told.append(chosen.shown)
        if during.short and len(found) == STUDIES:
            short = f"{during.short} {_chosen(gains)}"
    else:
        told.append(f"**Not run yet**: {searched}.")
    if updates := updates_of([packed, *others]):
        spectra = Spectra(updates)
        pictures.append(spectra)
        told += [f"{SPECTRA}:", spectra.table, spectra.shown]
    return Answer(f"{during.state}; {searched}", "\n\n".join(told), pictures, short)


def _chosen(gains: Sequence[Row]) -> str:
    """What searches and allocations chose, in short."""
    told = shortly(IN_TRAINING.letter, list(map(_outcome, gains))) if gains else "they chose the same."
    return f"Searches and allocations, from the heuristic's ranks: {told}"


def _outcome(gain: Row) -> Outcome:
    found = verdict(gain.interval, DEFAULT)
    told = points(gain.difference), bounds(gain.interval), str(found)
    return Outcome(gain.method, *told, apart=bool(found.side))


@dataclass(frozen=True)
class Finalist:
    """Ranks that were run on final seeds."""

    task: str
    by: str
    ranks: ablation.Scored
    seeds: int
    #: The difference from the heuristic's ranks; None of these themselves, and of the same ones.
    gain: Row | None

    @property
    def cells(self) -> list[str]:
        mean = "–" if self.ranks.value is None else number(100 * self.ranks.value)
        told = ["–", "–", "the heuristic" if self.ranks.label == HEURISTIC else "the same ranks"]
        if self.gain:
            found = _outcome(self.gain)
            told = [found.difference, found.interval, found.verdict]
        by = f"{self.by}: {self.ranks.label} ({many(self.seeds, 'seed')})"
        parameters = f"{self.ranks.parameters or 0:,}"
        return [self.task, by, listed(self.ranks.ranks), parameters, mean, *told]


def _finalists(study: Study, found: ablation.StoredAblation) -> Iterator[Finalist]:
    """What was chosen, and the heuristic's ranks beside it."""
    scores = {one.label: _scores(study.experiments, one) for one in found.final}
    heuristic = next(one for one in found.final if one.label == HEURISTIC)
    for one in found.final:
        own, gain = scores[one.label], None
        if one.ranks != heuristic.ranks:
            differences = [own[seed] - scores[HEURISTIC][seed] for seed in sorted(own)]
            whole = effect([of_seeds(np.array(differences))])
            interval = whole.interval(simultaneous(STUDIES + len(IN_TRAINING.pairs)))
            gain = Row(f"{found.kind}, {found.task}", "the heuristic", whole.difference, interval)
        yield Finalist(found.task, found.kind, one, len(own), gain)


def _scores(experiments: Sequence[Experiment], one: ablation.Scored) -> dict[int, float]:
    """By seed."""
    records = (record for each in experiments for record in each.records.values())
    return {
        int(record.tag(Tag.SEED)): record.score
        for record in records
        if record.origin in one.runs and record.score is not None
    }
