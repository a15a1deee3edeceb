"""Tests the guards of studies: nothing trained, a failed reference, and rates at the edge of a window."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.analysis import analyse
from tensorbench.reports.answers import answer, in_words, window_advice
from tensorbench.reports.blocks import Block, Ends, Outer
from tensorbench.reports.comparisons import comparison, in_family, with_window
from tensorbench.reports.drawing import Looks
from tensorbench.reports.figures.compared import differences
from tensorbench.reports.guards import edges_of
from tensorbench.reports.inference.crossed import of_seeds
from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.reading import read, tabulate
from tensorbench.reports.report import write_report
from tensorbench.reports.units import PERCENT

from ..stored import Result
from .made_up import Analysed, Stored, answered, printed, summary_of
from .made_up_studies import NAME, ONE_TASK, plan_of

QKV = "TensLoRA qkv_depth"
METHODS: list[Any] = ["converged_head", "lora", {"method": "tenslora", "variant": "qkv_depth"}]
#: A method's quality at its best rate, and the place of that rate in widths of the window from its centre.
Quality = Callable[[Row, Trial], tuple[float, float]]


def made_up(quality: Quality, examples: int = 1000) -> Callable[[Trial, Row], Result]:
    """Made-up results: a parabola over rates with noise, by the quality of each trial's method."""

    def result(trial: Trial, row: Row) -> Result:
        best, optimum = quality(row, trial)
        place = row.studies.trials[trial.seed].offset / row.studies.decades if row.studies else optimum
        own = random.Random(trial.id)
        score = best - 0.3 * (place - optimum) ** 2 + own.gauss(0, 0.004)
        right = max(0, min(examples, round(examples * score)))
        loss = {Measure.SELECTED_LOSS: 2 - score, Measure.GUESSING_LOSS: 1.49}
        return answered(right, examples, measures=loss)

    return result


def block_of(uri: str) -> Block:
    (block,) = analyse(read(uri, [NAME])).blocks
    return block


def terminal(uri: str) -> str:
    """What the terminal shows at the end of a run."""
    return printed(*summary_of(uri, NAME).tables("toy"))


def verdict_on(block: Block, method: str = QKV) -> tuple[Word, str, str]:
    (entrant,) = (entrant for entrant in block.entrants if entrant.method == method)
    verdict = entrant.differences[block.k].verdict
    return verdict.word, verdict.side, verdict.reason


# --- nothing trained ---


@pytest.fixture(scope="module")
def unlearnable(tmp_path_factory: pytest.TempPathFactory, stored: Stored) -> str:
    """Two CSV files of 96 texts whose labels nothing can learn. By luck LoRA scores twelve points more."""
    folder = tmp_path_factory.mktemp("unlearnable")
    tasks = []
    for name in ("reviews", "letters"):
        lines = (f"{name} number {number} of many,{number * 7 % 5 % 2}" for number in range(96))
        (folder / f"{name}.csv").write_text("body,stars\n" + "\n".join(lines) + "\n")
        tasks.append({"name": name, "csv": str(folder / f"{name}.csv"), "text": "body", "label": "stars"})
    plan = plan_of(
        tasks=tasks,
        backbones=["tiny-random-bert"],
        methods=METHODS[1:],
        floor="auto",
        training={"batch_size": 16},
    )
    assert {row.family for row in plan.rows} == {"lora", "tenslora", "converged_head"}
    means = {"LoRA": 0.58, QKV: 0.46, "converged head": 0.5}
    return stored(made_up(lambda row, trial: (means[row.title], 0.0), examples=50), plan)


def test_page_and_terminal_open_with_nothing_trained_and_give_no_verdict(
    unlearnable: str, tmp_path: Path
) -> None:
    block = block_of(unlearnable)
    (entrant,) = block.compared
    difference = entrant.differences[block.k]
    # Without the guard, the interval would give a verdict.
    assert difference.interval is not None
    assert difference.interval[1] < -block.threshold
    assert verdict_on(block) == (Word.NONE, "", "nothing trained on reviews, letters")
    assert {each.verdict.reason for each in difference.on.values()} == {"nothing trained"}
    said = answer(block)
    assert said.startswith("Nothing trained on reviews, letters: ")
    assert said.endswith(f"no verdict is given on {QKV}.")
    assert said.count("trials of tuning") == 1
    shown = terminal(unlearnable)
    assert shown.startswith("Nothing trained")
    assert summary_of(unlearnable, NAME).overview(NAME).notes[0].startswith("Nothing trained")
    write_report(NAME, out=tmp_path / "out", store=unlearnable, formats=["html", "md", "latex"], log=False)
    page = (tmp_path / "out" / "index.html").read_text()
    said_first = page.split('class="answered"><b>')[1].split("</b>")[0]
    assert said_first.startswith("Nothing trained")
    assert "no verdict: nothing trained" in page
    for text in (shown, said_first, (tmp_path / "out" / "tables" / "tables.md").read_text()):
        for word in ("significantly", "better", "worse", "equivalent (within"):
            assert word not in text


