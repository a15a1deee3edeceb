"""Learning rates to start from, derived from stored studies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tensorbench.machine.table import Table
from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.records.pack_format import ENDING
from tensorbench.records.words import Status
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.inference import rates as of_rates
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.reading import read_sources
from tensorbench.reports.results import Cell
from tensorbench.store.addresses import shown_uri
from tensorbench.store.opening import is_pack, open_results
from tensorbench.store.source import Source


@dataclass(frozen=True)
class RateAdvice:
    """The learning rates at which one cell scores about as well as at its best rate."""

    cell: Cell
    #: The rate between `low` and `high` with the lowest smoothed validation loss.
    start: float
    #: The lowest and the highest rate that score about as well as the best. At all tried rates between them,
    #: every trial succeeded, and the smoothed score is within a point of the best smoothed score. A point is
    #: the metric's default threshold.
    low: float
    high: float
    #: Whether `low` is the lowest tried rate, and whether `high` is the highest tried rate. If so, rates
    #: beyond that end may be as good.
    is_lowest: bool
    is_highest: bool
    #: The number of trials that succeeded at a rate whose smoothed score is within a point of the best, as a
    #: share of all trials.
    share: float
    studies: int
    trials: int

    @property
    def range(self) -> str:
        """The range as text. An end beyond which no rate was tried has "≤" or "≥" before it."""
        below, above = "≤ " * self.is_lowest, "≥ " * self.is_highest
        return f"{below}{self.low:.2g} to {above}{self.high:.2g}"

    @property
    def end(self) -> str:
        """Says "lower" or "upper" if `start` is the lowest or the highest tried rate. Otherwise empty."""
        if self.is_lowest and self.start == self.low:
            return "lower"
        return "upper" if self.is_highest and self.start == self.high else ""


def learning_rates(*places: str) -> Table:
    """A table of learning rates to start from, derived from all studies in these stores and packs.

    Takes the same places and raises the same errors as `stored_advice`.
    """
    advice = stored_advice(places)
    several = len({each.cell.experiment for each in advice}) > 1
    names = ("method", *["experiment"] * several, "budget", "task", "backbone")
    lines = [
        {name: getattr(each.cell, name) for name in names}
        | {
            "start": f"{each.start:.2g}",
            "within a point of the best": each.range,
            "share": f"{each.share:.0%}",
            "trials": each.trials,
        }
        for each in advice
    ]
    notes = [
        "start: the lowest smoothed validation loss in the range. share: trials within a point of the best "
        "rate that did not fail. ≤ and ≥: the range ends with the tried rates; rates beyond may be as good."
    ]
    return Table(
        "Learning rates by studies",
        lines,
        notes,
        ("method", "experiment", "budget", "task", "backbone"),
        spare=("trials", "backbone"),
        values=[
            {"cell": each.cell.number}
            | {
                name: getattr(each.cell, name)
                for name in ("experiment", "method", "budget", "task", "backbone")
            }
            | {name: value for name, value in vars(each).items() if name != "cell"}
            for each in advice
        ],
    )


def advise(cell: Cell, studies: CompleteStudies | None) -> RateAdvice | None:
    """The advice from these studies of a cell.

    None without studies, with too few trials to smooth their scores, and without a rate near which most
    trials succeeded.
    """
    if cell.studies is None or studies is None or studies.offsets is None:
        return None
    if not of_rates.enough_to_smooth(studies) or not of_rates.have_best_rates(studies):
        return None
    centre = cell.studies.centre
    ends = of_rates.range_near(studies)
    start, low, high = (centre * 10**each for each in (of_rates.chosen_by_validation(studies), *ends))
    return RateAdvice(
        cell,
        start=start,
        low=low,
        high=high,
        is_lowest=bool(ends[0] == studies.offsets.min()),
        is_highest=bool(ends[1] == studies.offsets.max()),
        share=of_rates.share_near(studies),
        studies=studies.count,
        trials=studies.trials,
    )


def rate_advice(analysis: Analysis) -> Iterator[RateAdvice]:
    """Yields the advice on all cells for which there is some."""
    cells = analysis.results.all_cells
    yield from filter(None, (advise(cells[number], studies) for number, studies in analysis.studies.items()))


def stored_advice(places: Sequence[str]) -> list[RateAdvice]:
    """The advice from all studies in these stores and packs.

    `places` are addresses of stores and paths of pack files. Raises UserError if a place cannot be read, or
    if no study in any place gives advice.
    """
    advice: list[RateAdvice] = []
    for source in _sources(places):
        plan = source.plan()
        rows = plan.rows if plan is not None and any(row.studies for row in plan.rows) else ()
        planned = {id_ for row in rows for id_ in row.trials.values()}
        if any(
            record.trial_id in planned and record.status == Status.FINISHED for record in source.records()
        ):
            advice += rate_advice(analyse(read_sources([source])))
    if not advice:
        where = ", ".join(map(shown_uri, places))
        raise UserError(
            f"no complete study in {where} with a rate at which trials succeed, and with at least "
            f"{of_rates.LEAST_SMOOTHED} trials of its method: advice on learning rates comes from suites "
            "with tuning: {studies: 5, points: 8}"
        )
    return advice


def _sources(places: Iterable[str]) -> Iterator[Source]:
    for place in places:
        if is_pack(place):
            yield from open_results("", [place])
        elif "://" in place or place.startswith("sqlite:"):
            from tensorbench.store.store import Store

            yield from Store.every(place)
        else:
            raise UserError(
                f"{shown(place)} is neither a store (sqlite:///mlflow.db, http://…) nor a pack (NAME{ENDING})"
            )
