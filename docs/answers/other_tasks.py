"""Answers the questions of results/other-tasks.md, each by its registered rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from tensorbench.reports.blocks import Block, Comparison
from tensorbench.reports.comparisons import in_family
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection
from tensorbench.reports.units import listed

from .answer import Answer, with_interval
from .registered import at_ends_of_pilot, completed, qualified
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
    expected,
)

#: The methods that did best after one trial in the first study, and all that are compared with LoRA.
AFTER_ONE = (ALL_MODES, "LoRA-XS")
METHODS = (QKV_DEPTH, *AFTER_ONE)
#: The ends of the two decades in which the pilot looked for centres.
ENDS_OF_PILOT = (3.162e-4, 3.162e-2)


def of_other_tasks(pack: Path, without_room: Collection[str]) -> dict[str, Answer]:
    """The answers to questions 1 to 4, by title, from the study's pack.

    The pilot found no room on the tasks `without_room`, which are in no mean of several tasks. Raises
    ValueError if the pack lacks one of them.
    """
    results = read("", [str(pack)])
    metrics = {cell.task: results.metrics[cell.number] for cell in results.all_cells}
    if unknown := set(without_room) - metrics.keys():
        raise ValueError(f"{pack} has no task {listed(sorted(unknown))}; its tasks are {listed(metrics)}")
    accuracy = [task for task, metric in metrics.items() if metric == "accuracy"]
    counted = [task for task in accuracy if task not in without_room]
    by_other_metric = [task for task in metrics if task not in accuracy]
    questions: dict[str, tuple[tuple[str, ...], list[str], list[Rule]]] = {
        "Question 1": (METHODS, counted, [after_tuning, expected]),
        "Question 2": (METHODS, by_other_metric, [after_tuning, expected]),
        "Question 3": (METHODS, list(metrics), [turns_round]),
        "Question 4": (AFTER_ONE, counted, [better_after_one]),
    }
    name = attrgetter("method")
    every = analysed(pack, selection=Selection(METHODS, reference=LORA))
    answers = {}
    for title, (methods, tasks, rules) in questions.items():
        if not tasks:
            answers[title] = Answer("No task of this question has room.")
            continue
        analysis = analysed(pack, selection=Selection(methods, tuple(tasks), reference=LORA))
        sentences = [
            *qualified([analysis], name),
            *at_ends_of_pilot([analysis], lambda cell: ENDS_OF_PILOT, name),
        ]
        mean = accuracy if tasks is counted else tasks
        if lacking := [task for task in mean if task in without_room]:
            left_out = ", which the mean leaves out" * (tasks is counted)
            sentences.append(f"The pilot found no room on {listed(lacking)}{left_out}.")
        answers[title] = completed(answered([(analysis, rule) for rule in rules]), every, sentences)
    return answers


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
        shown = [with_interval(each.effect.difference, each.interval) for each in on.values()]
        rows.append([method, *shown])
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
    heads = [f"{setting.task}, {block.metric}" for block in blocks for setting in block.settings]
    return Ruling(short, ["method", *heads], rows)


def better_after_one(block: Block) -> Ruling:
    """Question 4: whether methods are better than the reference after one trial."""
    words = {True: "better", False: "not shown to be better"}
    verdicts = [
        (entrant.method, words[entrant.differences[1].verdict.side == "better"]) for entrant in block.compared
    ]
    return replace(after_tuning(replace(block, k=1)), short=f"After one trial: {by_verdict(verdicts)}")
