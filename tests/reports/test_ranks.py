"""Tests what reports say of ranks: allocations beside the heuristic, and trends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorbench
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import Tag
from tensorbench.reports.advice import rate_advice
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.answers import answers as sentences
from tensorbench.reports.answers import of_allocations, trend_note
from tensorbench.reports.blocks import Block
from tensorbench.reports.inference.effects import Verdict, Word
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.inference.studies import score_after, share_failed
from tensorbench.reports.overview import overview
from tensorbench.reports.ranks import (
    HEURISTIC,
    Allocations,
    find_allocations,
    short_name,
)
from tensorbench.reports.reading import read
from tensorbench.reports.report import compose
from tensorbench.reports.results import Results
from tensorbench.reports.selection import Selection
from tensorbench.reports.tables import allocations_table, markdown
from tensorbench.reports.tidy import tidy_tables

from ..packs import changed, edit_json, edit_runs
from ..stored import Result
from .made_up import Analysed, Composes, Stored
from .made_up_ranks import EDGE, METHOD, ROWS, SLOPE, SUITE, made_up, of_row
from .made_up_studies import NAME, STUDIED, plan_of, ran_again, seeds_of


def but_the_last_study(trial: Trial, row: Row) -> Result | None:
    return None if row.studies and row.studies.trials[trial.seed].study == 3 else made_up(trial, row)


def on_one_task_again(trial: Trial, row: Row) -> Result:
    return (ran_again(made_up) if row.task == "digits" else made_up)(trial, row)


def diverged_but_finishes_now(trial: Trial, row: Row) -> Result | None:
    """The same results, but one trial of LoRA diverged and finished when it ran again."""
    if row.title == "LoRA" and row.studies and trial.seed == min(row.studies.trials):
        faults = ("failure: stored diverged, now none",)
        again = ran_again(made_up, faults=faults)(trial, row)
        return again and replace(again, failure="diverged")
    return ran_again(made_up)(trial, row)


def age(plan: dict[str, Any]) -> None:
    """Makes a plan that of a version which did not store which ranks a suite gives."""
    for row in plan["rows"]:
        del row["rank_names"], row["allocation"]


@pytest.fixture(scope="module")
def uri(stored: Stored) -> str:
    return stored(made_up, plan_of(**SUITE))


@pytest.fixture(scope="module")
def results(uri: str) -> Results:
    return read(uri, [NAME])


@pytest.fixture(scope="module")
def analysis(results: Results) -> Analysis:
    return analyse(results)


@pytest.fixture(scope="module")
def section(analysis: Analysis) -> Allocations:
    (section,) = analysis.allocations
    return section


def test_allocations_are_compared_with_the_heuristic_as_a_family(uri: str, section: Allocations) -> None:
    names = [f"{METHOD} [{ranks}]" for ranks in EDGE if ranks]
    (block,) = analyse(read(uri, [NAME], Selection(methods=names, reference=METHOD))).blocks
    assert section.method == METHOD
    assert [each.method for each in section.block.compared] == [short_name(e.method) for e in block.compared]
    for own, entrant in zip(section.block.compared, block.compared, strict=True):
        difference = own.differences[5]
        assert difference.interval == pytest.approx(entrant.differences[5].interval)
        assert difference.verdict == entrant.differences[5].verdict
        pairs = zip(own.studies, section.block.entrants[0].studies, strict=True)
        direct = np.mean([score_after(method, 5) - score_after(reference, 5) for method, reference in pairs])
        assert difference.effect.difference == pytest.approx(direct)
    assert of_row(section.block, "projection=1").differences[5].verdict.side == "worse"
    assert of_row(section.block, "projection=1+layer=1").differences[5].verdict.side == "better"


def test_the_report_s_own_family_is_with_lora(analysis: Analysis, section: Allocations) -> None:
    (block,) = analysis.blocks
    assert block.against == "LoRA"
    assert len(block.claims) == len(section.block.claims) + 1
    first, second = sentences(analysis)
    assert second.startswith(f"{METHOD} at 768 parameters: ")
    assert METHOD not in second.partition(": ")[2]
    assert HEURISTIC not in first


def test_a_trend_is_the_slope_over_log_ranks(section: Allocations) -> None:
    (trend,) = section.trends
    assert trend.mode == "projection"
    assert trend.allocations == ("projection=1", "projection=2", HEURISTIC)
    rows = [of_row(section.block, name) for name in trend.allocations]
    slopes = [
        np.polyfit(np.log2([1, 2, 3]), [score_after(row.studies[place], 5) for row in rows], 1)[0]
        for place in range(2)
    ]
    assert [part.difference for part in trend.slope.effect.parts] == pytest.approx(slopes)
    assert trend.slope.interval is not None
    low, high = trend.slope.interval
    assert low < SLOPE / 100 < high
    assert "improves with the rank" in trend_note(section, trend)


def test_a_trend_has_no_verdict_where_one_of_its_rows_has_none(
    analysis: Analysis, section: Allocations, script: Callable[[str], ModuleType]
) -> None:
    lost = Verdict(Word.NONE, reason="nothing trained")

    def judged(_: Block) -> Block:
        entrants = (
            replace(e, differences={k: replace(d, verdict=lost) for k, d in e.differences.items()})
            for e in section.block.entrants
        )
        return replace(section.block, entrants=tuple(entrants))

    (section,) = find_allocations(analysis.results, analysis.blocks, judged)
    (trend,) = section.trends
    assert (trend.slope.verdict.side, trend.slope.verdict.reason) == ("", "nothing trained")
    withheld = replace(analysis, allocations=(section,))
    ruling = script("answers.ranks").slope(withheld, "projection", section.block)
    assert ruling.short.startswith("slope **inconclusive: nothing trained**, +")


def test_the_largest_difference_is_said_where_none_is_significant(section: Allocations) -> None:
    block = section.block
    alike = of_row(block, "layer=1")
    few = replace(section, block=replace(block, entrants=(block.entrants[0], alike)))
    sentence = of_allocations(few).rpartition(" No allocation differs from the heuristic by more than ")[2]
    largest = max(abs(bound) for bound in alike.differences[5].interval or ())
    # Rounded up.
    assert 0 <= float(sentence.split()[0]) - 100 * largest < 0.01
    assert "No allocation differs" not in of_allocations(section)


def test_rows_that_miss_their_budget_are_marked(results: Results, section: Allocations) -> None:
    missed = {short_name(cell.method) for cell in results.all_cells if cell.within is False}
    table = allocations_table(section)
    assert missed
    assert {line["allocation"] for line in table.lines if "!" in line["parameters"]} == missed
    assert any(note.startswith("! misses") for note in table.notes)
    # Nor does a narrow terminal leave out the column with the marks.
    assert "of budget" not in overview(NAME, results, []).spare


def test_the_best_rate_is_that_of_all_tasks(analysis: Analysis, section: Allocations) -> None:
    advice = {each.cell.number: each for each in rate_advice(analysis)}
    (line, *_) = allocations_table(section).lines
    own = [advice[cell.number] for cell in section.block.entrants[0].cells]
    starts = [float(start) for start in line["best rate"].shown.split(" to ")]
    assert starts == pytest.approx(sorted({each.start for each in own}), rel=0.05)
    ends = [float(end.strip("≤≥ ")) for end in line["best rate"].beneath.split(" to ")]
    expected = max(each.low for each in own), min(each.high for each in own)
    assert ends == pytest.approx(expected, rel=0.05)


def test_without_lora_the_heuristic_is_the_reference(composed: Composes) -> None:
    done = composed(made_up, plan_of(**SUITE | {"methods": ROWS}), formats=["svg"])
    (block,) = done.analysis.blocks
    assert block.against == METHOD
    assert len(block.compared) == len(ROWS) - 1
    first, trend = sentences(done.analysis)
    assert f"better than {METHOD}" in first
    assert trend.startswith("The rank of projection")
    # The figure of the block is that of the allocations.
    assert not [name for name in done.files if "figures/ranks" in name]


def test_other_methods_have_no_reference_without_lora(analysed: Analysed) -> None:
    analysis = analysed(made_up, plan_of(**SUITE | {"methods": ["lotr", *ROWS]}))
    (block,) = analysis.blocks
    assert not block.compared
    (section,) = analysis.allocations
    assert len(section.block.compared) == len(ROWS) - 1


def test_allocations_without_the_heuristic_are_shown_without_a_verdict(analysed: Analysed) -> None:
    analysis = analysed(made_up, plan_of(**SUITE | {"methods": ["lora", *ROWS[1:]]}))
    (section,) = analysis.allocations
    assert not section.block.compared
    assert not section.trends
    assert "nothing is compared" in of_allocations(section)
    assert allocations_table(section).lines


@pytest.mark.parametrize("rows", [ROWS, ROWS[1:]])
def test_allocations_that_lack_a_task_are_compared_on_the_others(
    rows: list[dict[str, Any]], composed: Composes
) -> None:
    def begun(trial: Trial, row: Row) -> Result | None:
        return None if row.allocation and row.task == "digits" else made_up(trial, row)

    done = composed(begun, plan_of(**SUITE | {"methods": ["lora", "lotr", *rows]}))
    assert len(done.analysis.allocations) == (rows is ROWS)
    for section in done.analysis.allocations:
        assert "no allocation has enough complete studies on all tasks" in of_allocations(section)
        assert all(entrant.differences[5].interval for entrant in section.block.part)
        assert not section.trends


def test_seeds_have_the_section_too(analysed: Analysed) -> None:
    suite = {name: value for name, value in (STUDIED | SUITE).items() if name != "tuning"}
    (section,) = analysed(made_up, seeds_of(**suite, seeds=[0, 1, 2, 3])).allocations
    assert section.trends[0].slope.interval is not None
    assert of_row(section.block, "projection=1").differences[1].verdict.side == "worse"


@pytest.mark.parametrize("diverges", ["projection=1", "layer=1"])
def test_diverged_seeds_of_an_allocation_withhold_what_its_other_seeds_suggest(
    diverges: str, analysed: Analysed
) -> None:
    def made(trial: Trial, row: Row) -> Result:
        made = made_up(trial, row)
        return replace(made, failure="diverged") if diverges in row.method and trial.seed > 2 else made

    suite = {name: value for name, value in (STUDIED | SUITE).items() if name != "tuning"}
    (section,) = analysed(made, seeds_of(**suite, seeds=[0, 1, 2, 3, 4, 5])).allocations
    assert "differs from" not in of_allocations(section)
    reasons = {trend.mode: trend.slope.verdict.reason for trend in section.trends}
    for trend in section.trends:
        expected = f"runs of {diverges} collapsed" if diverges in trend.allocations else ""
        assert reasons[trend.mode] == expected


def test_the_page_and_the_tables_have_the_section(results: Results, section: Allocations) -> None:
    files = compose(results, ["html", "md", "csv"]).files
    assert of_allocations(section) in files["index.html"]
    assert 'id="figure-ranks-0"' in files["index.html"]
    assert f"## Ranks of {METHOD}".replace("_", "\\_") in files["tables/tables.md"]
    assert {"tables/allocations.csv", "tables/trends.csv"} <= files.keys()


def test_methods_without_allocations_have_no_section(composed: Composes) -> None:
    done = composed(made_up, plan_of(**SUITE | {"methods": ["lora", "lotr", ROWS[0]]}))
    assert 'id="ranks"' not in done.files["index.html"]
    assert not done.analysis.allocations
    assert {"allocations", "trends"}.isdisjoint(tidy_tables(done.analysis))
    assert "Ranks of" not in markdown(done.analysis)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (f"{METHOD} [projection=1, layer=0.5]", "projection=1+layer=0.5"),
        (f"{METHOD} (factorization=tt) r=3,4,5", "r=3,4,5"),
        ("one matrix", "one matrix"),
    ],
)
def test_an_allocation_is_named_by_its_ranks(method: str, name: str) -> None:
    assert short_name(method) == name


# --- the answers of the study of ranks ---


@pytest.fixture(scope="module")
def packs(stored: Stored, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pack of the allocations and their references, and a pack of these alone, which has an older plan."""
    folder = tmp_path_factory.mktemp("packs")
    paths = [folder / f"{name}.tensorbench.zip" for name in ("study_ranks", "study", "older", "untagged")]
    tensorbench.pack(NAME, out=str(paths[3]), store=stored(ran_again(made_up), plan_of(**SUITE)))
    changed(paths[3], paths[0], edit_runs(lambda lines: lines[0]["tags"].update({Tag.REFERENCES: "60"})))
    references = stored(made_up, plan_of(**SUITE | {"name": "study", "methods": ["lora", ROWS[0]]}))
    tensorbench.pack("study", out=str(paths[1]), store=references)
    return paths[0], changed(paths[1], paths[2], edit_json("plan.json", age))


