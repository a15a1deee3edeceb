"""Answers registered questions about allocations of ranks, those of results/ranks.md and next-studies.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from marked import table

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import of_allocations, trend_words
from tensorbench.reports.blocks import Block
from tensorbench.reports.drawing import Looks, styled
from tensorbench.reports.figures.compared import differences
from tensorbench.reports.inference.effects import verdict
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.ranks import HEURISTIC, Allocations, short_name
from tensorbench.reports.reading import read
from tensorbench.reports.results import Cell, Results
from tensorbench.reports.selection import Selection
from tensorbench.reports.units import listed

from .answer import Answer, Picture, bounds, points, with_interval
from .registered import (
    NONE_AT_ENDS,
    ONE_LOOK,
    at_ends,
    completed,
    interim,
    limits,
    nothing_compared,
    power_seen,
)
from .studies import (
    LORA,
    QKV_DEPTH,
    Rule,
    Ruling,
    after_tuning,
    analysed,
    answered,
    by_verdict,
    compared,
    percent,
    studies_complete,
)


@dataclass(frozen=True)
class StudyOfRanks:
    """The answers of a study of allocations of ranks, from its pack and the pack of the first study.

    The pack `ranks` has the trials of allocations, and `study` has those of LoRA and of `method`, the row
    with the heuristic's ranks. The third question is about the rank of `mode`. `titles` are those of the
    questions, of which a study may have only the first, and `name` is that of the figure.
    """

    ranks: Path
    study: Path
    mode: str = "layer"
    method: str = QKV_DEPTH
    titles: tuple[str, ...] = tuple(f"Question {number}" for number in range(1, 5))
    name: str = "ranks"

    @cached_property
    def own(self) -> Results:
        return read("", [str(self.ranks)])

    @cached_property
    def against(self) -> dict[str, Analysis]:
        """The analysis of the allocations with each reference, by the reference's name.

        Raises ValueError if no row gives ranks in part, as in packs of versions that did not store this.
        """
        allocations = tuple(dict.fromkeys(cell.method for cell in self.own.all_cells if cell.allocation))
        if not allocations:
            raise ValueError(
                f"{self.ranks}: no row says that it gives ranks; start its suite again, then pack it"
            )
        return {
            name: analysed(self.study, self.ranks, selection=Selection(methods=allocations, reference=name))
            for name in (self.method, LORA)
        }

    @property
    def heuristic(self) -> Allocations:
        """The allocations, compared with the heuristic."""
        (section,) = self.against[self.method].allocations
        return section

    @cached_property
    def interim(self) -> str:
        return interim(self.against[self.method])

    def answers(self) -> dict[str, Answer]:
        """The answers to the questions, by title."""
        if reason := nothing_compared(self.own.all_cells, (LORA, self.method)):
            return dict.fromkeys(self.titles, Answer(f"**Nothing is compared**: {reason}"))
        heuristic, lora = self.against[self.method], self.against[LORA]
        parts: list[list[tuple[Analysis, Rule]]] = [
            [(heuristic, lambda block: after_tuning(self.heuristic.block))],
            [(lora, lambda block: after_tuning(shortened(block)))],
            [(heuristic, partial(slope, heuristic, self.mode))],
            [
                (heuristic, lambda block: after_one_trial(self.heuristic.block)),
                (heuristic, lambda block: failures(self.heuristic.block)),
            ],
        ]
        return {
            title: completed(answered(rules), heuristic, self.qualified())
            for title, rules in zip(self.titles, parts[: len(self.titles)], strict=True)
        }

    def qualified(self) -> Iterator[str]:
        """Yields sentences on further studies that count, on withheld verdicts, and on rates at ends."""
        complete, _ = studies_complete(self.against[self.method])
        block = self.heuristic.block
        more = [
            setting.task
            for setting in block.settings
            if any(e.differences[block.k].on[setting].effect.fewest > complete for e in block.compared)
        ]
        if more:
            yield f"On {listed(more)} some allocations have further complete studies, which count."
        most = max(studies.count for each in self.against.values() for studies in _of_reference(each))
        if most > complete:
            yield (
                f"Failed trials of the references are counted over {most} studies. Differences are over the "
                "studies that both rows have."
            )
        (beside,) = self.against[LORA].blocks
        yield from dict.fromkeys((*block.guards, *beside.guards))
        yield from map(str, [*block.edges, *(edge for edge in beside.edges if edge.method == LORA)])
        yield from at_ends(self.against.values(), self._named)

    def _named(self, cell: Cell) -> str:
        return HEURISTIC if cell.method == self.method else short_name(cell.method)

    def picture(self) -> Picture:
        """The figure of question 1: each allocation's difference from the heuristic."""
        section, results = self.heuristic, self.against[self.method].results
        with styled():
            looks = Looks(cell.family for cell in results.all_cells)
            drawn = differences(
                section.block, self.name, f"Ranks of {section.method}, beside {HEURISTIC}", looks
            )
        return Picture(f"findings-{self.name}", drawn)

    def first(self, answers: dict[str, Answer]) -> str:
        """The part with which the answers begin: all in short, a figure, a table and limits."""
        for each in answers.values():
            if not each.short:
                return each.text
        short = {title: each.short.removeprefix(self.interim) for title, each in answers.items()}
        beside = {e.method: e.differences for e in shortened(self.against[LORA].blocks[0]).compared}
        block = self.heuristic.block
        rows = []
        for entrant in block.compared:
            both = (entrant.differences[block.k], beside[entrant.method][block.k])
            rows.append([entrant.method, *(text for each in both for text in compared(each))])
        head = ["allocation", "from the heuristic", "verdict", f"from {LORA}", "verdict"]
        subjects = ("Beside LoRA with as many parameters:", "Over log₂ of a rank:", "How forgiving.")
        bullets = zip(subjects, self.titles[1:], strict=False)
        parts = [
            f"**{self.interim}{of_allocations(self.heuristic)}**",
            "\n".join(f"- {subject} {short[title]}" for subject, title in bullets),
            self.picture().shown,
            table(head, rows),
            "\n".join(f"- {limit}" for limit in self.limits()),
        ]
        return "\n\n".join(parts)

    def limits(self) -> Iterator[str]:
        """Yields what limits the answers."""
        block = self.heuristic.block
        (beside,) = self.against[LORA].blocks
        entrants = {entrant.method: entrant for entrant in block.entrants}
        entrants |= {e.method: e for e in beside.entrants if e.method == LORA}
        new = (cell for cell in self.own.all_cells if cell.allocation)
        extent = "One method, one budget, two small backbones, four tasks"
        power = power_seen(block, "allocations")
        return limits(extent, self.remarks(), entrants, new, self.own, power)

    def remarks(self) -> Iterator[str]:
        """Yields what qualifies the answers."""
        block = self.heuristic.block
        differences = [entrant.differences[block.k] for entrant in block.compared]
        sizes = [min(map(abs, each.interval)) for each in differences if each.interval and each.verdict.side]
        if sizes and max(sizes) <= block.threshold:
            yield "No difference from the heuristic is shown to be as large as a point."
        yield (
            "All allocations have the window of rates that a pilot chose for the heuristic. "
            + (" ".join(self.qualified()) or NONE_AT_ENDS)
        )
        if self.interim:
            yield ONE_LOOK