def test_one_task_that_nothing_learnt_withholds_the_mean_and_leaves_the_others(stored: Stored) -> None:
    def quality(row: Row, trial: Trial) -> tuple[float, float]:
        edge = {"LoRA": 0.0, QKV: 0.06, "converged head": -0.03}[row.title]
        return (0.5 + edge / 6 if row.task == "digits" else 0.8 + edge), 0.0

    block = block_of(stored(made_up(quality), plan_of(methods=METHODS)))
    assert verdict_on(block) == (Word.NONE, "", "nothing trained on digits")
    (entrant,) = block.compared
    on = {setting.task: each.verdict for setting, each in entrant.differences[block.k].on.items()}
    assert (on["digits"].word, on["movie-sentiment"].side) == (Word.NONE, "better")


# --- the reference and the head ---


@pytest.mark.parametrize(
    ("edges", "sentence"),
    [
        ({"LoRA": -0.02, QKV: 0.05}, "LoRA (isoparameters 2) scored no better than a head on digits"),
        ({"LoRA": -0.02, QKV: -0.05}, "No adapter has a better mean than the converged head on digits"),
    ],
)
def test_a_reference_no_better_than_a_head_gives_no_verdict(
    stored: Stored, edges: dict[str, float], sentence: str
) -> None:
    quality = made_up(lambda row, trial: (0.8 + edges.get(row.title, 0.0), 0.0))
    uri = stored(quality, plan_of(**ONE_TASK, methods=METHODS))
    block = block_of(uri)
    assert verdict_on(block) == (Word.NONE, "", "LoRA is no better than a head")
    assert answer(block).startswith(sentence)
    assert terminal(uri).startswith(sentence)


# --- collapsed studies ---


def test_studies_whose_kept_trials_collapsed_come_first_and_are_never_equivalent(stored: Stored) -> None:
    changes = {"methods": ["head_only", *METHODS[1:]], "tuning": {"studies": 5, "points": 4}}
    collapsing = {14_000, 14_001, 14_002, 14_003}

    def quality(row: Row, trial: Trial) -> tuple[float, float]:
        if row.title == QKV and trial.seed in collapsing:
            return 0.51, 0.0
        return {"head only": 0.75}.get(row.title, 0.8), 0.0

    block = block_of(stored(made_up(quality), plan_of(**ONE_TASK | changes)))
    assert block.guards[0].startswith(f"{QKV} on digits: 1 of 5 kept trials collapsed (95% interval")
    assert verdict_on(block)[0] is not Word.EQUIVALENT
    # The score after k trials is a mean over all trials, with failed ones, so it holds without a condition.
    (entrant,) = (each for each in block.compared if each.method == QKV)
    verdict = entrant.differences[block.k].verdict
    assert (verdict.condition, verdict.collapses) == (
        "",
        "its kept trials collapse in 1 of 5 against 0 of 5",
    )


# --- noise ---


@pytest.mark.parametrize(("others", "notes"), [((), 0), (("lotr",), 2), (("lotr", "fact_tt", "lora_xs"), 1)])
def test_notes_say_where_a_method_varies_much_more_than_the_others(
    stored: Stored, others: tuple[str, ...], notes: int
) -> None:
    def quality(row: Row, trial: Trial) -> tuple[float, float]:
        spread = 0.15 if row.title == QKV else 0.005
        return 0.8 + spread * random.Random(f"{row.title} {trial.seed // 1000}").random(), 0.0

    methods = {"methods": [*METHODS, *others], "tuning": {"studies": 5, "points": 4}}
    block = block_of(stored(made_up(quality), plan_of(**ONE_TASK | methods)))
    found = [note for note in block.notes if "much more" in note or f"Differences of {QKV} vary" in note]
    assert len(found) == notes


# --- the edge of a window ---


def at(optima: dict[str, float], edges: dict[str, float]) -> Callable[[Trial, Row], Result]:
    return made_up(lambda row, trial: (0.8 + edges.get(row.title, -0.1), optima.get(row.title, 0.0)))


LOWER, UPPER = (f"kept trials at the {end} end of its window" for end in ("lower", "upper"))
EIGHT_RATES: dict[str, Any] = ONE_TASK | {"methods": METHODS, "tuning": {"studies": 5, "points": 8}}