def test_rows_of_an_older_plan_take_the_names_of_their_ranks_from_a_newer_one(
    packs: tuple[Path, Path],
) -> None:
    for order in (packs, packs[::-1]):
        (section,) = analyse(read("", list(map(str, order)))).allocations
        assert len(section.block.compared) == len(ROWS) - 1


def test_the_registered_questions_are_answered(
    packs: tuple[Path, Path], section: Allocations, script: Callable[[str], ModuleType]
) -> None:
    questions, shown = script("answers.ranks"), script("answers.answer")
    study = questions.StudyOfRanks(*packs, mode="projection")
    answers = study.answers()
    assert list(answers) == [f"Question {number}" for number in range(1, 5)]
    assert all(each.text.startswith("On 3 of 3 studies.") for each in answers.values())
    worse = of_row(section.block, "projection=1").differences
    assert f"| {shown.bounds(worse[5].interval)} |" in answers["Question 1"].text
    assert "from LoRA" in answers["Question 2"].text
    (trend,) = section.trends
    with_interval = shown.with_interval(trend.slope.effect.difference, trend.slope.interval)
    assert answers["Question 3"].short.startswith(f"slope **above zero**, {with_interval} points a doubling")
    assert f"| {shown.bounds(worse[1].interval)} |" in answers["Question 4"].text
    # The page begins with all of them, and says what rule 2 demands.
    first = study.first(answers)
    assert all(answer.short in first for title, answer in answers.items() if title != "Question 1")
    assert "60 of them ran again on a processor, with scores that differ by 0.001 at most." in first
    assert f"| projection=1 | {shown.with_interval(worse[5].effect.difference, worse[5].interval)} |" in first
    # LoRA may lack studies that the heuristic has.
    assert study.first(answers | {"Question 2": shown.Answer("**Not yet**")}) == "**Not yet**"


