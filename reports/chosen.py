"""The configuration that validation chose for a task and a backbone, and how sure the choice is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from statistics import fmean, median

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import first_few
from tensorbench.records.metrics import METRICS
from tensorbench.records.stored_plan import PlannedTrial, rate_text
from tensorbench.records.words import Artifact
from tensorbench.reports.advice import advise
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import between, in_words, score_name
from tensorbench.reports.results import NO_ADAPTERS, Cell, Seed
from tensorbench.reports.units import listed, many, minus, unit_of


@dataclass(frozen=True)
class Chosen:
    """The cell of the chosen method, a trial with its configuration, and the chosen learning rate.

    The learning rate may differ from that of the trial. `facts` has sentences, by their subject, on the
    choice and on how sure it is.
    """

    cell: Cell
    trial: PlannedTrial
    lr: float
    facts: dict[str, str]


def choose(analysis: Analysis, methods: Collection[str] = ()) -> Chosen:
    """Chooses the method with the lowest mean validation loss, and the median learning rate of its studies.

    A study keeps its trial with the lowest validation loss, and contributes that trial's loss and rate. A
    method that was not tuned keeps the suite's rate, and its loss is the mean over seeds. If some methods
    were tuned, only these are considered. Test scores are not used. `methods` are the names, titles or
    families among which to choose; by default, all methods with an adapter.

    Raises UserError for results of other programs, if there are several tasks or backbones, if a name in
    `methods` is unknown, and if no method has a validation loss of every ended study or seed.
    """
    results = analysis.results
    if results.foreign:
        raise UserError("results of other programs do not say how to train: no recipe can be written")
    cells = [cell for cell in results.all_cells if cell.family not in NO_ADAPTERS]
    settings = dict.fromkeys(str(cell.setting) for cell in cells)
    if len(settings) > 1:
        raise UserError(
            f"a recipe is of one task and backbone, and there are {first_few(list(settings), 6)}: choose "
            "with --task and --backbone"
        )
    names = {name for cell in cells for name in (cell.method, cell.title, cell.family)}
    for name in methods:
        if name not in names:
            raise UnknownNameError("method of these results", name, names)
    if methods:
        cells = [cell for cell in cells if {cell.method, cell.title, cell.family} & {*methods}]
    # Methods with and without tuning do not have the same chance to reach a low loss.
    cells = [cell for cell in cells if cell.studies] or cells
    means = {cell.number: fmean(losses.values()) for cell in cells if (losses := _losses(cell))}
    means = {number: mean for number, mean in means.items() if math.isfinite(mean)}
    if not means:
        raise UserError(f"no method of {results.title} has a validation loss of every study or seed")
    cell = results.all_cells[min(means, key=means.__getitem__)]
    trial, losses = cell.configuration, _losses(cell)
    best = min(losses, key=losses.__getitem__)
    source = next(each.source for each in results.experiments if each.name == best.experiment)
    kept = source.has(best.record, Artifact.ADAPTER)
    assert trial is not None, "a cell with a loss has a trial"
    rates = [seed.lr for seed in losses if seed.lr is not None]
    lr = math.exp(median(map(math.log, rates))) if rates else float(trial.recipe["lr"])
    others = sorted((mean, results.all_cells[number].method) for number, mean in means.items())
    facts = {
        "method": f"{cell.method}, {cell.budget}, {cell.parameters:,} parameters",
        "chosen by": "the lowest mean validation loss: "
        + first_few([f"{method} {loss:.4f}" for loss, method in others], 4),
        **dict(_sureness(analysis, cell, rates, lr)),
        "lowest loss of a trial": best.trial_id + ", whose model can be exported" * kept,
    }
    return Chosen(cell, trial, float(f"{lr:.3g}"), facts)


def _losses(cell: Cell) -> dict[Seed, float]:
    """The validation losses of a cell's seeds or, with studies, of the trials that they keep.

    Empty if nothing has ended, or if a study or a seed failed. Interrupted seeds have not ended.
    """
    ended: list[Seed | None] = [seed for seed in cell.trials if seed.record.settled]
    if cell.studies is not None:
        ended = list(cell.kept.values())
    losses = {seed: seed.validation_loss for seed in ended if seed and seed.validation_loss is not None}
    return losses if len(losses) == len(ended) else {}


def _sureness(
    analysis: Analysis, cell: Cell, rates: Collection[float], lr: float
) -> Iterator[tuple[str, str]]:
    results = analysis.results
    if cell.studies and rates:
        each = listed(map(rate_text, sorted(rates)))
        yield (
            "learning rate",
            f"{rate_text(lr)}, the middle of what {len(rates)} tunings by {cell.studies.points} trials kept: "
            f"{each}",
        )
        advice = advise(cell, analysis.studies.get(cell.number))
        yield (
            "rates within a point of the best",
            f"{advice.range}, by {advice.trials} trials" if advice else "unknown: too few trials",
        )
    else:
        yield "learning rate", f"{rate_text(lr)}, the suite's: it was not tuned ({many(cell.seeds, 'seed')})"
    block = next((b for b in analysis.blocks if any(cell in e.cells for e in b.entrants)), None)
    score, unit = analysis.score(cell), unit_of(cell.metric, cell.unit)
    if score is not None:
        known = f"{unit.estimate(score.value, score.interval)}, {score_name(block) if block else 'score'}"
        yield f"{cell.evaluated} {cell.metric}", known + ", without an interval" * (not score.interval)
    if block is None:
        return
    for entrant in block.claims:
        if cell in entrant.cells:
            difference = entrant.differences[block.k]
            yield (
                f"beside {block.against}",
                f"{in_words(difference.verdict, unit.size(block.threshold))}: "
                f"{minus(unit.difference(difference.effect.difference))} {unit.points} "
                f"({minus(between(difference, unit))})",
            )
    edges = [str(edge) for edge in block.edges if edge.method in (cell.method, block.against)]
    if cautions := [*analysis.faults, *block.guards, *edges]:
        yield "caution", " ".join(cautions)
    # Written answers have no head.
    written = cell.metric and "generation" in METRICS.get(cell.metric).kinds
    if not written and not results.converged_head(cell.setting):
        yield "not compared with", "the converged head, which an adapter should beat"
