"""The report of a store: what its figures say, what its files hold, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.plan.rows import Plan, Row
from bench.plan.trial import Trial
from bench.store.store import Store
from bench.wire.words import Kind
from methods import UserError
from reports import analysis as analysing
from reports import curves, mixtures, tables
from reports.analysis import Analysis, Block, analyse, pareto
from reports.drawing import Looks, spread
from reports.reading import Study, read
from reports.report import MANIFEST, write_report

from ..stored import Result, write
from .conftest import EXAMPLES, NAME, plan_of, result

Call = Callable[..., Any]
NewStore = Callable[[Path], str]

#: Small enough to be written anew by a test.
SMALL: dict[str, Any] = {
    "name": "small",
    "tasks": ["digits"],
    "backbones": ["tiny-random-vit"],
    "methods": ["lora", {"method": "tenslora", "variant": "att"}],
    "budgets": [{"isorank": 2}],
    "seeds": [0, 1],
}


def store(folder: Path, new_store: NewStore, plan: Plan | None = None, told: Any = result) -> str:
    folder.mkdir(exist_ok=True)
    uri = new_store(folder)
    write(uri, plan or plan_of(**SMALL), told)
    return uri


def block(analysis: Analysis, budget: str) -> Block:
    return next(block for block in analysis.blocks if block.budget == budget)


def cell(study: Study, **where: str) -> Any:
    found = study.cells
    for column, value in where.items():
        found = found[found[column] == value]
    (line,) = found.to_dict("records")
    return line


# --- cells ---


def test_a_cell_is_the_mean_of_its_finished_seeds_with_students_interval(
    study: Study, analysis: Analysis
) -> None:
    line = cell(study, task="digits", budget="isorank 2", method="LoRA")
    scores = [result(trial, row).score for trial, row in _trials("LoRA", "isorank 2", "digits")]  # type: ignore[union-attr]
    assert len(scores) == 5
    assert line["mean"] == pytest.approx(np.mean(scores))
    assert line["sd"] == pytest.approx(np.std(scores, ddof=1))
    assert line["high"] - line["mean"] == pytest.approx(2.776445 * line["sd"] / 5**0.5)
    assert (line["finished"], line["seeds"], line["complete"]) == (5, 5, True)


def _trials(title: str, budget: str, task: str) -> list[tuple[Trial, Row]]:
    plan = plan_of()
    trials = {trial.id: trial for trial in plan.trials}
    return [
        (trials[id_], row)
        for row in plan.rows
        if row.title == title and row.budget and row.budget.label == budget and row.task == task
        for id_ in row.trials.values()
    ]


def test_lost_seeds_are_shown_and_in_no_mean(study: Study) -> None:
    failed = cell(study, task="digits", budget="isoparameters 2", method="TensLoRA depth")
    missing = cell(study, task="movie-sentiment", budget="isorank 2", method="LoTR")
    assert (failed["finished"], failed["failed"], failed["missing"]) == (4, 1, 0)
    assert (missing["finished"], missing["failed"], missing["missing"]) == (4, 0, 1)
    assert not failed["complete"]
    lost = study.seeds[study.seeds["status"] != "FINISHED"]
    assert set(zip(lost["status"], lost["failure"], strict=True)) == {("FAILED", "diverged"), ("MISSING", "")}
    assert lost["score"].isna().all()


def test_every_seed_is_traced_to_its_run(rich: str, study: Study) -> None:
    client = Store.existing(rich, NAME).client
    line = study.seeds[study.seeds["status"] == "FINISHED"].iloc[17]
    run = client.get_run(line["run_id"])
    assert run.data.metrics["score"] == line["score"]
    assert run.data.tags["trial_id"] == line["trial_id"]


# --- comparisons ---


def test_methods_with_lost_seeds_are_in_no_comparison_and_named(analysis: Analysis) -> None:
    isorank, isoparameters = block(analysis, "isorank 2"), block(analysis, "isoparameters 2")
    assert isorank.left_out == {"LoTR": "4 of 5 seeds on movie-sentiment · tiny-random-bert"}
    assert isoparameters.left_out == {"TensLoRA depth": "4 of 5 seeds on digits · tiny-random-vit"}
    assert "LoTR" not in {c.method for c in isorank.comparisons} | set(isorank.methods)
    assert any("incomplete cells" in note for note in isorank.notes)


def test_a_setting_that_has_not_been_run_keeps_nobody_out(tmp_path: Path, new_store: NewStore) -> None:
    plan = plan_of(**SMALL | {"tasks": ["digits", "textile"]})
    uri = store(tmp_path, new_store, plan, lambda t, row: result(t, row) if row.task == "digits" else None)
    only = block(analyse(read(uri, ["small"])), "isorank 2")
    assert only.settings == [("digits", "tiny-random-vit")]
    assert [c.method for c in only.comparisons] == ["TensLoRA att"]
    assert any("No method is complete on textile · tiny-random-vit" in note for note in only.notes)


def test_what_differs_and_what_does_not_is_said(analysis: Analysis) -> None:
    found = {c.method: c for c in block(analysis, "isorank 2").comparisons}
    # Edges of +8, −1 and −9 of 200 examples; seeds are paired, so that their shared noise is gone.
    assert found["TensLoRA att"].verdict == "better"
    assert found["TensLoRA att"].effect.difference == pytest.approx(0.04, abs=0.004)
    assert found["TensLoRA depth"].verdict == "worse"
    assert found["TensLoRA qkv"].verdict in ("practically equal", "worse, by less than matters")
    assert found["TensLoRA att"].effect.pairs == 15
    assert found["TensLoRA att"].p_holm == pytest.approx(3 * 2 / 2**15)
    assert "LoRA" not in found


@pytest.mark.parametrize(
    ("difference", "half", "p", "methods", "verdict"),
    [
        (0.02, 0.005, 0.001, 1, "better"),
        (-0.02, 0.005, 0.001, 1, "worse"),
        (0.005, 0.002, 0.001, 1, "better, by less than matters"),
        (0.002, 0.004, 0.3, 1, "practically equal"),
        (0.02, 0.05, 0.3, 1, "not separable"),
        # Of two methods the interval is that of 97.5%.
        (0.002, 0.0075, 0.3, 1, "practically equal"),
        (0.002, 0.0075, 0.3, 2, "not separable"),
        # With 4 pairs nothing can fall below .125, with 8 and 20 methods nothing below .15.
        (0.02, 0.005, 0.125, 1, "too little data"),
        (0.02, 0.005, 0.0078, 20, "too little data"),
    ],
)
def test_verdicts(difference: float, half: float, p: float, methods: int, verdict: str) -> None:
    made = analysing.Effect(
        settings=1,
        pairs=8,
        difference=difference,
        interval=(difference - half, difference + half),
        error=half / 2.364624,
        freedom=7,
        g=None,
        g_interval=None,
        p=p,
        smallest_p=0.125 if p == 0.125 else 0.0078,
    )
    assert analysing.verdict(made, p, methods, 0.01) == verdict


def test_baselines_are_compared_with_lora_of_the_first_budget(analysis: Analysis) -> None:
    own = block(analysis, "own size")
    assert (own.reference, own.reference_budget) == ("LoRA", "isorank 2")
    assert {c.method: c.verdict for c in own.comparisons}["head only"] == "worse"


def test_groups_and_ranks_follow_the_scores(analysis: Analysis) -> None:
    isorank = block(analysis, "isorank 2")
    assert isorank.methods == ["TensLoRA att", "LoRA", "TensLoRA qkv", "TensLoRA depth"]
    assert isorank.letters is not None
    assert not set(isorank.letters[0]) & set(isorank.letters[1])
    assert set(isorank.letters[1]) & set(isorank.letters[2])
    assert isorank.ranks is not None
    assert isorank.ranks.mean[0] == 1


def test_normalised_scores_use_head_only_and_full(analysis: Analysis) -> None:
    own = block(analysis, "own size").aggregates
    assert own["head only"].mean == pytest.approx(0)
    full = next(value for name, value in own.items() if name.startswith("full"))
    assert full.mean == pytest.approx(1)
    assert 0.5 < block(analysis, "isorank 2").aggregates["LoRA"].mean < 1


def test_test_examples_are_resampled_with_the_stored_predictions(analysis: Analysis) -> None:
    isorank = block(analysis, "isorank 2")
    assert len(isorank.resampled) == 9
    one = next(r for r in isorank.resampled if analysis.study.cells.at[r.cell, "method"] == "TensLoRA att")
    assert (one.seeds, one.examples) == (5, EXAMPLES)
    means = [analysis.study.cells.at[c, "mean"] for c in (one.cell, one.reference_cell)]
    assert one.difference == pytest.approx(means[0] - means[1])
    assert one.interval[0] < one.difference < one.interval[1]


def test_predictions_beyond_the_limit_are_left_out_and_that_is_told(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysing, "MOST_PREDICTIONS", 20)
    limited = analyse(study)
    assert 0 < sum(len(block.resampled) for block in limited.blocks) < 20
    assert any("reads the predictions of 20 runs at most" in note for note in limited.notes)


def test_too_little_data_is_said_instead_of_a_claim(tmp_path: Path, new_store: NewStore) -> None:
    found = analyse(read(store(tmp_path, new_store), ["small"]))
    only = block(found, "isorank 2")
    assert [c.verdict for c in only.comparisons] == ["too little data"]
    assert only.letters is None
    assert any("Too little data for a claim against LoRA: 2 seed pairs" in note for note in only.notes)
    assert any("Too little data to tell any two methods apart" in note for note in only.rank_notes)
    assert any("2 seeds per cell at most" in note for note in found.notes)
    assert any("No normalised score" in note for note in only.rank_notes)


def test_scores_that_were_stored_in_float32_are_the_same_scores(tmp_path: Path, new_store: NewStore) -> None:
    def rounded(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        return made and dataclasses.replace(made, score=float(np.float32(made.score)))

    many = plan_of(**SMALL | {"seeds": [0, 1, 2, 3, 4]})
    exact, older = (
        analyse(read(store(tmp_path / name, new_store, many, told), ["small"]))
        for name, told in (("exact", result), ("older", rounded))
    )
    for one, other in zip(exact.blocks, older.blocks, strict=True):
        assert [c.p_holm for c in one.comparisons] == [c.p_holm for c in other.comparisons]
        assert one.ranks is not None
        assert other.ranks is not None
        assert list(one.ranks.mean) == list(other.ranks.mean)


def test_no_two_families_look_alike() -> None:
    looks = Looks([f"family {number}" for number in range(30)])
    assert len({(looks.colour(family), looks.shape(family)) for family in looks.families}) == 30


def test_the_pareto_front_is_what_nothing_smaller_beats() -> None:
    cells = pd.DataFrame(
        {
            "task": "t",
            "backbone": ["b"] * 5 + ["c"],
            "parameters": [10, 20, 20, 30, 40, 50],
            "mean": [0.5, 0.6, 0.7, 0.65, 0.9, 0.1],
            "complete": [True, True, True, True, False, True],
        }
    )
    assert pareto(cells, "parameters") == [0, 2, 5]


def test_the_same_trials_in_two_budgets_are_both_on_the_front() -> None:
    cells = pd.DataFrame({"parameters": [10, 5, 10, 20], "mean": [0.8, 0.7, 0.8, 0.8]})
    cells = cells.assign(task="t", backbone="b", complete=True)
    assert sorted(pareto(cells, "parameters")) == [0, 1, 2]


def test_labels_stand_apart_and_below_the_top() -> None:
    assert spread([1.0, 1.1, 5.0], 1.0) == pytest.approx([0.55, 1.55, 5.0])
    assert spread([9.9, 9.8, 9.7, 1.0], 1.0, top=10.0) == pytest.approx([10.0, 9.0, 8.0, 1.0])


def test_ranks_of_fewer_seeds_than_the_means_say_so(tmp_path: Path, new_store: NewStore) -> None:
    uri = store(tmp_path, new_store, plan_of(**SMALL | {"seeds": [0, 1, 2, 3], "methods": ["lora"]}))
    write(uri, plan_of(**SMALL | {"name": "other", "methods": ["head_only", "lotr"]}), result)
    of_both = block(analyse(read(uri, ["small", "other"])), "isorank 2")
    assert any("share 2 of up to 4 seeds" in note for note in of_both.rank_notes)
    alone = block(analyse(read(uri, ["small"])), "isorank 2")
    assert not any("share" in note for note in alone.rank_notes)


# --- files ---


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    return store(tmp_path_factory.mktemp("small"), new_store)


def test_a_curve_says_that_a_seed_is_not_in_its_mean(study: Study) -> None:
    labels = {curve.cell: curve.label for curve in curves.read(study)[0]}
    short = study.cells[(study.cells["finished"] < study.cells["seeds"]) & (study.cells["finished"] > 0)]
    told = [labels[cell] for cell in short.index if cell in labels]
    assert told
    for cell in short.index:
        if cell in labels:
            cells = study.cells.loc[cell]
            assert labels[cell] == f"{cells['method']} ({cells['finished']} of {cells['seeds']} seeds)"
    whole = study.cells[study.cells["complete"]]
    assert all(labels[cell] == whole.at[cell, "method"] for cell in whole.index if cell in labels)


def test_text_that_a_spreadsheet_would_run_is_quoted() -> None:
    frame = pd.DataFrame(
        {"method": ["=HYPERLINK(1)", "LoRA"], "message": ["-1 at", None], "difference": [-0.5, 1]}
        | {"reference": ["@a", None], "other": ["+b", "c"]}
    )
    assert tables.csv(frame).splitlines() == [
        "method,message,difference,reference,other",
        "'=HYPERLINK(1),'-1 at,-0.5,'@a,'+b",
        "LoRA,,1.0,,c",
    ]


def test_every_format_is_written_and_logged_on_the_suites_run(rich: str, written: Path) -> None:
    files = json.loads((written / MANIFEST).read_text())
    assert {"index.html", "report.json", "tables/tables.md", "tables/tables.tex", "tables/cells.csv"} <= set(
        files
    )
    figures = {Path(name).stem for name in files if name.startswith("figures/")}
    assert {f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")} <= set(files)
    assert {"score-vs-parameters", "score-vs-step-time", "score-vs-memory", "training-curves"} <= figures
    opened = Store.existing(rich, NAME)
    suite_run = opened.records(Kind.SUITE)[-1].run_id
    logged = {file.path for file in opened.client.list_artifacts(suite_run, "report")}
    assert {"report/index.html", "report/report.json", "report/tables", "report/figures"} == logged


def test_csv_and_json_hold_what_was_stored_with_its_runs(written: Path, study: Study) -> None:
    with (written / "tables" / "seeds.csv").open() as file:
        seeds = list(csv.DictReader(file))
    assert len(seeds) == len(study.seeds)
    finished = [line for line in seeds if line["status"] == "FINISHED"]
    assert all(len(line["run_id"]) == 32 for line in finished)
    content = json.loads((written / "report.json").read_text())
    cells = content["tables"]["cells"]
    assert [line["runs"].count(";") + 1 for line in cells if line["finished"] == 5] == [5] * (len(cells) - 2)
    assert content["tables"]["comparisons"][0]["cells"]
    assert content["experiments"][0]["closing"] == "Made up, [all] of it."


def test_latex_is_laid_out_as_the_papers_table(written: Path) -> None:
    text = (written / "tables" / "tables.tex").read_text()
    rows = [line.strip() for line in text.splitlines()]
    blocks = [row for row in rows if row.startswith("\\multicolumn")]
    assert [row[row.index("textit{") + 7 :].rstrip("} \\") for row in blocks[:3]] == [
        "Isorank 2",
        "Isoparameters 2",
        "Baselines and methods of their own size",
    ]
    assert rows.count("\\toprule") == rows.count("\\bottomrule") == 2
    assert "$\\pm$" in text
    (depth,) = [r for r in rows if r.startswith("TensLoRA depth") and "dagger" in r]
    # The incomplete cell is neither bold nor underlined.
    assert "textbf" not in depth.split("&")[2]


GOLDEN = """\
| method | % of LoRA | digits (test accuracy) |
| --- | ---: | ---: |
| **isorank 2** |  |  |
| LoRA | 50.00 | <u>81.25 ± 1.77</u> |
| TensLoRA att | 37.50 | **90.00 ± 0.00** |
| TensLoRA qkv | 18.49 | 70.00 † |"""


def test_the_markdown_table_is_exactly_so(tmp_path: Path, new_store: NewStore) -> None:
    scores = {"LoRA": [0.8, 0.825], "TensLoRA att": [0.9, 0.9], "TensLoRA qkv": [0.7, None]}
    plan = plan_of(
        **SMALL | {"methods": ["lora", {"method": "tenslora", "each": {"variant": ["att", "qkv"]}}]}
    )

    def told(trial: Trial, row: Row) -> Result | None:
        value = scores[row.title][trial.seed]
        return None if value is None else Result(score=value)

    text = tables.markdown(analyse(read(store(tmp_path, new_store, plan, told), ["small"])), [])
    assert GOLDEN in text
    assert "† seeds are missing; the cell is in no comparison." in text


def test_formats_can_be_picked(small: str, tmp_path: Path) -> None:
    done = write_report(small, ["small"], tmp_path / "out", ["json", "md"], log=False)
    assert set(done.files) == {"report.json", "tables/tables.md"}
    with pytest.raises(UserError, match=r"unknown format 'pdf'.*known are csv, html"):
        write_report(small, ["small"], tmp_path / "other", ["pdf"])
    assert not (tmp_path / "other").exists()


def test_a_folder_in_use_needs_force_which_spares_what_is_not_the_reports(small: str, tmp_path: Path) -> None:
    write_report(small, ["small"], tmp_path, ["json", "md"], log=False)
    mine = tmp_path / "tables" / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"is not empty.*--force"):
        write_report(small, ["small"], tmp_path, ["json"], log=False)
    write_report(small, ["small"], tmp_path, ["json"], log=False, force=True)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "tables" / "tables.md").exists()
    assert (tmp_path / "report.json").exists()
    (tmp_path / MANIFEST).write_text("5")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(small, ["small"], tmp_path, ["json"], log=False, force=True)


# --- names that mean something to HTML, LaTeX or Markdown ---

EVIL = "<script>alert(1)</script> & 50% $x_1$ {#} ~^\\ | *b*"


def test_names_are_escaped_everywhere(tmp_path: Path, new_store: NewStore) -> None:
    plan = plan_of(**SMALL, closing=f"Closing {EVIL}")
    rows = tuple(
        row.model_copy(update={"method": EVIL, "task": EVIL}) if row.title != "LoRA" else row
        for row in plan.rows
    )
    uri = store(
        tmp_path,
        new_store,
        Plan(suite=plan.suite, rows=rows, trials=plan.trials),
        lambda trial, row: Result(score=0.5 + trial.seed / 10),
    )
    out = tmp_path / "out"
    write_report(uri, ["small"], out, log=False)
    page = (out / "index.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    for figure in (out / "figures").glob("*.svg"):
        assert "<script>" not in figure.read_text()
    latex = (out / "tables" / "tables.tex").read_text()
    escaped = (
        r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \& 50\% \$x\_1\$ \{\#\}"
    )
    assert escaped + r" \textasciitilde{}\textasciicircum{}\textbackslash{}" in latex
    assert "<script>" not in (out / "tables" / "tables.md").read_text()


# --- mixtures ---


def test_one_suite_is_no_mixture(study: Study) -> None:
    # Only the rate of full fine-tuning differs, which its row names.
    assert mixtures.find(study) == []


def test_trials_that_measure_something_else_are_refused_unless_asked_for(
    tmp_path: Path, new_store: NewStore
) -> None:
    uri = store(tmp_path, new_store)
    other = SMALL | {"name": "other", "evaluate": "validation", "training": {"epochs": 3}}
    write(uri, plan_of(**other), result)
    with pytest.raises(UserError, match=r"evaluate differs on digits.*test \(small\); validation \(other\)"):
        write_report(uri, ["small", "other"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = write_report(uri, ["small", "other"], tmp_path / "out", ["html"], mixed=True)
    assert {m.what for m in done.mixtures if m.serious} == {"evaluate"}
    assert "training epochs" in {m.what for m in done.mixtures if not m.serious}
    assert "These scores do not compare." in (tmp_path / "out" / "index.html").read_text()
    # Both experiments' LoRA stand there, told apart.
    assert {"LoRA", "LoRA · other"} <= set(done.analysis.study.cells["method"])


def test_other_rates_are_flagged_between_experiments(tmp_path: Path, new_store: NewStore) -> None:
    uri = store(tmp_path, new_store)
    write(uri, plan_of(**SMALL | {"name": "other", "training": {"lr": 0.25}}), result)
    (rate, _) = [m for m in mixtures.find(read(uri, ["small", "other"])) if m.what.endswith("lr")]
    assert (rate.what, rate.serious) == ("training lr", False)
    assert rate.values["0.25"] == "other"


def test_other_library_versions_are_flagged(tmp_path: Path, new_store: NewStore) -> None:
    def told(trial: Trial, row: Row) -> Result | None:
        made = result(trial, row)
        assert made is not None
        return dataclasses.replace(made, tags={"provenance.version_torch": f"2.{trial.seed}"})

    found = mixtures.find(read(store(tmp_path, new_store, told=told), ["small"]))
    assert [str(m) for m in found] == ["version of torch differs: 2.0 (2 trials); 2.1 (2 trials)"]


def test_the_same_trials_in_two_experiments_stand_once(tmp_path: Path, new_store: NewStore) -> None:
    uri = store(tmp_path, new_store)
    write(uri, plan_of(**SMALL | {"name": "other"}), result)
    write(uri, plan_of(**SMALL | {"name": "longer", "training": {"epochs": 9}}), result)
    assert len(read(uri, ["small", "other"]).cells) == len(read(uri, ["small"]).cells)
    # In any order, an experiment of the same names but other trials between them.
    for names in (["small", "longer", "other"], ["small", "other", "longer"]):
        assert len(read(uri, names).cells) == 2 * len(read(uri, ["small"]).cells)


# --- bad input ---


def test_an_experiment_that_is_not_there_gets_the_nearest_name(call: Call, rich: str, tmp_path: Path) -> None:
    ended = call("report", "rihc", "--store", rich, "--out", tmp_path / "out")
    assert ended.code == 2
    assert "no experiment 'rihc'" in ended.err
    assert "did you mean 'rich'?" in ended.err
    assert not (tmp_path / "out").exists()


def test_nothing_finished_is_nothing_to_report(tmp_path: Path, new_store: NewStore) -> None:
    uri = store(
        tmp_path, new_store, told=lambda trial, row: Result(failure="diverged") if trial.seed else None
    )
    with pytest.raises(UserError, match=r"no finished trial \(2 failed, 2 missing\)"):
        read(uri, ["small"])


def test_an_experiment_of_something_else_is_refused(tmp_path: Path, new_store: NewStore) -> None:
    uri = new_store(tmp_path)
    Store.create(uri, "empty")
    with pytest.raises(UserError, match="holds no suite of this harness"):
        read(uri, ["empty"])


def test_the_command_tells_what_it_wrote_and_what_to_know(call: Call, rich: str, tmp_path: Path) -> None:
    ended = call("report", NAME, "--store", rich, "--out", tmp_path / "out", "--format", "csv", "--no-log")
    assert ended.code == 0
    assert "note: 2 cells of 36 incomplete" in ended.out
    assert "files to" in ended.out


def test_the_password_of_a_store_is_not_shown() -> None:
    from bench.store.connect import shown_uri

    assert shown_uri("postgresql://me:secret@host:5432/db") == "postgresql://host:5432/db"
    assert shown_uri("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
