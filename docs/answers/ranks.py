"""Answers question f of first-leaderboard.md: how ranks are chosen, and which modes are redundant."""

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
    "Spectra of trained updates, stacked; the figure's file has the "
    "[effective ranks](../explanations/rank-allocation.md#redundancy):"
)


def of_ranks(packed: Packed, further: Sequence[Packed]) -> Answer:
    """Answers question f: cuts during training, choices of searches and allocations, spectra of updates.

    `further` are packs that may hold further adapters' spectra.
    """
    during = of_pairs(packed, IN_TRAINING)
    every = ablation.read(packed.study) if packed.study else []
    complete = [
        search for search in every if search.final and all(final.state == COMPLETE for final in search.final)
    ]
    searched = f"{len(complete)} of {STUDIES} searches and allocations"
    sections, pictures, short = [during.text], list(during.pictures), ""
    if packed.study and complete:
        lines = [line for search in complete for line in _finalists(packed.study, search)]
        head = ["task", "by", "ranks", "parameters", "accuracy", "from the heuristic", "interval", "verdict"]
        note = "simultaneous 95% intervals over seeds alone, that of cuts included"
        sections.append(f"Chosen by {searched}, on final seeds; {note}:")
        sections.append(table(head, [line.cells for line in lines if line.ranks.label != HEURISTIC]))
        if gains := [line.gain for line in lines if line.gain]:
            chosen = Forest("f-choices", gains)
            pictures.append(chosen)
            sections.append(chosen.shown)
        if during.short and len(complete) == STUDIES:
            short = f"{during.short} {_chosen(gains)}"
    else:
        sections.append(f"**Not run yet**: {searched}.")
    if updates := updates_of([packed, *further]):
        spectra = Spectra(updates)
        pictures.append(spectra)
        sections += [SPECTRA, spectra.shown]
    return Answer(f"{during.state}; {searched}", "\n\n".join(sections), pictures, short, during.command)


def _chosen(gains: Sequence[Row]) -> str:
    """The choices of searches and allocations, in short."""
    summary = shortly(IN_TRAINING.letter, list(map(_outcome, gains))) if gains else "they chose the same."
    return f"Searches and allocations, from the heuristic's ranks: {summary}"


def _outcome(gain: Row) -> Outcome:
    answer = verdict(gain.interval, DEFAULT)
    texts = points(gain.difference), bounds(gain.interval), str(answer)
    return Outcome(gain.method, *texts, apart=bool(answer.side))


@dataclass(frozen=True)
class Finalist:
    """Ranks that were run on final seeds."""

    task: str
    by: str
    ranks: ablation.Scored
    seeds: int
    #: The difference from the heuristic's ranks. None if these ranks equal them.
    gain: Row | None

    @property
    def cells(self) -> list[str]:
        mean = "–" if self.ranks.value is None else number(100 * self.ranks.value)
        cells_of_gain = ["–", "–", "the same ranks"]
        if self.gain:
            outcome = _outcome(self.gain)
            cells_of_gain = [outcome.difference, outcome.interval, outcome.verdict]
        by = f"{self.by}: {self.ranks.label} ({many(self.seeds, 'seed')})"
        parameters = f"{self.ranks.parameters or 0:,}"
        return [self.task, by, listed(self.ranks.ranks), parameters, mean, *cells_of_gain]


def _finalists(study: Study, search: ablation.StoredAblation) -> Iterator[Finalist]:
    """Yields the ranks that were run on final seeds: those that were chosen, and the heuristic's."""
    scores = {final.label: _scores(study.experiments, final) for final in search.final}
    heuristic = next(final for final in search.final if final.label == HEURISTIC)
    for final in search.final:
        own, gain = scores[final.label], None
        if final.ranks != heuristic.ranks:
            differences = [own[seed] - scores[HEURISTIC][seed] for seed in sorted(own)]
            total = effect([of_seeds(np.array(differences))])
            interval = total.interval(simultaneous(STUDIES + len(IN_TRAINING.pairs)))
            gain = Row(f"{search.kind}, {search.task}", "the heuristic", total.difference, interval)
        yield Finalist(search.task, search.kind, final, len(own), gain)


def _scores(experiments: Sequence[Experiment], final: ablation.Scored) -> dict[int, float]:
    """The scores of these ranks' finished runs, by seed."""
    records = (record for each in experiments for record in each.records.values())
    return {
        int(record.tag(Tag.SEED)): record.score
        for record in records
        if record.origin in final.runs and record.score is not None
    }
