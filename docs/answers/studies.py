"""Answers the questions of results/leaderboard.md from the trials of the study, each by a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from operator import itemgetter
from pathlib import Path

import numpy as np
from marked import table

from tensorbench.records.metrics import direction
from tensorbench.reports.advice import advise
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.answers import answers as sentences
from tensorbench.reports.answers import in_words, level_notes, order_note
from tensorbench.reports.blocks import Block, Comparison
from tensorbench.reports.figures import draw
from tensorbench.reports.inference.effects import effect
from tensorbench.reports.inference.intervals import LEAST_SEEDS, Bounds, simultaneous
from tensorbench.reports.inference.studies import CompleteStudies, of_method, score_after
from tensorbench.reports.reading import read
from tensorbench.reports.results import Cell
from tensorbench.reports.selection import Selection
from tensorbench.reports.units import listed, many

from .answer import Answer, Claim, Picture, bounds, points, with_interval

LORA, QKV_DEPTH, ALL_MODES, ATT = "LoRA", "TensLoRA qkv_depth", "TensLoRA att_qkv_depth", "TensLoRA att"


@dataclass(frozen=True)
class Ruling:
    """The answer to a question by a rule, and the table behind it. The answer is empty if there is none."""

    short: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    #: The comparisons that the answer rests on, by name.
    claims: Mapping[str, Claim] = field(default_factory=dict)


#: Rules are given all blocks of an analysis. Most take one.
Rule = Callable[..., Ruling]
EVERY = Selection(reference=LORA)


@cache
def analysed(*packs: Path, selection: Selection = EVERY) -> Analysis:
    """The analysis of the packs' studies. It is computed once for the same packs and selection."""
    return analyse(read("", [str(pack) for pack in packs], selection))


def of_questions(study: Path) -> dict[str, Answer]:
    """The answers to questions 1 to 5, by title, from the study's pack."""
    variants = (QKV_DEPTH, ALL_MODES)
    rules: dict[str, list[tuple[Selection, Rule]]] = {
        "Question 1": [(EVERY, after_tuning)],
        "Question 2": [(EVERY, another_order)],
        "Question 3": [(EVERY, forgiving)],
        "Question 4": [
            (Selection(methods=variants, reference=LORA), after_tuning),
            (Selection(methods=variants, reference=ATT), worst),
        ],
        "Question 5": [(EVERY, default_rate)],
    }
    return {
        title: answered([(analysed(study, selection=selection), rule) for selection, rule in parts])
        for title, parts in rules.items()
    }


def of_advice(study: Path) -> tuple[str, str]:
    """The advice on methods by number of trials, and its basis: expected scores and learning rates."""
    every = analysed(study)
    advice = answered([(every, affordable)])
    behind = answered([(every, rule) for rule in (expected, rates)])
    return advice.text, behind.text


def of_costs(study: Path) -> str:
    """A table of each method's difference from LoRA, number of agreeing estimators, size and costs."""
    every = analysed(study)
    return answered([(every, with_costs)]).text


def of_fresh_tunings(study: Path, fresh: Path) -> Answer:
    """Checks the study's errors by the tunings in the pack `fresh`, and analyses these by themselves."""
    again = analysed(fresh)
    check = answered([(analysed(study), partial(fresh_tunings, again))])
    alone = answered([(again, after_tuning)])
    if not alone.short:
        return check
    # The number of studies is cut off, since it does not include those of the study itself.
    by_themselves = alone.text.partition("\n\n")[2]
    return replace(check, text=f"{check.text}\n\nThe fresh tunings by themselves:\n\n{by_themselves}")


def in_one_sentence(study: Path) -> str:
    """The answer to question 1 as a sentence, or the reason why there is none."""
    return " ".join(sentences(analysed(study)))


def of_levels(*packs: Path) -> tuple[str, str]:
    """The differences of methods without an adapter from LoRA, in sentences and as a table by task."""
    (block,) = analysed(*packs).blocks
    rows = [
        [
            level.method,
            *(
                points(each) if each is not None else "–"
                for each in (level.difference, *map(level.differences.get, block.settings))
            ),
        ]
        for level in block.levels
    ]
    head = ["method", f"from {block.against}", *(setting.task for setting in block.settings)]
    return " ".join(level_notes(block)), table(head, rows)


def picture(study: Path) -> Picture:
    """The figure of question 1: each method's difference from LoRA."""
    return Picture("findings-study", draw(analysed(study))[0][0])


