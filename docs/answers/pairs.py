"""Answers the questions of first-leaderboard.md that compare pairs of methods: a to e, i and part of f."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from reports.analysis import analyse
from reports.comparisons import Without
from reports.findings import Against, against
from reports.inference.intervals import of_each
from reports.inference.power import of_effect
from reports.selection import Selection
from reports.thresholds import DEFAULT
from reports.units import PERCENT
from reports.words import listed

from .answer import FEW, Answer, Outcome, shortly
from .cautions import cautions
from .forest import Forest, Row
from .packed import Packed, Progress, bounds, number, points, progress
from .questions import (
    IMAGES,
    LORA,
    WITH_HEADS,
    WITHOUT_HEADS,
    Question,
    interleaved,
)

#: The smallest correlation at which the parameter count is said to explain the scores.
EXPLAINS = 0.8


@dataclass(frozen=True)
class Line:
    """One comparison of a question, over the complete tasks and on each."""

    method: str
    other: str
    mean: Against
    by_task: Mapping[str, Against]
    #: The mean without the image task. None unless that task and at least two others are complete.
    on_texts: Without | None = None
    #: The smallest true difference that is detected 80% of the time. None if the noise is unknown.
    finds: float | None = None

    @property
    def side(self) -> str:
        return self.mean.verdict.side or "undecided"


def of_pairs(packed: Packed, question: Question) -> Answer:
    """Answers a question that compares pairs."""
    done = progress(packed, question.rows, question.budget, question.tasks, question.seeds)
    if not done.there:
        return Answer(done.state, done.text)
    shown = cautions(packed, packed.rows(question.rows, question.budget, done.there))
    lines, lacking = compared(packed, question, done.there)
    short = ""
    if done.complete and not lacking:
        answer = ANSWERS.get(question.letter)
        said = answer(packed, question, lines) if answer and len(lines) > FEW else ()
        short = " ".join([*said, shortly(question.letter, list(map(_outcome, lines)))])
    figure = Forest(question.letter, [_row(line) for line in lines])
    sections = [done.text, *lacking, figure.shown]
    sections += [_level(question), _lost(lines), _beside(lines), shown]
    text = "\n\n".join(filter(None, sections))
    return Answer(done.state, text, [figure], short, _command(packed, question, done))


def _outcome(line: Line) -> Outcome:
    mean = line.mean
    texts = points(mean.effect.difference), bounds(mean.interval), str(mean.verdict)
    return Outcome(f"{line.method} from {line.other}", *texts, apart=bool(mean.verdict.side))


def _row(line: Line) -> Row:
    several = len(line.by_task) > 1
    on_tasks = {
        task: against_task.effect.difference for task, against_task in line.by_task.items() if several
    }
    return Row(line.method, line.other, line.mean.effect.difference, line.mean.interval, on_tasks)


def compared(packed: Packed, question: Question, tasks: Sequence[str]) -> tuple[list[Line], list[str]]:
    """The comparisons on these tasks, and the reasons for missing ones."""
    selection = Selection(pairs=question.pairs, tasks=tasks, budgets=[question.budget])
    lines, lacking = [], []
    for block in analyse(packed.selected(selection)).blocks:
        lacking += [block.no_reference] if block.no_reference else []
        for comparison in block.comparisons:
            mean = against(block, comparison, beside=question.beside)
            on = {setting.task: against(block, comparison, i) for i, setting in enumerate(block.settings)}
            # With a single other task, its own column already shows the difference.
            without = comparison.without if len(on) > 2 else ()
            on_texts = next((leave_out for leave_out in without if leave_out.task == IMAGES), None)
            design = of_effect(comparison.effect, block.claims + question.beside, block.level)
            finds = design.finds if design else None
            lines.append(Line(comparison.method, block.named_reference, mean, on, on_texts, finds))
    places = {pair: place for place, pair in enumerate(question.pairs)}
    on_tasks = {(line.method, line.other): line.by_task for line in lines}
    for method, other in question.pairs:
        if without := [task for task in tasks if task not in on_tasks.get((method, other), {})]:
            lacking.append(f"**No answer**: {method} and {other} cannot be compared on {listed(without)}.")
    return sorted(lines, key=lambda line: places[line.method, line.other]), lacking


def _lost(lines: Sequence[Line]) -> str:
    lost = [f"{line.method} from {line.other}" for line in lines if line.mean.lost]
    return f"Without seeds that failed, diverged or have not run: {listed(lost)}." if lost else ""


def _level(question: Question) -> str:
    families = len(question.compared)
    each = f", each reference's at {100 * of_each(families):.4g}%"
    more = f", with the {question.beside} comparisons below, which the report leaves out"
    held = each * (families > 1) + more * (question.beside > 0)
    return f"Simultaneous 95% intervals{held}."


def _beside(lines: Sequence[Line]) -> str:
    """The results on the text tasks alone, and the smallest detectable differences, as text."""
    texts = [line.on_texts for line in lines if line.on_texts]
    detectable = [line.finds for line in lines if line.finds is not None]
    sentences = []
    if texts:
        significant = [
            f"{line.method} from {line.other} {points(line.on_texts.difference)} ({line.on_texts.verdict})"
            for line in lines
            if line.on_texts and line.on_texts.verdict.side
        ]
        between = _range([points(value) for value in sorted(text.difference for text in texts)])
        listing = "; ".join([between, *significant])
        sentences.append(f"On the texts alone (not asked before): {listing}.")
    if detectable:
        between = _range([number(PERCENT.factor * value) for value in sorted(detectable)])
        sentences.append(f"Minimum detectable difference (80% power): {between}.")
    return " ".join(sentences)


def _range(ordered: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys((ordered[0], ordered[-1])))


def _command(packed: Packed, question: Question, done: Progress) -> str:
    only = "" if done.complete else f" --task {','.join(done.there)}"
    pairs = "".join(
        f" \\\n    --pair '{listed(methods)} : {other}'" for other, methods in question.compared.items()
    )
    arguments = f"{packed.files} --out {question.letter} --budget '{question.budget}'{only}{pairs}"
    return f"tensorbench report {arguments}"


def _beats(packed: Packed, question: Question, lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        low, high = line.mean.interval or (-np.inf, np.inf)
        by = ", by what matters" if low > DEFAULT else ", by less than a point" if high < DEFAULT else ""
        answer = f"yes{by}" if low > 0 else "no" if high < DEFAULT else "undecided"
        yield f"{line.method} beats {line.other}: **{answer}**."


def _heads(packed: Packed, question: Question, lines: Sequence[Line]) -> Iterator[str]:
    side = {(line.method, line.other): line.side for line in lines}
    real = {name: side.get((name, other), "undecided") for name, other in WITHOUT_HEADS.items()}
    mixed = {name: side.get((interleaved(name), other), "undecided") for name, other in WITHOUT_HEADS.items()}
    was = [name for name in WITH_HEADS if side.get((interleaved(name), name)) == "worse"]
    yield f"With real heads, beside the variant without: **{_sides(real)}**."
    yield f"With interleaved heads: **{_sides(mixed)}**."
    yield f"It was the interleaving for: **{listed(was) or 'no variant, as far as can be shown'}**."


def _sides(sides: Mapping[str, str]) -> str:
    """The methods, each with its side such as "better", or the side that all share, as text."""
    shared = set(sides.values())
    return (
        f"all {shared.pop()}"
        if len(shared) == 1
        else listed(f"{name} {side}" for name, side in sides.items())
    )


def _explained(packed: Packed, question: Question, lines: Sequence[Line]) -> Iterator[str]:
    rho, rows = _by_count(packed, question, lines, question.tasks)
    yield (
        f"The count explains it: **{'yes' if rho >= EXPLAINS else 'no'}**. Spearman's correlation of count "
        f"and mean accuracy is {number(rho)} among the {rows} rows at rank 4; at least {EXPLAINS:g} "
        "was asked for."
    )
    texts = [task for task in question.tasks if task != IMAGES]
    if texts and IMAGES in question.tasks:
        on_texts, on_images = (_by_count(packed, question, lines, on)[0] for on in (texts, [IMAGES]))
        yield (
            f"On the texts alone (not asked before) it is {number(on_texts)}, "
            f"and on {IMAGES} {number(on_images)}."
        )


def _by_count(
    packed: Packed, question: Question, lines: Sequence[Line], tasks: Sequence[str]
) -> tuple[float, int]:
    """Spearman's correlation of mean parameter count and mean score, and the number of rows with scores."""
    by_task = [packed.cells(task, question.budget) for task in tasks]
    rows = [[cells[line.method] for cells in by_task] for line in lines]
    complete = [cells for cells in rows if all(cell.mean is not None for cell in cells)]
    counts = [np.mean([cell.parameters for cell in cells]) for cells in complete]
    scores = [np.mean([cell.mean for cell in cells]) for cells in complete]
    return float(stats.spearmanr(counts, scores).statistic), len(complete)


def _tensor_or_sites(packed: Packed, question: Question, lines: Sequence[Line]) -> Iterator[str]:
    by_answer: dict[str, list[str]] = {}
    for method in dict.fromkeys(line.method for line in lines):
        sides = {line.other: line.mean.verdict.side for line in lines if line.method == method}
        elsewhere = sides.pop(LORA, "")
        answer = "the tensor" if any(sides.values()) else "the sites" if elsewhere else "undecided"
        by_answer.setdefault(answer, []).append(method)
    for answer, methods in by_answer.items():
        yield f"{listed(methods)}: **{answer}**."


#: For each letter, the rule that answers the question in sentences. The verdicts alone answer the others.
ANSWERS: Mapping[str, Callable[[Packed, Question, Sequence[Line]], Iterator[str]]] = {
    "a": _beats,
    "b": _heads,
    "c": _explained,
    "d": _tensor_or_sites,
}