@pytest.mark.parametrize(
    ("optima", "edges", "judged", "method"),
    [
        ({}, {QKV: -0.05}, "worse", None),
        ({QKV: 0.6}, {QKV: -0.05}, "", QKV),
        ({QKV: -0.6}, {QKV: -0.05}, "", QKV),
        # Beyond its window it could only be better still.
        ({QKV: 0.6}, {QKV: 0.1}, "better", QKV),
        ({"LoRA": 0.6}, {QKV: 0.05}, "", "LoRA"),
        ({"LoRA": 0.6}, {QKV: -0.15}, "worse", "LoRA"),
    ],
)
def test_best_rates_at_an_edge_make_a_score_a_lower_bound(
    stored: Stored, optima: dict[str, float], edges: dict[str, float], judged: str, method: str | None
) -> None:
    uri = stored(at(optima, {"LoRA": 0.0} | edges), plan_of(**EIGHT_RATES))
    block = block_of(uri)
    said, side, reason = verdict_on(block)
    assert side == judged
    assert [edge.method for edge in block.edges] == ([method] if method else [])
    (compared,) = block.compared
    difference = compared.differences[block.k]
    bound = {None: "", QKV: "≥", "LoRA": "≤"}[method]
    assert {difference.bound, *(each.bound for each in difference.on.values())} == {bound}
    figure = differences(block, "figure", "title", Looks([compared.family]))
    (label,) = figure.figure.axes[0].get_yticklabels()
    assert label.get_text() == f"{QKV} ({bound})" if bound else QKV
    assert (f"({bound}) marks" in figure.caption) == bool(bound)
    shown = terminal(uri)
    if method:
        end = "upper" if optima[method] > 0 else "lower"
        sentence = (
            f"The best rates of {method} lie at the {end} edge of its window: its score is a lower bound."
        )
        assert answer(block).endswith(sentence)
        assert sentence in shown
    verdict = difference.verdict
    assert bool(verdict.window) == (judged == "worse")
    assert verdict.window in shown
    if not judged:
        assert (said, reason) == (Word.INCONCLUSIVE, f"the best rates of {method} lie at an edge")
        assert f"inconclusive: the best rates of {method} lie at an edge" in shown


@pytest.mark.parametrize(
    ("word", "interval", "own", "reference", "window"),
    [
        (Word.WORSE, (-0.02, -0.005), (9, 0), (0, 9), f"9 of 20 {LOWER}, +0.50"),
        (Word.WORSE, (-0.02, -0.005), (0, 6), (0, 9), f"6 of 20 {UPPER}"),
        (Word.WORSE, (-0.02, -0.005), (0, 0), (0, 9), f"0 of 20 {UPPER}"),
        (Word.BETTER, (0.003, 0.01), (0, 9), (1, 7), f"LoRA has 7 of 20 {UPPER}, +0.30"),
        (Word.EQUIVALENT, (-0.004, 0.006), (0, 9), (7, 0), f"LoRA has 7 of 20 {LOWER}, +0.60"),
        (Word.BETTER, (0.003, 0.01), (0, 9), (0, 6), ""),
        (Word.INCONCLUSIVE, (-0.03, 0.01), (0, 9), (0, 9), ""),
    ],
)
def test_a_verdict_says_what_a_wider_window_would_have_to_gain(
    word: Word, interval: Bounds, own: tuple[int, int], reference: tuple[int, int], window: str
) -> None:
    ends = Ends(Outer(QKV, *own, 20), Outer("LoRA", *reference, 20), PERCENT)
    given = with_window(Verdict(word), interval, 0.01, ends)
    change = " there would change it" if "+" in window else ""
    assert given == Verdict(word, window=f"{window}{change}")
    assert in_words(given, "1 point").endswith(given.window)
    assert with_window(Verdict(word), interval, 0.01, None) == Verdict(word)


@pytest.mark.parametrize(
    ("centre", "decades", "wider", "moved"),
    [(0.02, 2.0, (0.002, 0.5), 0.05), (0.3, 0.5, (0.1687, 0.5335), 0.3)],
)
def test_no_window_is_proposed_beyond_what_windows_may_hold(
    stored: Stored, centre: float, decades: float, wider: Bounds, moved: float
) -> None:
    tuning = {"studies": 3, "points": 8, "lr": {"around": centre, "decades": decades}}
    block = block_of(stored(at({QKV: 0.6}, {"LoRA": 0.0}), plan_of(**EIGHT_RATES | {"tuning": tuning})))
    (edge,) = block.edges
    assert edge.wider == pytest.approx(wider, rel=1e-3)
    assert edge.centre == pytest.approx(moved, rel=1e-3)


