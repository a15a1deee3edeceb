"""Tests what is said of the choice of a search or an allocation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import pytest
from rich.console import Console

from tensorbench.cli.results import print_allocation
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.search_results import AllocationPoint, AllocationResult, Finalist, SearchPoint, Tried
from tensorbench.records.words import PointState, Status, Tag
from tensorbench.reports import figures
from tensorbench.reports.ablation import StoredAblation, of_result
from tensorbench.reports.choice import choice, ties
from tensorbench.reports.study import Experiment

from ..stored import search_found

IMPORTANCE = {"fanova": {"input": 0.64, "output": 0.36}}

#: The score and the loss of each seed.
Results = Sequence[tuple[float, float]]


def experiment(trials: Mapping[str, Results], metric: str = "accuracy") -> Experiment:
    """An experiment that stores these trials, which have no predictions. Their ids end with the seed."""
    tags = {Tag.METRIC: metric, Tag.TASK: "digits", Tag.EVALUATED: "test"}
    records = {
        f"{name} {seed}": Record(
            f"run {name} {seed}",
            f"{name} {seed}",
            Status.FINISHED,
            0,
            tags,
            {Measure.SCORE: score, Measure.SCORE_LOSS: loss},
        )
        for name, results in trials.items()
        for seed, (score, loss) in enumerate(results)
    }
    source = SimpleNamespace(read=lambda record, name: None)
    return Experiment(source, "toy", "", "", (), {}, records, 0)  # type: ignore[arg-type]


def tried(name: str, seeds: int, ranks: tuple[int, ...]) -> dict[str, object]:
    return dict(Tried(ranks=ranks, parameters=10, trials={seed: f"{name} {seed}" for seed in range(seeds)}))


def swept(points: Mapping[str, Results], final: Mapping[str, Results] = {}) -> AllocationResult:
    """An allocation whose first point is the choice, with the heuristic's ranks as the last one."""
    entries = [
        tried(name, len(results), (number, 1)) for number, (name, results) in enumerate(points.items(), 1)
    ]
    finals = [
        Finalist(label=name, **tried(name, len(results), (number, 2)))
        for number, (name, results) in enumerate(final.items(), 1)
    ]
    return AllocationResult(
        name="sweep",
        method="att",
        task="digits",
        backbone="tiny-random-vit",
        budget="isorank 2",
        asked=10,
        by="loss",
        modes=("input", "output"),
        importance=IMPORTANCE,
        points=[AllocationPoint(mode="input", rank=n, **entry) for n, entry in enumerate(entries, 1)],
        path=(),
        heuristic=entries[-1],
        best=entries[0],
        final=finals,
    )


def read(
    points: Mapping[str, Results], final: Mapping[str, Results]
) -> tuple[AllocationResult, StoredAblation]:
    result = swept(points, final)
    return result, of_result(experiment({**points, **final}), "run", result)


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
#: The runs of the first ranks are better than those of the second ones with each seed.
BETTER: dict[str, Results] = {
    "best allocation": [(0.80, 0), (0.81, 0), (0.83, 0)],
    "heuristic": [(0.70, 0), (0.72, 0), (0.72, 0)],
}


def test_all_points_tie_if_their_scores_are_equal_whatever_their_losses() -> None:
    tied = ties(experiment(EQUAL), swept(EQUAL))
    assert (tied.points, tied.others, tied.every) == (3, 2, True)


@pytest.mark.parametrize("seeds", [2, 3])
def test_points_tie_if_their_noise_over_seeds_explains_their_difference(seeds: int) -> None:
    points = {name: results[:seeds] for name, results in NOISY.items()}
    tied = ties(experiment(points), swept(points))
    assert (tied.points, tied.others, tied.every) == (3, 1, False)


def test_points_with_one_seed_tie_if_their_results_are_equal() -> None:
    points: dict[str, Results] = {"a": [(0.7, 0.5)], "b": [(0.8, 0.5)], "c": [(0.6, 0.50001)]}
    assert ties(experiment(points), swept(points)).others == 1


def test_an_incomplete_point_neither_ties_nor_counts() -> None:
    stored = experiment({**NOISY, "b": NOISY["b"][:2]})
    tied = ties(stored, swept(NOISY))
    assert (tied.points, tied.others) == (2, 0)


