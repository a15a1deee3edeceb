"""Tests what is said of a choice of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tensorbench.methods import UserError
from tensorbench.reports.choice import RankChoice, TriedRanks, importances
from tensorbench.reports.figures.choice import draw

#: The score and the loss of each seed.
Results = Sequence[tuple[float, float]]

EQUAL: dict[str, Results] = {
    "a": [(0.1, 2.31), (0.2, 2.32)],
    "b": [(0.2, 2.33), (0.1, 2.34)],
    "c": [(0.15, 2.35), (0.15, 2.36)],
}
#: The second point differs from the first by less than its noise over seeds, the third by more.
NOISY: dict[str, Results] = {
    "a": [(0.70, 0.50), (0.72, 0.52), (0.71, 0.51)],
    "b": [(0.69, 0.52), (0.72, 0.51), (0.70, 0.515)],
    "c": [(0.40, 1.50), (0.42, 1.52), (0.41, 1.51)],
}


def choice(points: Mapping[str, Results], seeds: int | None = None, **fields: object) -> RankChoice:
    tried = tuple(
        TriedRanks(
            label="",
            ranks=(number, 1),
            parameters=10 * number,
            seeds=seeds or len(results),
            scores=tuple(score for score, _ in results),
            losses=tuple(loss for _, loss in results),
        )
        for number, results in enumerate(points.values(), 1)
    )
    made = RankChoice("att", ("input", "output"), 100, "accuracy", "loss", tried)
    return replace(made, **fields)  # type: ignore[arg-type]


def test_all_points_tie_if_their_scores_are_equal_whatever_their_losses() -> None:
    made = choice(EQUAL)
    assert (made.ties.points, made.ties.others, made.ties.every) == (3, 2, True)
    assert "A choice among ties: all 3 points tie on validation." in made.sentences


def test_importance_is_withheld_if_all_points_tie() -> None:
    # Six points suffice for importance. Their losses differ by rank and their scores do not.
    points = {str(i): [(0.5, 1 + 0.1 * i)] for i in range(6)}
    tied = choice(points)
    assert (tied.ties.every, tied.importance) == (True, {})
    assert not any("Importance" in sentence for sentence in tied.sentences)
    assert choice(points | {"other": [(0.4, 2.0)]}).importance["fanova"]["input"] == 1


@pytest.mark.parametrize("seeds", [2, 3])
def test_points_tie_if_their_noise_over_seeds_explains_their_difference(seeds: int) -> None:
    ties = choice({name: results[:seeds] for name, results in NOISY.items()}).ties
    assert (ties.points, ties.others, ties.every) == (3, 1, False)


def test_points_with_one_seed_tie_if_their_results_are_equal() -> None:
    points: dict[str, Results] = {"a": [(0.7, 0.5)], "b": [(0.8, 0.5)], "c": [(0.6, 0.50001)]}
    assert choice(points).ties.others == 1
    assert choice(points, small=True).ties.others == 0


def test_an_incomplete_point_neither_ties_nor_counts_nor_is_chosen() -> None:
    made = choice({**NOISY, "a": NOISY["a"][:2]}, seeds=3)
    assert (made.ties.points, made.ties.others) == (2, 0)
    assert made.chosen == [1]
    assert "1 point of 3 without a result of every seed." in made.sentences
    assert [line["seeds"] for line in made.overview().lines] == ["3/3", "3/3", "2/3"]


def test_without_a_complete_point_there_is_no_choice() -> None:
    made = choice({"a": [], "b": []}, seeds=2)
    assert (made.chosen, made.importance, made.ties.points) == ([], {}, 0)
    assert len(made.overview().lines) == 2


def test_the_heuristic_and_the_choice_are_marked_and_compared() -> None:
    made = choice({"a": NOISY["c"], "b": NOISY["a"]})
    assert [line["point"] for line in made.overview().lines] == ["1, chosen", "0, heuristic"]
    assert (
        made.sentences[0] == "att: input 2, output 1; 20 parameters, validation loss 0.5100, accuracy 71.00%"
    )
    assert made.sentences[1].startswith("The heuristic's ranks: input 1, output 1; 10 parameters")
    assert "report" in made.sentences[2]
    same = choice({"a": NOISY["a"], "b": NOISY["c"]})
    assert "The choice is the heuristic's own ranks." in same.sentences


def test_of_equal_points_the_smaller_is_chosen() -> None:
    points: dict[str, Results] = {"a": [(0.7, 0.5)], "b": [(0.7, 0.5)]}
    assert choice(points).chosen == [0]


def test_a_front_has_no_point_that_another_beats_in_both() -> None:
    points: dict[str, Results] = {"a": [(0.5, 0.5)], "b": [(0.5, 0.6)], "c": [(0.5, 0.4)]}
    assert choice(points, small=True).chosen == [0, 2]


def test_importance_finds_the_mode_that_matters() -> None:
    points = [((i, j), 0.5 + 0.1 * i) for i in (1, 2, 4, 8) for j in (1, 2, 4)]
    importance = importances(("input", "output"), points)
    assert set(importance) == {"fanova", "mean_decrease_impurity", "ped_anova"}
    for values in importance.values():
        assert values["input"] > 0.8
    assert importances(("input", "output"), points[:3]) == {}
    assert set(importances(("input", "output"), [((i, 3), v) for (i, _), v in points])["fanova"]) == {"input"}


def test_choices_are_drawn(tmp_path: Path) -> None:
    many = choice({str(i): [(0.5 + 0.01 * i, 1 - 0.1 * i)] for i in range(6)})
    assert "for the validation loss in this search: fanova input 1.00" in many.sentences[-1]
    none = choice({"a": [], "b": []}, seeds=2)
    draw([many, choice(EQUAL), none], tmp_path / "choices.svg")
    drawn = (tmp_path / "choices.svg").read_text()
    assert drawn.count("importance of modes") == 3
    with pytest.raises(UserError, match="--plot"):
        draw([many], tmp_path / "nowhere" / "choices.svg")