def of_core_rate(study: Path, multiples: Path) -> Answer:
    """Tests TensLoRA+'s claim: the effect of training the core at 4 and 16 times the learning rate.

    The pack `multiples` has the trials at these rates, and `study` those at the plain rate. They are compared
    on the tasks of `multiples`.
    """
    methods = tuple(f"{QKV_DEPTH} [core_lr={multiple}]" for multiple in (4.0, 16.0))
    tasks = tuple({cell.task: None for cell in read("", [str(multiples)]).all_cells})
    selection = Selection(methods=methods, reference=QKV_DEPTH, tasks=tasks)
    both = analysed(study, multiples, selection=selection)
    return answered([(both, after_tuning), (both, by_trials)])


def answered(parts: Sequence[tuple[Analysis, Rule]]) -> Answer:
    """The answer to a question of several parts, each of which is an analysis with a rule.

    Its text includes notes on missing evidence. If some part has too few complete studies, `short` is empty.
    """
    rulings = []
    for analysis, rule in parts:
        complete, planned = studies_complete(analysis)
        state = f"{complete} of {planned} studies complete"
        if complete < LEAST_SEEDS:
            return Answer(f"**Not yet**: {state}, and an interval needs {LEAST_SEEDS}.")
        rulings.append(rule(*analysis.blocks))
    notes = dict.fromkeys(note for analysis, _ in parts for note in _notes(analysis))
    extent = f"On {state.replace(' complete', '')}."
    text = "\n\n".join([extent, *notes, *(table(r.head, r.rows) for r in rulings)])
    claims = {name: claim for ruling in rulings for name, claim in ruling.claims.items()}
    return Answer(text, " ".join(ruling.short for ruling in rulings if ruling.short), claims)


def _notes(analysis: Analysis) -> Iterator[str]:
    """Yields notes on what the numbers of an analysis do not cover.

    Studies that have not ended have no note, since pages show the number of complete studies.
    """
    yield from analysis.gaps
    for block in analysis.blocks:
        yield from block.notes
    yield from analysis.limits


def studies_complete(analysis: Analysis) -> tuple[int, int]:
    """The number of studies that all methods have completed on all tasks, and the number planned."""
    cells = [cell for cell in analysis.results.all_cells if cell.studies]
    numbers = [
        {*analysis.studies[cell.number].numbers} if cell.number in analysis.studies else set()
        for cell in cells
    ]
    return len(set.intersection(*numbers)), min(cell.studies.studies for cell in cells if cell.studies)


# --- the rules ---


def after_tuning(block: Block) -> Ruling:
    """Questions 1 and 4: each method's difference from the reference after k trials."""
    differences = {entrant.method: entrant.differences[block.k] for entrant in block.compared}
    return ruled(["method", f"from {block.against}"], differences, block)


def ruled(head: Sequence[str], differences: Mapping[str, Comparison], block: Block) -> Ruling:
    """The verdicts on these differences, by the name of each.

    `head` has the headings of the names and of the differences. The settings are those of the block.
    """
    verdicts = {name: difference.verdict for name, difference in differences.items()}
    rows = [
        [
            name,
            points(each.effect.difference),
            bounds(each.interval),
            in_words(verdicts[name], ""),
            *(points(part.difference) for part in each.effect.parts),
        ]
        for name, each in differences.items()
    ]
    tasks = [setting.task for setting in block.settings]
    named = [(f"{n} ({each.window})" if each.window else n, each.word) for n, each in verdicts.items()]
    claims = {f"{name}, {head[1]}": Claim(each, block.threshold) for name, each in differences.items()}
    return Ruling(by_verdict(named), [*head, "interval", "verdict", *tasks], rows, claims)


def compared(difference: Comparison | None) -> tuple[str, str]:
    """A difference with its interval, and its verdict. Dashes if nothing is compared."""
    return _with_interval(difference), "–" if difference is None else in_words(difference.verdict, "")


def by_trials(block: Block) -> Ruling:
    """A table of each method's difference from the reference after each number of trials. No answer."""
    rows = [
        [entrant.method, *(_with_interval(entrant.differences.get(k)) for k in block.ks)]
        for entrant in block.compared
    ]
    return Ruling("", ["method", *(f"k = {k}" for k in block.ks)], rows)


def another_order(block: Block) -> Ruling:
    """Question 2: whether few and many trials put a method on different sides of the reference."""
    return replace(by_trials(block), short=order_note(block))


def forgiving(block: Block) -> Ruling:
    """Question 3: whether more rates are near the best, and fewer trials fail, than for the reference."""
    rows, verdicts = [], []
    for entrant in block.entrants:
        shares = entrant.sensitivity
        assert shares is not None, "studies have rates"
        near, more = _share(shares.near_difference, "more forgiving", "less forgiving")
        failed, fewer = _share(shares.failed_difference, "fails more", "fails less")
        own = "–" if shares.near is None else percent(shares.near)
        rows.append([entrant.method, own, near, percent(shares.failed), failed])
        if entrant in block.compared:
            verdicts.append((entrant.method, " and ".join(filter(None, (more, fewer))) or "inconclusive"))
    change = f"from {block.against}"
    return Ruling(by_verdict(verdicts), ["method", "near the best, %", change, "failed, %", change], rows)