def test_points_of_a_search_whose_trials_are_not_stored_tie_by_their_stored_means() -> None:
    points = [
        SearchPoint(
            number=number,
            state=PointState.COMPLETE,
            ranks=(number,),
            parameters=10,
            value=value,
            loss=loss,
            trial_id="gone",
        )
        for number, (value, loss) in enumerate([(0.5, 0.4), (0.6, 0.4), (0.7, 0.9)])
    ]
    result = search_found(trials=tuple(points), best=points[0], by="loss")
    assert ties(experiment({}), result).others == 1
    two = result.model_copy(update={"objectives": ("metric", "parameters")})
    assert ties(experiment({}), two).others == 0


def test_among_ties_no_importance_is_shown_and_the_choice_is_not_called_the_best() -> None:
    result, stored = read(EQUAL, BETTER)
    assert stored.importance == {}
    assert stored.final[0].label == "chosen among ties"
    shown = io.StringIO()
    print_allocation(Console(file=shown, width=200), result, stored)
    assert "A choice among ties: all 3 points tie on validation." in shown.getvalue()
    assert "fanova" not in shown.getvalue()
    assert "best" not in shown.getvalue().lower()
    (drawn,) = figures.ablation(0, stored)
    assert drawn.alternative == "Chosen among ties: input 1, output 1."


def test_importance_is_shown_where_points_differ() -> None:
    result, stored = read(NOISY, BETTER)
    assert stored.importance == IMPORTANCE
    shown = io.StringIO()
    print_allocation(Console(file=shown, width=200), result, stored)
    assert "0.64" in shown.getvalue()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("metric", ["accuracy", "rmse"])
def test_the_choice_differs_from_the_heuristic_by_an_interval(metric: str, turned: bool) -> None:
    (_, first), (_, second) = BETTER.items()
    final = dict(zip(BETTER, (second, first) if turned else (first, second), strict=True))
    said = choice(experiment({**NOISY, **final}, metric), swept(NOISY, final))
    assert said is not None
    assert said.difference is not None
    assert said.interval is not None
    better = turned == (metric == "rmse")
    assert said.verdict == ("better" if better else "worse")
    assert abs(said.difference) == pytest.approx(0.1)
    # Student's interval of .1, .09 and .11.
    assert said.interval[1] - said.interval[0] == pytest.approx(2 * 4.30265 * 0.01 / 3**0.5, rel=1e-4)
    sign = "+" if better else "−"
    size = "10.00 points" if metric == "accuracy" else "0.1 units of the targets"
    assert (
        f"significantly {said.verdict} than the heuristic's ranks: {sign}{size} (95% interval" in said.answer
    )


@pytest.mark.parametrize(
    ("final", "words"),
    [
        ({"best": [(0.8, 0), (0.7, 0), (0.6, 0)], "heuristic": [(0.7, 0)] * 3}, "interval −24.84 to +24.84"),
        ({"best": [(0.8, 0), (0.7, 0)], "heuristic": [(0.7, 0)] * 2}, "+5.00 points (no interval: 2 seeds)"),
        ({"best": [(0.7, 0)] * 3, "heuristic": [(0.7, 0)] * 3}, "0.00 points (no interval: no spread)"),
    ],
    ids=["contains zero", "two seeds", "no spread"],
)
def test_a_choice_without_a_difference_is_undecided(final: dict[str, Results], words: str) -> None:
    said = choice(experiment({**NOISY, **final}), swept(NOISY, final))
    assert said is not None
    assert said.verdict == "undecided"
    assert said.answer.startswith("Undecided between input 1, output 2 and the heuristic's ranks: ")
    assert words in said.answer


def test_without_a_seed_of_both_nothing_is_compared() -> None:
    said = choice(experiment(NOISY), swept(NOISY, BETTER))
    assert said is not None
    assert (said.verdict, said.difference, said.interval) == ("undecided", None, None)
    assert "no seed finished with both" in said.answer


def test_the_heuristics_own_ranks_are_not_compared_with_themselves() -> None:
    final = tuple(Finalist(label=label, **tried("a", 3, (2, 2))) for label in ("best", "heuristic"))
    said = choice(experiment(NOISY), swept(NOISY).model_copy(update={"final": final}))
    assert said is not None
    assert (said.verdict, said.difference) == ("same", None)
    assert said.answer.startswith("The heuristic's own ranks are the choice: input 2, output 2.")
