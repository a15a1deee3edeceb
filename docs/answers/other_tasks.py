"""Answers the questions of results/other-tasks.md, each by its registered rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from marked import table

from tensorbench.reports.analysis import Analysis
from tensorbench.reports.blocks import Block, Comparison
from tensorbench.reports.comparisons import in_family
from tensorbench.reports.drawing import Looks, styled
from tensorbench.reports.figures.compared import bounds_explained, differences
from tensorbench.reports.selection import Selection
from tensorbench.reports.units import listed

from .answer import Answer, Picture, points, with_interval
from .registered import (
    NONE_AT_ENDS,
    ONE_LOOK,
    at_ends_of_pilot,
    bounds_on_tasks,
    completed,
    interim,
    limits,
    power_seen,
    qualified,
)
from .studies import (
    ALL_MODES,
    LORA,
    QKV_DEPTH,
    Rule,
    Ruling,
    after_tuning,
    analysed,
    answered,
    by_verdict,
    compared,
    expected,
    studies_complete,
)

#: The methods that did best after one trial in the first study, and all that are compared with LoRA.
AFTER_ONE = (ALL_MODES, "LoRA-XS")
METHODS = (QKV_DEPTH, *AFTER_ONE)
#: The ends of the two decades in which the pilot looked for centres.
ENDS_OF_PILOT = (3.162e-4, 3.162e-2)

_name = attrgetter("method")


@dataclass(frozen=True)
class StudyOfOtherTasks:
    """The answers of the study on other kinds of tasks, from its pack.

    The pilot found no room on the tasks `without_room`, which are in no mean of several tasks. Reading them
    raises ValueError if the pack lacks one of them.
    """

    pack: Path
    without_room: Collection[str]

    @cached_property
    def every(self) -> Analysis:
        return analysed(self.pack, selection=Selection(METHODS, reference=LORA))

    @cached_property
    def by_question(self) -> dict[str, Analysis | None]:
        """The analysis of each question. None if none of its tasks has room."""
        results = self.every.results
        metrics = {cell.task: results.metrics[cell.number] for cell in results.all_cells}
        if unknown := set(self.without_room) - metrics.keys():
            raise ValueError(
                f"{self.pack} has no task {listed(sorted(unknown))}; its tasks are {listed(metrics)}"
            )
        counted = [task for task in self.with_accuracy if task not in self.without_room]
        by_other_metric = [task for task in metrics if task not in self.with_accuracy]
        questions = {
            "Question 1": (METHODS, counted),
            "Question 2": (METHODS, by_other_metric),
            "Question 3": (METHODS, list(metrics)),
            "Question 4": (AFTER_ONE, counted),
        }
        return {
            title: analysed(self.pack, selection=Selection(methods, tuple(tasks), reference=LORA))
            if tasks
            else None
            for title, (methods, tasks) in questions.items()
        }

    @cached_property
    def with_accuracy(self) -> list[str]:
        """The tasks with accuracy, with and without room."""
        results = self.every.results
        tasks = (cell.task for cell in results.all_cells if results.metrics[cell.number] == "accuracy")
        return list(dict.fromkeys(tasks))

    def answers(self) -> dict[str, Answer]:
        """The answers to questions 1 to 4, by title."""
        rules: dict[str, list[Rule]] = {
            "Question 1": [after_tuning, expected],
            "Question 2": [after_tuning, expected],
            "Question 3": [turns_round],
            "Question 4": [better_after_one],
        }
        answers = {}
        for title, analysis in self.by_question.items():
            if analysis is None:
                answers[title] = Answer("No task of this question has room.")
                continue
            given = answered([(analysis, rule) for rule in rules[title]])
            answers[title] = completed(given, self.every, self.qualified(analysis))
        return answers

    def qualified(self, analysis: Analysis) -> Iterator[str]:
        """Yields sentences on withheld verdicts, lower bounds, centres and best rates at ends, and room."""
        yield from qualified([analysis], _name)
        yield from bounds_on_tasks([analysis], _name)
        yield from at_ends_of_pilot([analysis], lambda cell: ENDS_OF_PILOT, _name)
        tasks = {cell.task: None for cell in analysis.results.all_cells}
        mean = tasks.keys() <= {*self.with_accuracy}
        shown = self.with_accuracy if mean else tasks
        if lacking := [task for task in shown if task in self.without_room]:
            left_out = ", which the mean leaves out" * mean
            yield f"The pilot found no room on {listed(lacking)}{left_out}."

    def blocks(self, number: int) -> tuple[Block, ...]:
        """The blocks of a question, none if none of its tasks has room."""
        analysis = self.by_question[f"Question {number}"]
        return analysis.blocks if analysis else ()

    def picture(self) -> Picture:
        """The figure of question 1: the difference of each method from LoRA."""
        (block,) = self.blocks(1)
        with styled():
            looks = Looks(cell.family for cell in self.every.results.all_cells)
            drawn = differences(block, "other-tasks", f"Other kinds of tasks, beside {LORA}", looks)
        return Picture("findings-other-tasks", drawn)

    def first(self, answers: dict[str, Answer]) -> str:
        """The part with which the answers begin: all in short, a figure, a table and limits."""
        (block,), (similarity,) = self.blocks(1), self.blocks(2)
        complete, _ = studies_complete(self.every)
        begun, picture = interim(self.every), self.picture()
        subjects = (
            f"Accuracy, a mean over {listed([setting.task for setting in block.settings])}: ",
            f"{similarity.settings[0].task}, in points of {similarity.metric}: ",
            "Task by task: ",
            "",
        )
        short = (each.short.removeprefix(begun) for each in answers.values())
        within = " or ".join(
            f"{each.unit.size(each.threshold)} of {each.metric}" for each in (block, similarity)
        )
        state = f"**{begun.removesuffix(': ')}.** " if begun else ""
        parts = [
            f"{state}Beside {LORA} with as many parameters. Scores after {block.k} trials, by {complete} "
            f"studies. *Equivalent* is within {within}.",
            "\n".join(f"- {subject}{answer}" for subject, answer in zip(subjects, short, strict=True)),
            picture.shown,
            picture.drawn.caption,
            self.by_method(block, similarity),
            "\n".join(f"- {limit}" for limit in self.limits(block)),
        ]
        return "\n\n".join(parts)

    def by_method(self, *blocks: Block) -> str:
        """A table of all rows: for each block the score, the difference from LoRA and the verdict."""
        sizes: dict[str, str] = {}
        parts: list[Mapping[str, tuple[str, ...]]] = []
        for block in blocks:
            shown = {}
            for entrant in block.entrants:
                of_cells = dict.fromkeys(f"{cell.parameters:,}" for cell in entrant.cells)
                sizes.setdefault(entrant.method, " or ".join(of_cells))
                score = block.unit.score(entrant.means[block.k].value)
                shown[entrant.method] = (score, *compared(entrant.differences.get(block.k)))
            for level in block.levels:
                sizes.setdefault(level.method, "–")
                change = "–" if level.difference is None else points(level.difference)
                shown[level.method] = (block.unit.score(fmean(level.scores.values())), change, "–")
            parts.append(shown)
        heads = [
            text for block in blocks for text in (block.unit.named(block.metric), f"from {LORA}", "verdict")
        ]
        rows = [
            [method, size, *(text for shown in parts for text in shown.get(method, ("–",) * 3))]
            for method, size in sizes.items()
        ]
        return table(["method", "parameters", *heads], rows)

    def limits(self, block: Block) -> Iterator[str]:
        """Yields what limits the answers. `block` is that of question 1."""
        remarks = (
            "The windows of rates, which intervals take as given, were chosen on each task by the pilot.",
            " ".join(self.qualified(self.every)) or NONE_AT_ENDS,
        )
        entrants = {
            f"{entrant.method}, {each.metric}": entrant
            for each in self.every.blocks
            for entrant in each.entrants
        }
        new = (cell for cell in self.every.results.all_cells if cell.studies)
        tasks = {cell.task for cell in self.every.results.all_cells}
        extent = f"Four methods, one budget, two small backbones, {len(tasks)} tasks"
        yield from limits(extent, remarks, entrants, new, power=power_seen(block, "methods"))
        if interim(self.every):
            yield ONE_LOOK
        yield "The trials ran on two kinds of processors (*Two processors*, below)."


def turns_round(*blocks: Block) -> Ruling:
    """Question 3: whether a method is better than the reference on one task and worse on another.

    Intervals are simultaneous over the methods and tasks of all blocks, which have a metric each.
    """
    family = sum(len(block.compared) * len(block.settings) for block in blocks)
    by_method: dict[str, dict[str, Comparison]] = defaultdict(dict)
    for block in blocks:
        for entrant in block.compared:
            for setting, each in entrant.differences[block.k].on.items():
                by_method[entrant.method][setting.task] = in_family(each, family, block.threshold)
    rows, verdicts, withheld = [], [], []
    for method, on in by_method.items():
        rows.append([method, *map(_shown, on.values())])
        better, worse = (
            [task for task, each in on.items() if each.verdict.side == side] for side in ("better", "worse")
        )
        words = f"better on {listed(better)}, worse on {listed(worse)}" if better and worse else "not shown"
        verdicts.append((method, words))
        withheld += [
            f"{method} on {task}: {why}" for task, each in on.items() if (why := each.verdict.reason)
        ]
    short = f"The order turns round: {by_verdict(verdicts)}"
    if withheld:
        short += f" Without a verdict: {'; '.join(withheld)}."
    short += bounds_explained(each for on in by_method.values() for each in on.values())
    heads = [f"{setting.task}, {block.metric}" for block in blocks for setting in block.settings]
    return Ruling(short, ["method", *heads], rows)


def _shown(each: Comparison) -> str:
    """The difference with its interval, and a mark if it is a lower or an upper bound."""
    return with_interval(each.effect.difference, each.interval) + f" ({each.bound})" * bool(each.bound)


def better_after_one(block: Block) -> Ruling:
    """Question 4: whether methods are better than the reference after one trial."""
    words = {True: "better", False: "not shown to be better"}
    verdicts = [
        (entrant.method, words[entrant.differences[1].verdict.side == "better"]) for entrant in block.compared
    ]
    short = f"After one trial, over the windows that the pilot chose: {by_verdict(verdicts)}"
    return replace(after_tuning(replace(block, k=1)), short=short)