@pytest.mark.parametrize(("places", "end"), [((0.4, 0.4, 0, 0), "upper"), ((0.4, 0, 0, 0), None)])
def test_half_of_the_kept_trials_make_an_edge(
    stored: Stored, places: tuple[float, ...], end: str | None
) -> None:
    def quality(row: Row, trial: Trial) -> tuple[float, float]:
        return 0.8, 1.3 * places[(row.studies.trials[trial.seed].study if row.studies else 0)]

    changes = {"methods": METHODS, "tuning": {"studies": 4, "points": 8}}
    block = block_of(stored(made_up(quality), plan_of(**ONE_TASK | changes)))
    (entrant,) = block.compared
    (edge, *_) = [*edges_of(entrant).values()] or [None]
    assert (edge and edge.end) == end


def test_in_a_larger_family_a_withheld_side_is_shown_only_if_the_wider_interval_has_it() -> None:
    parts = [of_seeds(np.array([0.01, 0.02, 0.03, 0.025, 0.015]))]
    withheld = Verdict(Word.INCONCLUSIVE, "the best rates lie at an edge")
    alone = replace(comparison(parts, 1, 0.01), verdict=withheld)
    assert alone.interval is not None
    assert alone.interval[0] > 0
    assert in_family(alone, 2, 0.01).verdict == withheld
    wide = in_family(alone, 10_000, 0.01)
    assert wide.interval is not None
    assert wide.interval[0] < 0
    assert wide.verdict == Verdict(Word.INCONCLUSIVE)
    # A side that the guard did not withhold is given by the wider interval, too.
    assert in_family(comparison(parts, 1, 0.01), 2, 0.01).verdict == Verdict(Word.BETTER)
    assert in_family(comparison(parts, 1, 0.01), 10_000, 0.01).verdict == Verdict(Word.INCONCLUSIVE)


def test_equal_methods_are_not_called_equivalent_where_one_is_a_lower_bound(stored: Stored) -> None:
    block = block_of(stored(at({QKV: 0.6}, {"LoRA": 0.0, QKV: 0.01}), plan_of(**EIGHT_RATES)))
    assert verdict_on(block)[0] is Word.INCONCLUSIVE


def test_a_reference_of_another_budget_may_be_a_lower_bound_too(stored: Stored) -> None:
    budgets = [{"isorank": 2}, {"isorank": 4}]
    uri = stored(at({"LoRA": 0.6}, {"LoRA": 0.0, QKV: 0.05}), plan_of(**EIGHT_RATES | {"budgets": budgets}))
    results = read(uri, [NAME])
    (experiment,) = results.experiments
    # LoRA ran under the larger budget alone.
    rows = tuple(row for row in experiment.rows if (row.title, row.budget) != ("LoRA", "isorank 2"))
    kept = replace(experiment, rows=rows)
    analysis = analyse(replace(results, experiments=(kept,), all_cells=tabulate([kept])))
    smaller, larger = analysis.blocks
    assert smaller.reference is not None
    assert larger.reference is not None
    assert smaller.reference.cells == larger.reference.cells
    for block in (smaller, larger):
        assert verdict_on(block) == (Word.INCONCLUSIVE, "", "the best rates of LoRA lie at an edge")
        assert [edge.method for edge in block.edges] == ["LoRA"]
    assert len(window_advice(analysis)) == 1


def test_run_proposes_a_window_that_holds_the_best_rates(stored: Stored, analysed: Analysed) -> None:
    quality = at({QKV: 0.6}, {"LoRA": 0.0, QKV: 0.05})
    tuning = {"studies": 3, "points": 8, "lr": {"around": 1e-3, "decades": 2}}
    one = stored(quality, plan_of(**EIGHT_RATES | {"tuning": tuning}))
    (advice,) = window_advice(analyse(read(one, [NAME])))
    assert advice.endswith("lr: {around: 3.16e-3, decades: 3}")
    assert advice in terminal(one)
    assert advice in summary_of(one, NAME).overview(NAME).notes
    # With a centre of its own, its row gets another.
    own = {"tuning": tuning, "methods": [*METHODS[:2], METHODS[2] | {"centre": 5e-4}]}
    (advice,) = window_advice(analysed(quality, plan_of(**EIGHT_RATES | own)))
    assert QKV in advice
    assert advice.endswith("centre: 5e-3")
    # No single rate would move windows that differ between tasks.
    own["methods"][2] = METHODS[2] | {"centre": {"digits": 5e-4}}
    analysis = analysed(quality, plan_of(**EIGHT_RATES | own | {"tasks": ["digits", "textile"]}))
    assert [edge.method for edge in analysis.blocks[0].edges] == [QKV]
    assert window_advice(analysis) == []
