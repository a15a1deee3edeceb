"""Answers the questions of results/ranks.md from the study of ranks, each by its registered rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

from marked import table

from tensorbench.records.origin import stored_rerun
from tensorbench.reports.advice import rate_advice
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import of_allocations, trend_words
from tensorbench.reports.blocks import Block
from tensorbench.reports.drawing import Looks, styled
from tensorbench.reports.figures.compared import differences
from tensorbench.reports.inference.effects import verdict
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.ranks import HEURISTIC, Allocations, short_name
from tensorbench.reports.reading import came_from_packs, read
from tensorbench.reports.results import Results
from tensorbench.reports.selection import Selection
from tensorbench.reports.units import listed

from .answer import Answer, Picture, bounds, points, with_interval
from .studies import (
    LORA,
    QKV_DEPTH,
    Rule,
    Ruling,
    after_tuning,
    analysed,
    answered,
    by_verdict,
    in_words,
    percent,
    studies_complete,
)

#: Rule 2: one in this many of the stored trials of LoRA and of the heuristic runs again.
EVERY = 10


@dataclass(frozen=True)
class StudyOfRanks:
    """The answers of the study of ranks, from its pack and the pack of the first study.

    The pack `ranks` has the trials of allocations of ranks, and `study` has those of LoRA and of the
    heuristic. Question 3 is about the rank of `mode`.
    """

    ranks: Path
    study: Path
    mode: str = "layer"

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
            for name in (QKV_DEPTH, LORA)
        }

    @property
    def heuristic(self) -> Allocations:
        """The allocations, compared with the heuristic."""
        (section,) = self.against[QKV_DEPTH].allocations
        return section

    @cached_property
    def interim(self) -> str:
        complete, planned = studies_complete(self.against[QKV_DEPTH])
        return f"Interim, after {complete} of {planned} studies: " * (complete < planned)

    def answers(self) -> dict[str, Answer]:
        """The answers to questions 1 to 4, by title."""
        titles = [f"Question {number}" for number in range(1, 5)]
        if reason := nothing_compared(self.own):
            return dict.fromkeys(titles, Answer(f"**Nothing is compared**: {reason}"))
        heuristic, lora = self.against[QKV_DEPTH], self.against[LORA]
        parts: list[list[tuple[Analysis, Rule]]] = [
            [(heuristic, lambda block: after_tuning(self.heuristic.block))],
            [(lora, lambda block: after_tuning(shortened(block)))],
            [(heuristic, partial(slope, heuristic, self.mode))],
            [
                (heuristic, lambda block: after_one_trial(self.heuristic.block)),
                (heuristic, lambda block: failures(self.heuristic.block)),
            ],
        ]
        return {title: self._completed(answered(rules)) for title, rules in zip(titles, parts, strict=True)}

    def _completed(self, given: Answer) -> Answer:
        """Adds to an answer what qualifies it, and says if it is interim."""
        if not given.short:
            return given
        return Answer("\n\n".join([given.text, *self.qualified()]), f"{self.interim}{given.short}")

    def qualified(self) -> Iterator[str]:
        """Yields sentences on further studies that count, on withheld verdicts, and on rates at ends."""
        complete, _ = studies_complete(self.against[QKV_DEPTH])
        block = self.heuristic.block
        more = [
            setting.task
            for setting in block.settings
            if any(e.differences[block.k].on[setting].effect.fewest > complete for e in block.compared)
        ]
        if more:
            yield f"On {listed(more)} some allocations have further complete studies, which count."
        (beside,) = self.against[LORA].blocks
        yield from dict.fromkeys((*block.guards, *beside.guards))
        yield from map(str, [*block.edges, *(edge for edge in beside.edges if edge.method == LORA)])
        yield from at_ends(*self.against.values())

    def picture(self) -> Picture:
        """The figure of question 1: each allocation's difference from the heuristic."""
        section, results = self.heuristic, self.against[QKV_DEPTH].results
        with styled():
            looks = Looks(cell.family for cell in results.all_cells)
            drawn = differences(
                section.block, "ranks", f"Ranks of {section.method}, beside {HEURISTIC}", looks
            )
        return Picture("findings-ranks", drawn)

    def first(self, answers: dict[str, Answer]) -> str:
        """The part with which the page begins: the answers, a figure, a table and limits."""
        for each in answers.values():
            if not each.short:
                return each.text
        short = {title: each.short.removeprefix(self.interim) for title, each in answers.items()}
        beside = {e.method: e.differences for e in shortened(self.against[LORA].blocks[0]).compared}
        block = self.heuristic.block
        rows = []
        for entrant in block.compared:
            both = (entrant.differences[block.k], beside[entrant.method][block.k])
            shown = [(with_interval(d.effect.difference, d.interval), in_words(d.verdict)) for d in both]
            rows.append([entrant.method, *(cell for pair in shown for cell in pair)])
        head = ["allocation", "from the heuristic", "verdict", f"from {LORA}", "verdict"]
        parts = [
            f"**{self.interim}{of_allocations(self.heuristic)}**",
            f"- Beside LoRA with as many parameters: {short['Question 2']}\n"
            f"- Score over the rank of {self.mode}: {short['Question 3']}\n"
            f"- How forgiving. {short['Question 4']}",
            self.picture().shown,
            table(head, rows),
            "\n".join(f"- {limit}" for limit in self.limits()),
        ]
        return "\n\n".join(parts)

    def limits(self) -> Iterator[str]:
        """Yields what limits the answers."""
        yield (
            "One method, one budget, two small backbones, four tasks ([not claimed](#what-is-not-claimed)). "
            "Intervals say what tuning again on these tasks would give."
        )
        yield (
            "All allocations have the window of rates that a pilot chose for the heuristic. "
            + (" ".join(self.qualified()) or "No smoothed best rate lies at an end of its window.")
        )
        yield from map(came_from_packs, (e for e in self.own.experiments if e.references))

    def in_readme(self, answers: dict[str, Answer]) -> str:
        """The paragraph of the README: the answer to question 1, or that the study has none yet."""
        if not answers["Question 1"].short:
            return "[A study of ranks](docs/results/ranks.md) has its questions written down and has begun."
        block = self.heuristic.block
        # With three complete studies of all rows, each has an interval.
        intervals = [interval for e in block.compared if (interval := e.differences[block.k].interval)]
        widest = min(low for low, _ in intervals), max(high for _, high in intervals)
        complete, _ = studies_complete(self.against[QKV_DEPTH])
        return (
            f"**At which ranks?** {answers['Question 1'].short} These are ways to share as many parameters "
            f"among the modes of {self.heuristic.method}, compared with the paper's heuristic after eight "
            f"trials of tuning, as a mean over {len(block.settings)} tasks and {complete} studies. Their "
            f"intervals lie within {bounds(widest)} points; *as good* is within a point "
            "([the study of ranks](docs/results/ranks.md))."
        )