def test_shares_of_failed_trials_are_a_family_of_their_own(
    section: Allocations, script: Callable[[str], ModuleType]
) -> None:
    entrant = of_row(section.block, "layer=1")
    assert entrant.sensitivity is not None
    difference = entrant.sensitivity.failed_difference
    assert difference is not None
    assert difference.effect.difference == np.mean([share_failed(each) for each in entrant.studies])
    # No made-up trial fails, so a difference of scores stands for one of failures.
    scores = entrant.differences[1]
    failing = replace(entrant, sensitivity=replace(entrant.sensitivity, failed_difference=scores))
    entrants = tuple(failing if each is entrant else each for each in section.block.entrants)
    ruling = script("answers.ranks").failures(replace(section.block, entrants=entrants))
    assert len(section.block.claims) == len(ruling.rows) - 1
    (change,) = (row[-1] for row in ruling.rows if row[0] == "layer=1")
    interval = scores.effect.interval(simultaneous(len(section.block.claims)))
    assert change == script("answers.answer").with_interval(scores.effect.difference, interval)


def test_best_rates_at_an_end_of_the_window_are_said(
    analysis: Analysis,
    packs: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    script: Callable[[str], ModuleType],
) -> None:
    rules = script("answers.registered")
    advice = [replace(each, is_lowest=False, is_highest=False) for each in rate_advice(analysis)]
    monkeypatch.setattr(rules, "rate_advice", lambda _: advice)
    named = attrgetter("method")
    assert not [*rules.at_ends([analysis], named)]
    advice[0] = replace(advice[0], start=advice[0].high, is_highest=True)
    (sentence,) = rules.at_ends([analysis], named)
    row = f"{advice[0].cell.method} on {advice[0].cell.task}"
    assert sentence == f"The smoothed best rate lies at the upper end of its window for {row}."
    # So are those of the references.
    monkeypatch.setattr(
        rules,
        "rate_advice",
        lambda every: [
            replace(each, start=each.high, is_highest=True)
            for each in rate_advice(every)
            if not each.cell.allocation
        ],
    )
    said = " ".join(script("answers.ranks").StudyOfRanks(*packs).qualified())
    assert all(f"{name} on movie-sentiment, digits" in said for name in (HEURISTIC, "LoRA"))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (
            made_up,
            "one in 10 of the stored trials of LoRA, TensLoRA qkv_depth on each task has to run again first",
        ),
        (
            on_one_task_again,
            "one in 10 of the stored trials of LoRA, TensLoRA qkv_depth on each task has to run again first",
        ),
        (ran_again(made_up, faults=("score: stored 0.8, now 0.7",)), "gave other results than accepted"),
        (diverged_but_finishes_now, "gave other results than accepted"),
    ],
)
def test_nothing_is_compared_unless_stored_trials_ran_again_alike(
    made: Callable[[Trial, Row], Result | None],
    reason: str,
    stored: Stored,
    tmp_path: Path,
    script: Callable[[str], ModuleType],
) -> None:
    pack = tmp_path / "pack.tensorbench.zip"
    tensorbench.pack(NAME, out=str(pack), store=stored(made, plan_of(**SUITE)))
    study = script("answers.ranks").StudyOfRanks(pack, pack)
    answers = study.answers()
    assert all(reason in answer.text and not answer.short for answer in answers.values())
    assert study.first(answers) == answers["Question 1"].text