def _of_reference(analysis: Analysis) -> list[CompleteStudies]:
    (block,) = analysis.blocks
    return block.reference.studies if block.reference else []


def shortened(block: Block) -> Block:
    """The block with its methods named by the ranks that the suite gives."""
    return replace(
        block, entrants=tuple(replace(each, method=short_name(each.method)) for each in block.entrants)
    )


def slope(analysis: Analysis, mode: str, block: Block) -> Ruling:
    """Question 3: the slope of the score over log2 of a mode's rank, in points per doubling."""
    head = ["allocations", "points a doubling", "interval", *(setting.task for setting in block.settings)]
    trends = [trend for each in analysis.allocations for trend in each.trends if trend.mode == mode]
    if not trends:
        return Ruling(f"**Not yet**: too few ranks of {mode} are complete on all tasks.", head, [])
    (trend,) = trends
    # Question 3 was registered as a single contrast, even if other modes have trends too.
    effect = trend.slope.effect
    interval = effect.interval(simultaneous(1))
    reason, side = trend.slope.verdict.reason, verdict(interval, 0.0).side
    outcome = {"better": "above zero", "worse": "below zero"}.get(side, "inconclusive")
    if reason:
        outcome = trend_words(trend.slope.verdict)
    on_tasks = [points(part.difference) for part in effect.parts]
    row = [listed(trend.allocations), points(effect.difference), bounds(interval), *on_tasks]
    short = (
        f"slope **{outcome}**, {with_interval(effect.difference, interval)} points a doubling of the rank of "
        f"{mode}, where the budget refills the other modes."
    )
    if side and not reason:
        short += " A slope does not say between which ranks."
    return Ruling(short, head, [row])


def after_one_trial(block: Block) -> Ruling:
    """Question 4: each allocation's difference from the heuristic after one trial."""
    ruling = after_tuning(replace(block, k=1))
    return replace(ruling, short=f"After one trial: {ruling.short}")


def failures(block: Block) -> Ruling:
    """Question 4: each allocation's share of failed trials, compared with the heuristic's share."""
    rows, verdicts = [], []
    # These intervals are simultaneous over methods. In a report, they are so over both shares of each method.
    level = simultaneous(len(block.claims))
    for entrant in block.entrants:
        shares = entrant.sensitivity
        assert shares is not None, "studies have rates"
        change = "–"
        if (difference := shares.failed_difference) is not None:
            interval = difference.effect.interval(level)
            change = with_interval(difference.effect.difference, interval)
            words = {"better": "fails more", "worse": "fails less"}
            verdicts.append((entrant.method, words.get(verdict(interval, 0.0).side, "inconclusive")))
        rows.append([entrant.method, percent(shares.failed), f"{shares.failures} of {shares.trials}", change])
    head = ["method", "failed, %", "trials", f"from {block.against}, points"]
    return Ruling(f"Failed trials: {by_verdict(verdicts)}", head, rows)
