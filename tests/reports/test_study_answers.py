"""Tests what docs/findings.py writes: answers of the study, on made-up studies, and the decoder's table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tensorbench
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports.advice import rate_advice
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.blocks import Block, Comparison
from tensorbench.reports.inference.crossed import of_seeds
from tensorbench.reports.inference.effects import Verdict, Word, effect
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection

from ..stored import Result
from .made_up import Analysed, Stored
from .made_up_studies import plan_of, ran_again, result

Script = Callable[[str], ModuleType]
Packed = Callable[..., Path]

ATT, QKV_DEPTH, ALL_MODES = "TensLoRA att", "TensLoRA qkv_depth", "TensLoRA att_qkv_depth"
METHODS: list[Any] = [
    *("converged_head", "head_only", "lora"),
    {"method": "tenslora", "each": {"variant": ["att", "qkv_depth", "att_qkv_depth"]}},
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, stored: Stored) -> Packed:
    """A function that writes the results of a plan, with some fields changed, into a pack."""

    def make(result: Any = result, **changes: Any) -> Path:
        plan = plan_of(**changes)
        file = tmp_path_factory.mktemp("answered") / f"{plan.suite.name}.tensorbench.zip"
        tensorbench.pack(plan.suite.name, out=str(file), store=stored(result, plan))
        return file

    return make


@pytest.fixture(scope="module")
def pack(packed: Packed) -> Path:
    return packed(methods=METHODS)


@pytest.fixture(scope="module")
def fresh(analysed: Analysed) -> Analysis:
    """The analysis of eight studies of each of two methods. `pack` has the first four of each."""
    plan = plan_of(methods=METHODS[-2:], tuning={"studies": 8, "points": 4})
    return analysed(result, plan, selection=Selection(methods=["LoRA", QKV_DEPTH]))


def of_pack(pack: Path, methods: Sequence[str] = (), reference: str = "LoRA") -> Analysis:
    selection = Selection(methods=methods, reference=reference)
    return analyse(read("", [str(pack)], selection))


@pytest.fixture(scope="module")
def block(pack: Path) -> Block:
    (block,) = of_pack(pack).blocks
    return block


def rows(text: str) -> list[list[str]]:
    """The lines of all tables, including their headings."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if set("".join(cells)) != {"-"}]


def test_each_question_has_the_numbers_of_its_own_analysis(pack: Path, script: Script) -> None:
    answers, shown = script("answers.studies").of_questions(pack), script("answers.answer")
    assert list(answers) == [f"Question {number}" for number in range(1, 6)]
    assert all(answer.text.startswith("On 4 of 4 studies.") and answer.short for answer in answers.values())

    def expected(analysis: Analysis) -> dict[str, list[str]]:
        (block,) = analysis.blocks
        compared = {entrant.method: entrant.differences[block.k] for entrant in block.compared}
        return {
            name: [shown.points(each.effect.difference), shown.bounds(each.interval)]
            for name, each in compared.items()
        }

    def printed(number: str, at: int, until: int | None = None) -> dict[str, list[str]]:
        return {cells[0]: cells[1:3] for cells in rows(answers[f"Question {number}"].text)[at:until]}

    assert printed("1", 1) == expected(of_pack(pack))
    family = [QKV_DEPTH, ALL_MODES]
    assert printed("4", 1, 3) == expected(of_pack(pack, family))
    assert printed("4", 4) == expected(of_pack(pack, family, ATT))
    # Two comparisons at once have narrower intervals than three.
    assert printed("4", 1, 3)[ALL_MODES] != printed("1", 1)[ALL_MODES]
    # The results are made up with ALL_MODES three points above LoRA and ATT four points below.
    assert f"**better**: {ALL_MODES}" in answers["Question 1"].short
    assert f"**worse**: {ATT}" in answers["Question 1"].short
    assert answers["Question 4"].short.endswith("**yes**.")