def test_a_pack_that_does_not_say_which_ranks_were_given_is_refused(
    packs: tuple[Path, Path], tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    older = changed(packs[0], tmp_path / "older.tensorbench.zip", edit_json("plan.json", age))
    with pytest.raises(ValueError, match="start its suite again"):
        script("answers.ranks").StudyOfRanks(older, packs[1]).answers()


def test_a_study_of_some_allocations_alone_is_said(
    stored: Stored, tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    def made(trial: Trial, row: Row) -> Result | None:
        return (
            made_up(trial, row)
            if row.task == "digits" or not row.allocation
            else but_the_last_study(trial, row)
        )

    pack = tmp_path / "pack.tensorbench.zip"
    uri = stored(ran_again(made), plan_of(**SUITE | {"tuning": {"studies": 4, "points": 5}}))
    tensorbench.pack(NAME, out=str(pack), store=uri)
    (sentence,) = [
        each for each in script("answers.ranks").StudyOfRanks(pack, pack).qualified() if "further" in each
    ]
    assert sentence == "On digits some allocations have further complete studies, which count."


def test_answers_before_the_last_study_are_interim(
    stored: Stored, tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    result = ran_again(but_the_last_study)
    uri = stored(result, plan_of(**SUITE | {"tuning": {"studies": 4, "points": 5}}))
    pack = tmp_path / "pack.tensorbench.zip"
    tensorbench.pack(NAME, out=str(pack), store=uri)
    study = script("answers.ranks").StudyOfRanks(pack, pack, mode="projection")
    answers = study.answers()
    assert study.first(answers).startswith("**Interim, after 3 of 4 studies: ")
    assert all(each.short.startswith("Interim, after 3 of 4 studies: ") for each in answers.values())
