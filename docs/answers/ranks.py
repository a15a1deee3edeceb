"""Answers the questions of results/ranks.md from the study of ranks, each by its registered rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tensorbench.reports.advice import rate_advice
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import trend_words
from tensorbench.reports.blocks import Block
from tensorbench.reports.inference.effects import verdict
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection
from tensorbench.reports.units import listed

from .answer import Answer, bounds, points, with_interval
from .studies import (
    LORA,
    QKV_DEPTH,
    Ruling,
    after_tuning,
    analysed,
    answered,
    by_verdict,
    percent,
    studies_complete,
)


def of_ranks(ranks: Path, study: Path, mode: str = "layer") -> dict[str, Answer]:
    """The answers to questions 1 to 4, by title.

    The pack `ranks` has the trials of allocations of ranks, and `study` has those of LoRA and of the
    heuristic. Question 3 is about the rank of `mode`.
    """
    allocations = tuple(
        dict.fromkeys(cell.method for cell in read("", [str(ranks)]).all_cells if cell.allocation)
    )
    against = {
        name: analysed(ranks, study, selection=Selection(methods=allocations, reference=name))
        for name in (QKV_DEPTH, LORA)
    }
    heuristic = against[QKV_DEPTH]
    answers = {
        "Question 1": answered([(heuristic, after_tuning)]),
        "Question 2": answered([(against[LORA], after_tuning)]),
        "Question 3": answered([(heuristic, partial(slope, heuristic, mode))]),
        "Question 4": answered([(heuristic, after_one_trial), (heuristic, failures)]),
    }
    return {title: _completed(each, against) for title, each in answers.items()}


def _completed(answer: Answer, against: dict[str, Analysis]) -> Answer:
    """Adds to an answer the best rates at ends of windows, and a note if the answer is interim.

    `against` has the analysis with each reference, by the reference's name.
    """
    if not answer.short:
        return answer
    complete, planned = studies_complete(against[QKV_DEPTH])
    interim = f"Interim, after {complete} of {planned} studies: " * (complete < planned)
    text = "\n\n".join([answer.text, *at_ends(against[QKV_DEPTH])])
    return Answer(text, f"{interim}{answer.short}")


def at_ends(analysis: Analysis) -> Iterator[str]:
    """Yields a sentence for each row whose smoothed best rate lies at an end of its window on some task."""
    tasks: dict[tuple[str, str], list[str]] = {}
    for advice in rate_advice(analysis):
        if advice.end:
            tasks.setdefault((advice.method, advice.end), []).append(advice.task)
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
