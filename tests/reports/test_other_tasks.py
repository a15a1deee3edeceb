"""Tests the answers of the study on other kinds of tasks, on made-up studies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorbench
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import Tag
from tensorbench.reports.analysis import analyse
from tensorbench.reports.blocks import Block
from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection

from ..stored import Result
from .made_up import Stored
from .made_up_studies import ResultOf, plan_of, result

QKV_DEPTH, ALL_MODES, LORA_XS = METHODS = ("TensLoRA qkv_depth", "TensLoRA att_qkv_depth", "LoRA-XS")
TASKS = ["movie-sentiment", "digits", "tweet-sentiment"]
SUITE: dict[str, Any] = {
    "name": "other_tasks",
    "methods": [
        *("converged_head", "head_only", "lora", "lora_xs"),
        {"method": "tenslora", "each": {"variant": ["qkv_depth", "att_qkv_depth"]}},
    ],
    "tasks": TASKS,
    "tuning": {"studies": 3, "points": 4},
}


def with_more(made: Result, points: float) -> Result:
    """The result with this many more points of right answers, or fewer."""
    answers = np.array(made.answers)
    right = answers == made.labels
    answers[np.flatnonzero(right if points < 0 else ~right)[: round(10 * abs(points))]] ^= 1
    return replace(made, answers=answers, score=float((answers == made.labels).mean()))


#: The points that a method gains on single tasks.
GAINS = {(QKV_DEPTH, "digits"): 6.0, (QKV_DEPTH, "tweet-sentiment"): -6.0}


def made_up(trial: Trial, row: Row) -> Result:
    """The same results with gains on single tasks. The metric of tweets is Pearson."""
    made = result(trial, row)
    assert made is not None
    tags = {Tag.METRIC: "pearson"} if row.task == "tweet-sentiment" else {}
    return replace(with_more(made, GAINS.get((row.title, row.task), 0.0)), tags=tags)


@pytest.fixture(scope="module")
def packed(stored: Stored, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(made: ResultOf, **changes: Any) -> Path:
        file = tmp_path_factory.mktemp("other") / "other_tasks.tensorbench.zip"
        tensorbench.pack("other_tasks", out=str(file), store=stored(made, plan_of(**SUITE | changes)))
        return file

    return make


@pytest.fixture(scope="module")
def pack(packed: Callable[..., Path]) -> Path:
    return packed(made_up)


@pytest.fixture
def answers(script: Callable[[str], ModuleType]) -> Callable[..., Any]:
    """A function that answers the questions from a pack and the tasks without room."""
    study = script("answers.other_tasks").StudyOfOtherTasks
    return lambda pack, *without_room: study(pack, without_room).answers()


def blocks(pack: Path, **selection: Any) -> tuple[Block, ...]:
    return analyse(read("", [str(pack)], Selection(reference="LoRA", **selection))).blocks


def lines(text: str) -> dict[str, list[str]]:
    """The cells of the first table, by the first cell of each line."""
    table = next(part for part in text.split("\n\n") if part.startswith("| "))
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return {first: rest for first, *rest in cells}


def test_each_question_has_its_own_family(
    pack: Path, answers: Callable[..., Any], script: Callable[[str], ModuleType]
) -> None:
    given, shown = answers(pack), script("answers.answer")
    assert list(given) == [f"Question {number}" for number in range(1, 5)]
    assert all(each.text.startswith("On 3 of 3 studies.") and each.short for each in given.values())
    families = {
        "Question 1": (METHODS, TASKS[:2], 4, 3),
        "Question 2": (METHODS, TASKS[2:], 4, 3),
        "Question 4": ((ALL_MODES, LORA_XS), TASKS[:2], 1, 2),
    }
    for title, (methods, tasks, k, family) in families.items():
        (block,) = blocks(pack, methods=methods, tasks=tasks)
        table = lines(given[title].text)
        assert {*table} - {"method", "---"} == {*methods}
        for entrant in block.compared:
            effect = entrant.differences[k].effect
            expected = [shown.points(effect.difference), shown.bounds(effect.interval(simultaneous(family)))]
            assert table[entrant.method][:2] == expected
    # Two points of Pearson matter.
    assert blocks(pack, tasks=TASKS[2:])[0].threshold == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict(Word.BETTER), "better"),
        (Verdict(Word.EQUIVALENT), "not shown to be better"),
        (Verdict(Word.WORSE), "not shown to be better"),
    ],
)
def test_after_one_trial_only_an_interval_above_zero_is_an_answer(
    verdict: Verdict, words: str, pack: Path, script: Callable[[str], ModuleType]
) -> None:
    (block,) = blocks(pack, methods=[LORA_XS], tasks=TASKS[:2])
    (entrant,) = block.compared
    after = entrant.differences | {1: replace(entrant.differences[1], verdict=verdict)}
    judged = replace(block, entrants=(block.entrants[0], replace(entrant, differences=after)))
    ruling = script("answers.other_tasks").better_after_one(judged)
    assert ruling.short.endswith(f"**{words}**: {LORA_XS}.")


def test_the_order_turns_round_where_single_tasks_lie_on_both_sides(
    pack: Path, answers: Callable[..., Any], script: Callable[[str], ModuleType]
) -> None:
    answer, shown = answers(pack)["Question 3"], script("answers.answer")
    assert f"better on digits, worse on tweet-sentiment**: {QKV_DEPTH}" in answer.short
    table = lines(answer.text)
    for block in blocks(pack, methods=METHODS):
        for entrant in block.compared:
            for setting, each in entrant.differences[4].on.items():
                at = table["method"].index(f"{setting.task}, {block.metric}")
                interval = each.effect.interval(simultaneous(9))
                expected = shown.with_interval(each.effect.difference, interval)
                mark = f" ({each.bound})" if each.bound else ""
                assert table[entrant.method][at] == expected + mark


def test_bounds_are_marked_and_only_sides_that_intervals_show_are_withheld(
    pack: Path, script: Callable[[str], ModuleType]
) -> None:
    both = blocks(pack, methods=METHODS)
    on_an_edge = Verdict(Word.INCONCLUSIVE, reason="the best rates of LoRA lie at an edge")

    def at_an_edge(block: Block) -> Block:
        """The block if LoRA's best rates lay at an edge on each task, for all that is compared."""
        entrants = []
        for entrant in block.entrants:
            after = dict(entrant.differences)
            if own := after.get(4):
                on = {s: replace(each, verdict=on_an_edge, bound="≤") for s, each in own.on.items()}
                after[4] = replace(own, on=on)
            entrants.append(replace(entrant, differences=after))
        return replace(block, entrants=tuple(entrants))

    ruling = script("answers.other_tasks").turns_round(*map(at_an_edge, both))
    cells = {(row[0], head): cell for row in ruling.rows for head, cell in zip(ruling.head, row, strict=True)}
    # A gain of six points has a side, and the same results have none.
    assert cells[QKV_DEPTH, "digits, accuracy"].endswith(") (≤)")
    assert f"{QKV_DEPTH} on digits: {on_an_edge.reason}" in ruling.short
    assert f"{LORA_XS} on digits" not in ruling.short
    assert "(≤) marks an upper bound: the reference's best rates lie at an edge" in ruling.short