def test_a_core_s_rate_is_compared_with_the_rows_of_the_study(
    pack: Path, packed: Packed, script: Script
) -> None:
    core = {"method": "tenslora", "variant": "qkv_depth"}
    methods = [core, *({**core, "training": {"core_lr": multiple}} for multiple in (4, 16))]

    def slower(trial: Trial, row: Row) -> Result | None:
        """The result of a trial: none with `core_lr` 1, and 3 points less with `core_lr` 16."""
        if trial.recipe.core_lr == 1:
            return None
        made = result(trial, row)
        if trial.recipe.core_lr == 4 or made is None:
            return made
        answers = np.array(made.answers)
        answers[np.flatnonzero(answers == made.labels)[:30]] ^= 1
        return replace(made, answers=answers, score=float((answers == made.labels).mean()))

    core_lr = packed(slower, name="core_lr", methods=methods, tuning={"studies": 3, "points": 4})
    answer = script("answers.studies").of_core_rate(pack, core_lr)
    assert answer.text.startswith("On 3 of 3 studies.")
    assert f"**worse**: {QKV_DEPTH} [core_lr=16.0]" in answer.short
    assert [cells[0] for cells in rows(answer.text)[1:3]] == [f"{QKV_DEPTH} [core_lr={n}.0]" for n in (4, 16)]


def test_trains_are_compared_with_the_rows_of_the_study(pack: Path, packed: Packed, script: Script) -> None:
    train = {"method": "tenslora", "variant": "qkv_depth", "factorization": "tt"}

    def made(trial: Trial, row: Row) -> Result | None:
        return result(trial, row.model_copy(update={"title": row.method}))

    methods = ["lora", METHODS[-1], train, "metatt", "tt_lora", "lorta"]
    study_of, plan = script("answers.trains").StudyOfTrains, {"tuning": {"studies": 3, "points": 4}}
    trains = packed(made, name="alone", methods=methods, **plan)
    assert "has to run again first" in study_of(trains, pack).in_short().text
    trains = packed(ran_again(made), name="trains", methods=methods, **plan)
    study = study_of(trains, pack)
    answers = study.answers()
    assert all(answer.text.startswith("On 3 of 3 studies.") for answer in answers.values())
    of_lora, of_tucker, of_one_each = (answer.short for answer in answers.values())
    # The train is three points below Tucker, and each of the shared trains well above the separate ones.
    below, above = (f"**{side}**: " for side in ("worse", "better"))
    assert of_tucker.startswith(f"{below}{QKV_DEPTH} (factorization=tt) (")
    assert "kept trials" in of_tucker
    assert of_one_each == f"{above}MetaTT-4D, {QKV_DEPTH} (factorization=tt)."
    assert below in of_lora
    assert "LoRTA" in of_lora
    # Every centre is the lowest rate that the pilot tried for LoRTA, and for no other.
    (end,) = (each for each in study.qualified(study.against["LoRA"]) if each.startswith("The centre"))
    assert re.fullmatch(r"The centre is 0\.005, .* for LoRTA on [^;]*\.", end)
    short = study.in_short().short
    assert [part.split(":")[0] for part in short.split("Compared with ")[1:]] == [
        "LoRA",
        QKV_DEPTH,
        "TT-LoRA",
    ]
    # The first part has a row for each method, with its verdicts beside each reference.
    by_method = {cells[0]: cells for cells in rows(study.first(answers))}
    assert len(by_method) == 1 + len(methods)
    assert by_method["LoRA"][3:] == ["–"] * 6
    assert by_method["LoRTA"][5:] == ["–"] * 4
    train_row = by_method[f"{QKV_DEPTH} (factorization=tt)"]
    assert train_row[6].startswith("worse; ")
    assert train_row[8] == "better"


def test_full_fine_tuning_that_ran_on_one_task_has_a_difference_there(
    pack: Path, packed: Packed, script: Script
) -> None:
    changes: dict[str, Any] = {"tasks": ["movie-sentiment"], "backbones": ["tiny-random-bert"]}
    full = packed(**changes, name="full", methods=["full"], tuning={"studies": 2, "points": 4})
    sentences, shown = script("answers.studies").of_levels(pack, full)
    assert "Full fine-tuning ran on movie-sentiment alone" in sentences
    differences = {cells[0]: cells[1:] for cells in rows(shown)}
    assert differences["method"] == ["from LoRA", "movie-sentiment", "digits"]
    mean, movie, digits = differences["full fine-tuning"]
    assert mean == digits == "–"
    assert 1 < float(movie) < 3
    assert "–" not in differences["converged head"]


@pytest.mark.parametrize(("few", "most", "turned"), [("better", "worse", True), ("", "worse", False)])
def test_the_order_changes_where_both_sides_are_shown(
    few: str, most: str, turned: bool, block: Block, script: Script
) -> None:
    def changed(entrant: Any) -> Any:
        if entrant.method != ATT:
            return entrant
        shown = {
            k: replace(entrant.differences[k], verdict=Verdict(Word(side or "inconclusive")))
            for k, side in {block.ks[1]: few, block.ks[-1]: most}.items()
        }
        return replace(entrant, differences=entrant.differences | shown)

    changed_block = replace(block, entrants=tuple(map(changed, block.entrants)))
    ruling = script("answers.studies").another_order(changed_block)
    assert (ATT in ruling.short) == turned