def _share(difference: Comparison | None, higher: str, lower: str) -> tuple[str, str]:
    """The difference of a share with its interval, and the word for its side.

    The word is `higher` or `lower`, or empty if the interval contains zero.
    """
    if difference is None:
        return "–", ""
    word = {"better": higher, "worse": lower}.get(difference.verdict.side, "")
    return _with_interval(difference), word


def worst(block: Block) -> Ruling:
    """Question 4: whether the reference is below each of the other variants."""
    sides = {entrant.differences[block.k].verdict.side for entrant in block.compared}
    ruled = "yes" if sides == {"better"} else "no" if "worse" in sides else "inconclusive"
    short = f"{block.against} is below each other variant that ran: **{ruled}**."
    return replace(after_tuning(block), short=short)


def default_rate(block: Block) -> Ruling:
    """Question 5: whether a method loses less than a point at the rate that is best on the other tasks."""
    rows, verdicts = [], []
    for entrant in block.entrants:
        if (transfer := entrant.transfer) is not None:
            words = _cost(transfer.interval, block.threshold)
            verdicts.append((entrant.method, words))
            costs = [points(cost) for cost in entrant.costs.values()]
            mean, interval = points(transfer.effect.difference), bounds(transfer.interval)
            rows.append([entrant.method, mean, interval, words, *costs])
    head = ["method", "change", "interval", "cost", *(setting.task for setting in block.settings)]
    return Ruling(by_verdict(verdicts), head, rows)


def _cost(interval: Bounds | None, threshold: float) -> str:
    if interval is not None and interval[0] > -threshold:
        return "below a point"
    if interval is not None and interval[1] < -threshold:
        return "more than a point"
    return "inconclusive"


#: The verdict by the sharper rule was checked with 16 other estimators and intervals. This is the number of
#: them that agree with it, by method.
AGREE = {"LoRA (targets=qkvo) r=3": 16, "FacT-TT": 11, QKV_DEPTH: 16, ALL_MODES: 13, "LoRA-XS": 8, ATT: 12}


def with_costs(block: Block) -> Ruling:
    """Each method's difference from the reference, with its size and its mean costs over the tasks.

    The time of a training step is relative to the reference's on the same task. The time of a forward pass is
    relative to that of the backbone without an adapter.
    """

    def mean(values: Iterable[float | None]) -> float:
        return float(np.mean([np.nan if value is None else value for value in values]))

    rows = []
    for entrant in block.entrants:
        own, pairs = entrant.cells, zip(entrant.cells, block.entrants[0].cells, strict=True)
        step = mean((cell["step_ms"] or np.nan) / (other["step_ms"] or np.nan) for cell, other in pairs)
        forward, memory = (mean(cell[name] for cell in own) for name in ("adapted_forward", "peak_mib"))
        difference = entrant.differences.get(block.k)
        ruled = ["reference", "–", "–"]
        if difference is not None:
            agree = f"{AGREE[entrant.method]} of 16" if entrant.method in AGREE else "–"
            ruled = [_with_interval(difference), in_words(difference.verdict, ""), agree]
        sizes = (" or ".join(dict.fromkeys(texts)) for texts in zip(*map(_size, own), strict=True))
        rows.append([entrant.method, *ruled, *sizes, f"{step:.2f}", f"{forward:.2f}", f"{memory:,.0f}"])
    head = ["method", f"from {block.against}", "verdict", "estimators that agree", "ranks", "parameters"]
    return Ruling("", [*head, "time of a step", "time of a forward", "memory, MiB"], rows)


def _size(cell: Cell) -> tuple[str, str]:
    return cell.ranks, f"{cell.parameters:,}"


# --- advice ---


def affordable(block: Block) -> Ruling:
    """The method to use after each number of trials: the best method significantly better than the reference.

    If no method is significantly better, it is the reference itself.
    """
    rows = []
    for k in block.ks:
        better = [
            (difference.effect.difference, entrant)
            for entrant in block.compared
            if (difference := entrant.differences.get(k)) and difference.verdict.side == "better"
        ]
        _, best = max(better, key=itemgetter(0), default=(0.0, block.entrants[0]))
        change = _with_interval(best.differences[k]) if better else "no method is shown to be better"
        rows.append([many(k, "trial"), best.method, block.unit.score(best.means[k].value), change])
    head = ["if you can afford", "use", "expect", f"difference from {block.against}"]
    return Ruling("", head, rows)