def test_a_task_without_room_is_in_no_mean_and_is_said(pack: Path, answers: Callable[..., Any]) -> None:
    every, without = answers(pack), answers(pack, "digits")
    assert lines(without["Question 1"].text)["method"][-1] == "movie-sentiment"
    for title in ("Question 1", "Question 4"):
        assert "The pilot found no room on digits, which the mean leaves out." in without[title].text
    # By itself it is still shown.
    assert without["Question 2"] == every["Question 2"]
    assert without["Question 3"].text == f"{every['Question 3'].text} The pilot found no room on digits."
    none = answers(pack, "digits", "movie-sentiment")
    assert none["Question 1"].text == none["Question 4"].text == "No task of this question has room."
    with pytest.raises(ValueError, match="no task nope; its tasks are movie-sentiment"):
        answers(pack, "nope")


def test_a_centre_at_an_end_of_what_the_pilot_tried_is_said(
    packed: Callable[..., Path], answers: Callable[..., Any]
) -> None:
    at_end = {"method": "lora_xs", "centre": {"digits": 3.162e-2}}
    methods = [each for each in SUITE["methods"] if each != "lora_xs"]
    given = answers(packed(made_up, methods=[*methods, at_end]))
    said = "The centre is 0.03162, at an end of what the pilot tried, for LoRA-XS on digits."
    assert said in given["Question 1"].text
    assert said not in given["Question 2"].text


def test_nothing_is_compared_with_a_reference_that_is_no_better_than_a_head(
    packed: Callable[..., Path], answers: Callable[..., Any]
) -> None:
    def made(trial: Trial, row: Row) -> Result:
        """The same results, but the converged head is far above LoRA on digits."""
        made = made_up(trial, row)
        of_head = row.title == "converged head" and row.task == "digits"
        return with_more(made, 95 - 100 * made.score) if of_head else made

    given = answers(packed(made))
    assert given["Question 1"].short.startswith("**no verdict**: ")
    assert all(method in given["Question 1"].short for method in METHODS)
    assert "LoRA (isoparameters 2) scored no better than a head on digits" in given["Question 1"].text
    assert f"{QKV_DEPTH} on digits: LoRA is no better than a head" in given["Question 3"].short
    assert "no better than a head" not in given["Question 2"].text


def test_the_page_begins_with_all_answers_a_figure_and_a_table_of_all_rows(
    pack: Path, script: Callable[[str], ModuleType]
) -> None:
    study = script("answers.other_tasks").StudyOfOtherTasks(pack, ())
    answers = study.answers()
    first = study.first(answers)
    assert all(each.short in first for each in answers.values())
    assert study.picture().shown in first
    table = lines(first)
    assert {*table} == {"method", "---", "LoRA", *METHODS, "converged head", "head only"}
    assert {len(cells) for cells in table.values()} == {7}
    for block, at in zip(blocks(pack, methods=METHODS), (1, 4), strict=True):
        for entrant in block.entrants:
            assert table[entrant.method][at] == block.unit.score(entrant.means[4].value)
        for level in block.levels:
            score = block.unit.score(sum(level.scores.values()) / len(level.scores))
            assert table[level.method][at] == score


def test_answers_before_the_last_study_are_interim(
    packed: Callable[..., Path], script: Callable[[str], ModuleType]
) -> None:
    def made(trial: Trial, row: Row) -> Result | None:
        """The same results without the last study of LoRA-XS on tweets."""
        last = row.studies is not None and row.studies.trials[trial.seed].study == 3
        lost = last and row.title == LORA_XS and row.task == "tweet-sentiment"
        return None if lost else made_up(trial, row)

    pack = packed(made, tuning={"studies": 4, "points": 4})
    study = script("answers.other_tasks").StudyOfOtherTasks(pack, ())
    given = study.answers()
    assert all(each.short.startswith("Interim, after 3 of 4 studies: ") for each in given.values())
    # The first part says so once, and what another look costs.
    first = study.first(given)
    assert first.startswith("**Interim, after 3 of 4 studies.** ")
    assert first.count("Interim") == 1
    assert "Verdicts are for this look alone." in first