def test_a_cost_is_judged_by_its_interval(script: Script) -> None:
    cost = script("answers.studies")._cost
    assert cost((-0.009, 0.2), 0.01) == "below a point"
    assert cost((-0.03, -0.011), 0.01) == "more than a point"
    assert cost((-0.02, -0.005), 0.01) == cost(None, 0.01) == "inconclusive"


def test_forgiveness_is_judged_at_the_level_of_both_shares(block: Block, script: Script) -> None:
    ruling = script("answers.studies").forgiving(block)
    by_method = {cells[0]: cells for cells in ruling.rows}
    shown = script("answers.answer")
    for entrant in block.compared:
        near = entrant.sensitivity.near_difference
        assert near is not None
        interval = near.effect.interval(simultaneous(2 * len(block.compared)))
        assert near.interval == interval
        printed = by_method[entrant.method][2]
        assert printed == f"{shown.points(near.effect.difference)} ({shown.bounds(interval)})"


def test_too_few_studies_have_no_answer(pack: Path, script: Script) -> None:
    rules, analysis = script("answers.studies"), of_pack(pack)
    number = analysis.blocks[0].entrants[0].cells[0].number
    fewer = {**analysis.studies, number: analysis.studies[number].only((0, 1))}
    answer = rules.answered([(replace(analysis, studies=fewer), rules.after_tuning)])
    assert "2 of 4 studies complete" in answer.text
    assert answer.short == ""


def test_an_answer_says_what_its_evidence_lacks(pack: Path, script: Script) -> None:
    rules, analysis = script("answers.studies"), of_pack(pack)
    notes = ("Predictions of 1 run do not give the score that is stored.",)
    lacking = replace(analysis, gaps=notes)
    for each in (analysis, lacking):
        answer = rules.answered([(each, rules.after_tuning), (each, rules.by_trials)])
        assert answer.text.count(notes[0]) == (each is lacking)


def test_fresh_tunings_are_other_studies(fresh: Analysis, pack: Path, script: Script) -> None:
    (block,) = of_pack(pack).blocks
    ruling = script("answers.studies").fresh_tunings(fresh, block)
    assert len(ruling.rows) == 2 * len(block.settings)
    assert {row[5] for row in ruling.rows} == {"4 of 4"}
    for row in ruling.rows:
        (number,) = [c.number for c in fresh.results.all_cells if (c.method, c.task) == (row[0], row[1])]
        studies = fresh.studies[number]
        later = [studies.numbers.index(study) for study in range(4, 8)]
        kept = [studies.scores[at][studies.losses[at].argmin()] for at in later]
        assert row[7] == block.unit.score(float(np.mean(kept)))
        low, high = map(float, row[4].split(" to "))
        assert (row[8] == "yes") == (low <= float(row[6]) <= high)
    # None is complete, or only some that the study has, or too few others.
    for some in ([], [2, 3], [3, 4, 5]):
        studies = {n: each.only(some) for n, each in fresh.studies.items() if some}
        ruling = script("answers.studies").fresh_tunings(replace(fresh, studies=studies), block)
        assert not ruling.rows
        assert "Inside" not in ruling.short
    # Fresh tunings of a method that became ten points worse are outside.
    worse = {n: replace(studies, scores=studies.scores - 0.1) for n, studies in fresh.studies.items()}
    outside = script("answers.studies").fresh_tunings(replace(fresh, studies=worse), block)
    assert {row[8] for row in outside.rows} == {"no"}
    assert QKV_DEPTH in outside.short


def test_what_is_expected_of_fresh_tunings_lacks_the_luck_of_test_examples(
    pack: Path, block: Block, script: Script
) -> None:
    expected_of = script("answers.studies").expected_of
    for entrant in block.entrants:
        for studies in entrant.studies:
            widths = [high - low for low, high in (expected_of(studies, count, 4) for count in (4, 10**9))]
            assert widths[0] == pytest.approx(2**0.5 * widths[1])
            no_examples = replace(studies, by_example=None)
            assert expected_of(no_examples, 10**9, 4) == pytest.approx(expected_of(studies, 10**9, 4))