def expected(block: Block) -> Ruling:
    """Each method's expected score after each number of trials, and its share of failed trials."""
    rows = []
    for entrant in block.entrants:
        assert entrant.sensitivity is not None, "studies have rates"
        scores = [block.unit.score(entrant.means[k].value) for k in block.ks]
        rows.append([entrant.method, *scores, percent(entrant.sensitivity.failed)])
    head = ["method", *(f"after {many(k, 'trial')}" for k in block.ks), "failed, %"]
    return Ruling("", head, rows)


def rates(block: Block) -> Ruling:
    """The rate to start from on each task, and the range within a point of the best."""
    rows = [
        [
            entrant.method,
            *(
                f"{rate.start:.2g} ({rate.range})" if (rate := advise(own.cell, own.studies)) else "–"
                for own in entrant.on.values()
            ),
        ]
        for entrant in block.entrants
    ]
    return Ruling("", ["method", *(f"rate on {setting.task}" for setting in block.settings)], rows)


# --- the check of the intervals ---


def fresh_tunings(fresh: Analysis, block: Block) -> Ruling:
    """Whether the scores of fresh tunings after k trials are in the intervals that the study predicts.

    A tuning is a study of a method on a task. Fresh tunings are those in `fresh` whose numbers do not occur
    in `block`. The column "mean kept" has the mean test score of the trials that they keep. It is a little
    higher on average than the score after k trials, since the rates of a tuning cover the window more evenly
    than k random rates.
    """
    cells = {(cell.method, cell.setting): cell for cell in fresh.results.all_cells}
    head = ["method", "task", "the study", "its interval", "expected of fresh tunings", "fresh tunings"]
    head += [f"score after {block.k}", "mean kept", "as expected"]
    rows, sign, score = [], direction(block.metric), block.unit.score
    for entrant in block.entrants:
        for setting, of_entrant in entrant.on.items():
            own, estimate = of_entrant.studies, of_entrant.scores[block.k]
            cell = cells.get((entrant.method, setting))
            if cell is None or cell.number not in fresh.studies or cell.studies is None:
                continue
            studies = fresh.studies[cell.number]
            numbers = [number for number in studies.numbers if number not in own.numbers]
            if len(numbers) < LEAST_SEEDS or estimate.interval is None:
                continue
            studies = studies.only(numbers)
            after = sign * score_after(studies, block.k)
            kept = np.take_along_axis(studies.scores, studies.losses.argmin(1)[:, None], 1).mean()
            low, high = sorted(sign * bound for bound in expected_of(own, studies.count, block.k))
            as_expected = "yes" if low <= after <= high else "no"
            of_study = [score(estimate.value), *map(block.unit.between, (estimate.interval, (low, high)))]
            count = f"{len(numbers)} of {cell.studies.studies - own.count}"
            of_fresh = [count, score(after), score(sign * kept), as_expected]
            rows.append([entrant.method, setting.task, *of_study, *of_fresh])
    if not rows:
        return Ruling("**Not yet**: too few fresh tunings are complete.", head, [])
    outside = [f"{row[0]} on {row[1]}" for row in rows if row[-1] == "no"]
    short = f"**Not as expected**: {listed(outside)}." if outside else "**As expected**."
    return Ruling(short, head, rows)


def expected_of(studies: CompleteStudies, count: int, k: int) -> Bounds:
    """The 95% prediction interval for the score after k trials of `count` further studies.

    Larger scores are better. The variance is that of the difference between these studies and the further
    ones, on the same test examples.
    """
    part = of_method(studies, k)
    assert part.seeds is not None, "there is an interval, so that studies have an error"
    scale = 1 + studies.count / count
    seeds, failures = part.seeds * scale, part.failures * scale
    of_both = replace(part, seeds=seeds, failures=failures, examples=0.0, validation=0.0)
    interval = effect([of_both]).interval(simultaneous(1))
    assert interval is not None
    return interval


# --- words ---


def by_verdict(verdicts: Sequence[tuple[str, str]]) -> str:
    """Lists the methods by verdict, as text. `verdicts` are pairs of a method and its verdict."""
    names: dict[str, list[str]] = {}
    for method, words in verdicts:
        names.setdefault(words, []).append(method)
    return "; ".join(f"**{words}**: {listed(methods)}" for words, methods in names.items()) + "."


def _with_interval(difference: Comparison | None) -> str:
    return "–" if difference is None else with_interval(difference.effect.difference, difference.interval)


def percent(share: float) -> str:
    return f"{100 * share:.0f}"