def shortened(block: Block) -> Block:
    """The block with its methods named by the ranks that the suite gives."""
    return replace(
        block, entrants=tuple(replace(each, method=short_name(each.method)) for each in block.entrants)
    )


def nothing_compared(results: Results) -> str:
    """Rule 2: why nothing is compared, by the stored trials that ran again beside the new ones.

    `results` are those of the study of ranks. Empty if enough trials ran again with accepted results.
    """
    few, apart = [], 0
    for method in (LORA, QKV_DEPTH):
        runs = [
            seed.record
            for cell in results.all_cells
            if cell.method == method
            for seed in cell.trials
            if seed.record.settled
        ]
        reruns = [rerun for run in runs if (rerun := stored_rerun(run))]
        if not reruns or EVERY * len(reruns) < len(runs):
            few.append(method)
        apart += sum(bool(rerun.faults) for rerun in reruns)
    if few:
        return f"one in {EVERY} of the stored trials of {listed(few)} has to run again first (rule 2)."
    if apart:
        return f"{apart} stored trials that ran again gave other results than accepted (rule 2)."
    return ""


def at_ends(*analyses: Analysis) -> Iterator[str]:
    """Yields a sentence for each row whose smoothed best rate lies at an end of its window on some task."""
    tasks: dict[tuple[str, str], dict[str, None]] = {}
    for advice in chain.from_iterable(map(rate_advice, analyses)):
        if advice.end:
            cell = advice.cell
            name = HEURISTIC if cell.method == QKV_DEPTH else short_name(cell.method)
            tasks.setdefault((name, advice.end), {})[cell.task] = None
    for (method, end), on in tasks.items():
        yield f"The smoothed best rate of {method} lies at the {end} end of its window on {listed(on)}."


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
    words = {"better": f"improves with the rank of {mode}", "worse": f"worsens with the rank of {mode}"}
    outcome = words.get(verdict(interval, 0.0).side, "undecided")
    if trend.slope.verdict.reason:
        outcome = trend_words(trend.slope.verdict)
    on_tasks = [points(part.difference) for part in effect.parts]
    row = [listed(trend.allocations), points(effect.difference), bounds(interval), *on_tasks]
    short = f"**{outcome}**: {with_interval(effect.difference, interval)} points a doubling."
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
            verdicts.append((entrant.method, words.get(verdict(interval, 0.0).side, "undecided")))
        rows.append([entrant.method, percent(shares.failed), f"{shares.failures} of {shares.trials}", change])
    head = ["method", "failed, %", "trials", f"from {block.against}, points"]
    return Ruling(f"Failed trials: {by_verdict(verdicts)}", head, rows)
