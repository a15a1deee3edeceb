"""What the stored scores say: comparisons with LoRA, ranks, groups, aggregates; and where they say nothing.

One block is one budget. Within it methods are compared over settings (a task on a backbone), and only
methods whose every cell is complete take part; the others are named with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from reports import statistics
from reports.reading import OWN_SIZE, Frame, Predictions, Study, block_order, predictions
from reports.statistics import ALPHA, Aggregate, Array, Bounds, Effect, Ranks

#: The smallest difference that matters unless the user says otherwise: one point of a score in [0, 1].
THRESHOLD = 0.01

#: Methods of a block in its pairwise comparisons; of more, the best by mean rank.
MOST_PAIRED = 20
#: Runs whose predictions one report reads.
MOST_PREDICTIONS = 2000

REFERENCE, FLOOR, CEILING = "lora", "head_only", "full"

Setting = tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """A method against the reference, over the settings of a block."""

    method: str
    family: str
    cells: list[int]
    reference_cells: list[int]
    effect: Effect
    better: float
    better_interval: Bounds | None
    #: Corrected for the methods of the block, by Holm's procedure.
    p_holm: float
    verdict: str


@dataclass(frozen=True)
class Resampled:
    """A method against the reference on one setting, over resampled seeds and test examples."""

    cell: int
    reference_cell: int
    seeds: int
    examples: int
    difference: float
    interval: Bounds


@dataclass
class Block:
    """What can be said about the methods of one budget."""

    budget: str
    settings: list[Setting]
    #: Those with every cell complete, best mean rank first.
    methods: list[str]
    #: Method -> why it is in no comparison and no aggregate.
    left_out: dict[str, str]
    #: Cells of each method, in the order of the settings.
    cells: dict[str, list[int]] = field(repr=False)
    #: How the reference is called, and in which block it stands.
    reference: str | None = None
    reference_budget: str | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    resampled: list[Resampled] = field(default_factory=list)
    ranks: Ranks | None = None
    #: The methods of the pairwise figures, and P(row beats column).
    paired: list[str] = field(default_factory=list)
    better: Array | None = None
    #: Letters of the groups that cannot be told apart; None where there is too little data to tell any.
    letters: list[str] | None = None
    aggregates: dict[str, Aggregate] = field(default_factory=dict)
    seeds: int = 0
    #: Why a method, or every one, is not compared with the reference.
    notes: list[str] = field(default_factory=list)
    #: The same of ranks, groups and aggregates.
    rank_notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Analysis:
    """A study with everything that is computed from it."""

    study: Study
    threshold: float
    blocks: list[Block]
    notes: list[str]


def analyse(study: Study, threshold: float = THRESHOLD) -> Analysis:
    """Computes what the report shows beyond means."""
    study.cells["low"], study.cells["high"] = _intervals(study)
    scores = _Scores(study)
    budgets = sorted(map(str, study.cells["budget"].unique()), key=block_order)
    blocks = [_block(study, scores, budget, threshold) for budget in budgets]
    notes = list(study.notes) + _resample(study, scores, blocks) + _sparse(study)
    return Analysis(study, threshold, blocks, notes)


def pareto(cells: Frame, cost: str) -> list[int]:
    """The cells than which no other of their setting has as good a mean at less cost, or a better one at the
    same.
    """
    front: list[int] = []
    known = cells[cells["complete"] & cells[cost].notna()]
    for _, group in known.groupby(["task", "backbone"], sort=False):
        best, last = -np.inf, (np.nan, np.nan)
        for cell, line in group.sort_values([cost, "mean"], ascending=[True, False]).iterrows():
            # The same trials may stand in two budgets: then both rows are on the front.
            if line["mean"] > best or (line[cost], line["mean"]) == last:
                best, last = line["mean"], (line[cost], line["mean"])
                front.append(int(cell))
    return front


class _Scores:
    """Scores of finished seeds by cell, and the cells of methods by setting."""

    def __init__(self, study: Study) -> None:
        done = study.seeds[study.seeds["status"] == "FINISHED"]
        self.of: dict[int, dict[int, float]] = {cell: {} for cell in study.cells.index}
        for cell, seed, score in zip(done["cell"], done["seed"], done["score"], strict=True):
            self.of[cell][seed] = score

    def table(self, cells: Sequence[int]) -> tuple[list[int], Array]:
        """The seeds that all these cells have, and their scores (cells, seeds)."""
        common = sorted(set.intersection(*(set(self.of[cell]) for cell in cells)))
        return common, np.array([[self.of[cell][seed] for seed in common] for cell in cells], dtype=float)


def _intervals(study: Study) -> tuple[pd.Series, pd.Series]:
    cells = study.cells
    usable = cells["finished"] >= 2
    count = cells["finished"].where(usable)
    half = statistics.t_half(cells["sd"].where(usable).to_numpy(), count.to_numpy(dtype=float))
    return cells["mean"] - half, cells["mean"] + half


def _block(study: Study, scores: _Scores, budget: str, threshold: float) -> Block:
    cells = study.cells[study.cells["budget"] == budget]
    planned = dict.fromkeys(zip(cells["task"], cells["backbone"], strict=True))
    complete = cells[cells["complete"]]
    begun = set(zip(complete["task"], complete["backbone"], strict=True))
    settings = [setting for setting in planned if setting in begun]
    of_method: dict[str, dict[Setting, int]] = {}
    for cell, method, task, backbone in cells[["method", "task", "backbone"]].itertuples():
        if (task, backbone) in begun:
            of_method.setdefault(method, {})[task, backbone] = cell
    left_out, usable = {}, {}
    for method, found in of_method.items():
        reason = _incomplete(cells, settings, found)
        if reason:
            left_out[method] = reason
        else:
            usable[method] = [found[setting] for setting in settings]
    block = Block(budget, settings, list(usable), left_out, usable)
    if len(settings) < len(planned):
        block.notes.append(
            f"No method is complete on {_named(s for s in planned if s not in begun)}: not in what follows."
        )
    if left_out:
        block.notes.append(
            f"{len(left_out)} of {len(of_method)} methods have incomplete cells and are in no comparison, "
            "rank or aggregate of this budget."
        )
    if not usable:
        return block
    tables = [scores.table([usable[method][i] for method in usable])[1] for i in range(len(settings))]
    block.seeds = min(table.shape[1] for table in tables)
    if block.seeds == 0:
        block.notes.append("The methods share no seed on some setting: nothing here is paired or ranked.")
        return block
    most = int(cells.loc[[cell for found in usable.values() for cell in found], "finished"].max())
    if block.seeds < most:
        block.rank_notes.append(
            f"On some setting all methods share {block.seeds} of up to {_many(most, 'seed')}: ranks, groups "
            "and P(better) are of shared seeds alone, and may differ from the means."
        )
    _rank(block, tables)
    _pair(block, scores)
    _compare(study, scores, block, threshold)
    _aggregate(study, scores, block, threshold)
    return block


def _incomplete(cells: Frame, settings: list[Setting], found: dict[Setting, int]) -> str:
    absent = [setting for setting in settings if setting not in found]
    if absent:
        return f"not planned on {_named(absent)}"
    short = [
        f"{cells.at[cell, 'finished']} of {cells.at[cell, 'seeds']} seeds on {task} · {backbone}"
        for (task, backbone), cell in found.items()
        if not cells.at[cell, "complete"]
    ]
    return "; ".join(short)


def _rank(block: Block, tables: list[Array]) -> None:
    ranked = statistics.ranks(tables)
    order = np.argsort(ranked.mean, kind="stable")
    block.methods = [block.methods[i] for i in order]
    block.ranks = Ranks(
        ranked.mean[order],
        None if ranked.low is None else ranked.low[order],
        None if ranked.high is None else ranked.high[order],
    )
    if block.seeds < 2:
        block.rank_notes.append("One seed: no interval, no test and no group can be given.")
    elif ranked.low is None:
        block.rank_notes.append(
            f"Fewer than {statistics.LEAST_RESAMPLED} seeds: intervals of ranks, P(better) and normalised "
            "scores would be far too narrow, and are not given."
        )


def _pair(block: Block, scores: _Scores) -> None:
    block.paired = block.methods[:MOST_PAIRED]
    if len(block.paired) < 2:
        return
    if len(block.methods) > MOST_PAIRED:
        block.rank_notes.append(
            f"Groups and P(better) are of the {MOST_PAIRED} best of {len(block.methods)} methods by rank."
        )
    tables = [
        scores.table([block.cells[method][i] for method in block.paired])[1]
        for i in range(len(block.settings))
    ]
    block.better = statistics.better_matrix(tables)
    if block.seeds < 2:
        return
    pairs = len(block.paired) * (len(block.paired) - 1) // 2
    least = statistics.smallest_p(sum(table.shape[1] for table in tables))
    if least * pairs > ALPHA:
        block.rank_notes.append(
            f"Too little data to tell any two methods apart: over {sum(t.shape[1] for t in tables)} seed "
            f"pairs the smallest p, corrected for {_many(pairs, 'pair')}, is {min(1, least * pairs):.2g}."
        )
        return
    p = statistics.pairwise_p(tables)
    upper = np.triu_indices(len(block.paired), 1)
    separable = np.zeros(p.shape, dtype=bool)
    separable[upper] = np.array(statistics.holm(list(p[upper]))) < ALPHA
    block.letters = statistics.letters(separable | separable.T)


def _compare(study: Study, scores: _Scores, block: Block, threshold: float) -> None:
    reference = _reference(study, block)
    if reference is None:
        return
    found, differences = [], []
    for method in block.methods:
        cells = block.cells[method]
        if cells == reference:
            continue
        tables = [scores.table(pair)[1] for pair in zip(cells, reference, strict=True)]
        if min(table.shape[1] for table in tables) == 0:
            block.notes.append(f"{method} shares no seed with the reference on some setting.")
            continue
        better, interval = statistics.p_improvement([t[0] for t in tables], [t[1] for t in tables])
        found.append((method, cells, better, interval))
        differences.append([t[0] - t[1] for t in tables])
    effects = statistics.effects(differences)
    corrected = statistics.holm([effect.p for effect in effects])
    for (method, cells, better, interval), effect, p in zip(found, effects, corrected, strict=True):
        block.comparisons.append(
            Comparison(
                method=method,
                family=str(study.cells.at[cells[0], "family"]),
                cells=cells,
                reference_cells=reference,
                effect=effect,
                better=better,
                better_interval=interval,
                p_holm=p,
                verdict=verdict(effect, p, len(found), threshold),
            )
        )
    if effects and all(effect.smallest_p * len(found) > ALPHA for effect in effects):
        pairs = max(effect.pairs for effect in effects)
        least = min(1.0, min(effect.smallest_p for effect in effects) * len(found))
        block.notes.append(
            f"Too little data for a claim against {block.reference}: {_many(pairs, 'seed pair')} and "
            f"{_many(len(found), 'method')} allow no corrected p below {least:.2g}."
        )


def verdict(effect: Effect, p: float, methods: int, threshold: float) -> str:
    """What may be said of a method against the reference, in a few words."""
    interval = effect.interval_of(methods)
    if effect.smallest_p * methods > ALPHA or interval is None:
        return "too little data"
    if p < ALPHA:
        word = "better" if effect.difference > 0 else "worse"
        return word if abs(effect.difference) >= threshold else f"{word}, by less than matters"
    low, high = interval
    if -threshold < low and high < threshold:
        return "practically equal"
    return "not separable"


def _reference(study: Study, block: Block) -> list[int] | None:
    """Cells of LoRA on the block's settings: the block's own, else those of the first block that has it."""
    lora = study.cells[study.cells["family"] == REFERENCE]
    plain = lora[lora["method"] == lora["title"]]
    budgets = [block.budget, *study.cells["budget"].unique()]
    # Its variants only where no plain one is to be had: at this budget, or for a block of own sizes at any.
    own_size = block.budget == OWN_SIZE
    order = [(budget, some) for some in (plain, lora) for budget in budgets]
    if not own_size:
        order = [(budget, some) for budget in budgets for some in (plain, lora)]
    for budget, some in order:
        group = some[some["budget"] == budget]
        for method in group["method"].unique():
            of_setting = {
                (line.task, line.backbone): line.Index
                for line in group[group["method"] == method].itertuples()
                if line.complete
            }
            if all(setting in of_setting for setting in block.settings):
                block.reference, block.reference_budget = method, budget
                return [of_setting[setting] for setting in block.settings]
        if len(group) and budget == block.budget and not own_size and some is lora:
            block.notes.append("LoRA is incomplete at this budget: nothing is compared with it.")
            return None
    block.notes.append("No complete LoRA on the settings of this budget: nothing is compared with it.")
    return None


def _aggregate(study: Study, scores: _Scores, block: Block, threshold: float) -> None:
    ends = {}
    for family, called in ((FLOOR, "head only"), (CEILING, "full fine-tuning")):
        cells = study.cells[(study.cells["family"] == family) & study.cells["complete"]]
        means: dict[Setting, float] = {}
        for line in cells.itertuples():
            means.setdefault((line.task, line.backbone), line.mean)
        lacking = [setting for setting in block.settings if setting not in means]
        if lacking:
            block.rank_notes.append(
                f"No normalised score: {called} is not there, or incomplete, on {_named(lacking)}."
            )
            return
        ends[family] = [means[setting] for setting in block.settings]
    kept = [
        i
        for i, (low, high) in enumerate(zip(ends[FLOOR], ends[CEILING], strict=True))
        if high - low >= threshold
    ]
    if len(kept) < len(block.settings):
        out = _named(setting for i, setting in enumerate(block.settings) if i not in kept)
        block.rank_notes.append(
            f"Full fine-tuning exceeds head only by less than {threshold:g} on {out}: not in the normalised "
            "score."
        )
    if not kept:
        return
    floors, ceilings = ([ends[end][i] for i in kept] for end in (FLOOR, CEILING))
    for method in block.methods:
        values = [scores.table([block.cells[method][i]])[1][0] for i in kept]
        block.aggregates[method] = statistics.aggregate(values, floors, ceilings)


def _resample(study: Study, scores: _Scores, blocks: list[Block]) -> list[str]:
    """Fills in the comparisons over test examples; returns what was left out."""
    wanted = [
        (block, cell, reference)
        for block in blocks
        for comparison in block.comparisons
        for cell, reference in zip(comparison.cells, comparison.reference_cells, strict=True)
        if study.cells.at[cell, "metric"] in statistics.SCORES
        and len(scores.table([cell, reference])[0]) >= 2
    ]
    of_cell = dict(iter(study.seeds[study.seeds["status"] == "FINISHED"].groupby("cell")))
    ids: dict[str, str] = {}
    taken = 0
    for _, cell, reference in wanted:
        new = {
            trial: source
            for trial, source in chain.from_iterable(
                zip(of_cell[c]["trial_id"], of_cell[c]["experiment"], strict=True) for c in (cell, reference)
            )
            if trial not in ids
        }
        if len(ids) + len(new) > MOST_PREDICTIONS:
            break
        ids |= new
        taken += 1
    notes = []
    if taken < len(wanted):
        notes.append(
            f"Test examples were resampled for the first {taken:,} of {len(wanted):,} comparisons: a report "
            f"reads the predictions of {MOST_PREDICTIONS:,} runs at most."
        )
    answers: dict[str, Predictions] = {}
    for source in study.sources:
        answers |= predictions(source, [trial for trial, name in ids.items() if name == source.name])
    unreadable = 0
    for block, cell, reference in wanted[:taken]:
        found = _paired_answers(scores, of_cell, answers, cell, reference)
        if found is None:
            unreadable += 1
            continue
        labels, x, y = found
        difference, interval = statistics.bootstrap_examples(study.cells.at[cell, "metric"], labels, x, y)
        block.resampled.append(Resampled(cell, reference, len(x), len(labels), difference, interval))
    if unreadable:
        notes.append(
            f"{unreadable} comparison(s) lack resampled test examples: predictions are not stored, cannot be "
            "read, or are of other examples than the reference's."
        )
    return notes


def _paired_answers(
    scores: _Scores,
    of_cell: dict[Any, Frame],
    answers: dict[str, Predictions],
    cell: int,
    reference: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    seeds, _ = scores.table([cell, reference])
    sides = []
    for c in (cell, reference):
        trial = dict(zip(of_cell[c]["seed"], of_cell[c]["trial_id"], strict=True))
        if any(trial[seed] not in answers for seed in seeds):
            return None
        sides.append([answers[trial[seed]] for seed in seeds])
    first = sides[0][0]
    for answer in chain(*sides):
        if not np.array_equal(answer.examples, first.examples) or not np.array_equal(
            answer.labels, first.labels
        ):
            return None
    x, y = (np.stack([answer.answers for answer in side]) for side in sides)
    return first.labels, x, y


def _sparse(study: Study) -> list[str]:
    cells = study.cells
    notes = []
    few = int(cells["seeds"].max())
    if few < 5:
        notes.append(
            f"{_many(few, 'seed')} per cell at most: intervals are wide or absent, and hardly any difference "
            "can be shown."
        )
    lost = cells[~cells["complete"]]
    if len(lost):
        notes.append(
            f"{_many(len(lost), 'cell')} of {len(cells):,} incomplete: shown, marked †, and in no aggregate."
        )
    return notes


def _named(settings: Iterable[Setting]) -> str:
    return ", ".join(f"{task} · {backbone}" for task, backbone in settings)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("s" if count != 1 else "")