def test_advice_has_the_expected_scores_and_the_rates_of_the_list(
    pack: Path, block: Block, script: Script
) -> None:
    rules = script("answers.studies")
    rows = {cells[0]: cells for cells in rules.expected(block).rows}
    for entrant in block.entrants:
        expected = [block.unit.score(entrant.means[k].value) for k in block.ks]
        assert list(rows[entrant.method][1:-1]) == expected
    starts = {advice.cell.number: f"{advice.start:.2g}" for advice in rate_advice(of_pack(pack))}
    by_method = {cells[0]: cells[1:] for cells in rules.rates(block).rows}
    for entrant in block.entrants:
        assert [cell.split(" ")[0] for cell in by_method[entrant.method]] == [
            starts[own.number] for own in entrant.cells
        ]


def test_a_method_is_advised_only_if_it_is_shown_to_be_better(
    pack: Path, block: Block, script: Script
) -> None:
    advised = script("answers.studies").affordable
    better = {
        k: [e for e in block.compared if k in e.differences and e.differences[k].verdict.side == "better"]
        for k in block.ks
    }
    assert any(better.values())
    for k, row in zip(block.ks, advised(block).rows, strict=True):
        best = max(better[k], key=lambda entrant: entrant.means[k].value, default=block.entrants[0])
        assert row[1] == best.method
        assert row[2] == block.unit.score(best.means[k].value)
    only_worse = tuple(entrant for entrant in block.entrants if entrant.method in ("LoRA", ATT))
    assert {row[1] for row in advised(replace(block, entrants=only_worse)).rows} == {"LoRA"}


def test_a_figure_s_file_has_its_numbers(pack: Path, script: Script) -> None:
    picture = script("answers.studies").picture(pack)
    drawn = picture.svg()
    assert all(f"{method} " in picture.drawn.alternative for method in (ATT, QKV_DEPTH, ALL_MODES))
    assert f"<desc>{picture.drawn.alternative}</desc>" in drawn


def test_forgetting_is_compared_with_lora_by_the_trials_that_count(script: Script) -> None:
    decoder = script("answers.decoder")
    pack = Path(__file__).parents[2] / "results/smollm2.tensorbench.zip"
    results = read("", [str(pack)])
    cells = {cell.method: cell for cell in results.all_cells}
    own, lora = ([seed["forgetting"] for seed in cells[method].counted] for method in ("LoRTA", "LoRA"))
    differences = np.subtract(own, lora)
    more = decoder.more_forgotten(results, cells["LoRTA"])
    assert more.difference == pytest.approx(differences.mean())
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    t = stats.t.ppf(0.975, len(differences) - 1)
    assert more.interval(0.95) == pytest.approx((more.difference - t * error, more.difference + t * error))
    assert decoder.more_forgotten(results, cells["LoRA"]) is None


def test_a_claim_that_holds_only_by_itself_is_exploratory(script: Script) -> None:
    answer, family = script("answers.answer"), script("answers.family")
    # Holm's method, with p-values that are not in order.
    assert family.adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def claim(*differences: float, word: Word) -> Any:
        found = effect([of_seeds(np.array(differences))])
        return answer.Claim(Comparison(found, found.interval(0.95), Verdict(word)), 0.01)

    better = claim(0.01, 0.02, 0.03, 0.02, 0.02, word=Word.BETTER)
    assert better.p == pytest.approx(stats.ttest_1samp([0.01, 0.02, 0.03, 0.02, 0.02], 0).pvalue, rel=1e-3)
    same = claim(0.001, -0.001, 0.0, 0.001, -0.001, word=Word.EQUIVALENT)
    assert better.compared.effect.interval(1 - better.p)[0] == pytest.approx(0, abs=1e-9)
    assert max(map(abs, same.compared.effect.interval(1 - same.p))) == pytest.approx(0.01)
    unsure = claim(0.01, -0.02, 0.03, -0.02, 0.02, word=Word.INCONCLUSIVE)
    claims = {"A": better, "B": same, **{f"C{n}": unsure for n in range(40)}}
    shown = family.of_family({"1": answer.Answer("", "", claims), "2": answer.Answer("", "", {"A": better})})
    assert shown.startswith("42 comparisons")
    first, second = rows(shown)[-2:]
    assert (first[1], first[-1]) == ("A", "exploratory: better by itself only")
    assert (second[1], second[-1]) == ("B", "equivalent")
