"""Tests that every view shows the numbers of the analysis, on a made-up study and on its one-point version.

The views are the terminal, a notebook, the page, Markdown, LaTeX, CSV and JSON.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import tensorbench
from tensorbench.methods import UnknownNameError, UserError
from tensorbench.records.words import RunKind
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import answer, answers, in_words
from tensorbench.reports.blocks import Block, Entrant
from tensorbench.reports.drawing import Drawn, Figures
from tensorbench.reports.loading import LoadedResults
from tensorbench.reports.report import MANIFEST, compose, write_report
from tensorbench.store.connect import StoreError
from tensorbench.store.store import Store

from ..fixtures import Call
from ..messages import naming
from .made_up import Stored, printed, summary_of
from .made_up_studies import NAME, STUDIED, plan_of, result, seeds_of

EVIL = "</td></script></title><script>alert(1)</script><img src=x onerror=alert(1)> $a$"


@dataclass(frozen=True)
class Shown:
    """A written report with everything that shows its numbers."""

    uri: str
    folder: Path
    results: LoadedResults

    @property
    def analysis(self) -> Analysis:
        return self.results.analysis

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    @property
    def views(self) -> Mapping[str, str]:
        """The text of each view for readers, without markup."""
        plain: dict[str, Callable[[str], str]] = {
            "index.html": lambda text: html.unescape(re.sub(r"<[^>]*>", " ", text)),
            "tables/tables.md": lambda text: text.replace("\\", ""),
            "tables/tables.tex": lambda text: re.sub(r"\\(?=[_%#&])|\$", "", text).replace(r"\pm", "±"),
        }
        texts = {name: change(self.text(name)) for name, change in plain.items()} | {
            "terminal": printed(*summary_of(self.uri, NAME).tables("toy"), width=400),
        }
        return {name: " ".join(text.replace("−", "-").split()) for name, text in texts.items()}


@pytest.fixture(scope="module", params=["study", "seeds"])
def shown(request: Any, tmp_path_factory: pytest.TempPathFactory, stored: Stored) -> Shown:
    folder = tmp_path_factory.mktemp(request.param) / "out"
    suite = STUDIED | {"closing": "Made up, [all] of it."}
    if request.param == "study":
        plan = plan_of(**suite)
    else:
        # Four seeds in place of studies.
        del suite["tuning"]
        plan = seeds_of(**suite, seeds=[0, 1, 2, 3])
    uri = stored(result, plan)
    write_report(NAME, out=folder, store=uri)
    return Shown(uri, folder, tensorbench.load_results(NAME, store=uri))


def claims(block: Block, entrant: Entrant) -> list[str]:
    """What every view says of a comparison: difference, interval and verdict."""
    found, unit = entrant.differences[block.k], block.unit
    assert found.interval is not None
    return [
        unit.difference(found.effect.difference),
        " to ".join(map(unit.difference, found.interval)),
        in_words(found.verdict, unit.size(block.threshold)),
    ]


def test_every_view_shows_every_comparison_and_the_answer(shown: Shown) -> None:
    (block,) = shown.analysis.blocks
    assert len(block.compared) == 3
    for name, text in shown.views.items():
        for entrant in block.compared:
            for claim in claims(block, entrant):
                assert claim in text, (name, entrant.method)
        if name == "terminal":
            # Guards come first there, and only there.
            assert answer(block, guarded=False) in text
            assert [text.count(guard) for guard in block.guards] == [1] * len(block.guards)
        elif name != "tables/tables.tex":
            assert answer(block) in text, name


def test_every_view_shows_the_scores(shown: Shown) -> None:
    (block,) = shown.analysis.blocks
    views = shown.views
    for entrant in block.entrants:
        for own in entrant.on.values():
            cell, score = own.cell, own.scores[block.k]
            text = block.unit.score(score.value)
            for name in ("index.html", "tables/tables.md", "tables/tables.tex"):
                assert text in views[name], (name, entrant.method)
                assert cell.sd is None or f"{text} ± {block.unit.score(cell.sd)}" in views[name]
            assert f"{round(score.value, 9):.4f}" in views["terminal"]
    for level in block.levels:
        for value in level.scores.values():
            assert block.unit.score(value) in views["index.html"]


def test_csv_json_and_frames_have_the_stored_numbers(shown: Shown) -> None:
    (block,) = shown.analysis.blocks
    document = json.loads(shown.text("report.json"))
    names = {file.stem for file in (shown.folder / "tables").glob("*.csv")}
    assert set(document["tables"]) == names == set(shown.results.tables)
    assert document["blocks"][0]["answer"] == answer(block)
    for name, lines in document["tables"].items():
        rows = list(csv.DictReader(io.StringIO(shown.text(f"tables/{name}.csv"))))
        assert len(rows) == len(lines) == len(shown.results.tables[name])
        for row, line in zip(rows, lines, strict=True):
            assert row == {key: "" if value is None else str(value) for key, value in line.items()}
    for entrant in block.compared:
        (line,) = [
            line
            for line in document["tables"]["differences"]
            if line["method"] == entrant.method and line["primary"]
        ]
        found = entrant.differences[block.k]
        assert (line["difference"], line["low"], line["high"]) == (found.effect.difference, *found.interval)
        scores = [
            line["score"]
            for line in document["tables"]["scores"]
            if (line["method"], line["k"]) == (entrant.method, block.k)
        ]
        assert scores == [own.scores[block.k].value for own in entrant.on.values()]
    seeds = shown.results.all_seeds
    trials = document["tables"]["trials"]
    assert [line["trial_id"] for line in trials] == [seed.trial_id for seed in seeds]
    assert [line["failed"] for line in trials] == list(map(shown.analysis.failed, seeds))
    assert any(line["failed"] for line in trials)


def test_a_notebook_shows_the_scores_of_the_terminal(shown: Shown) -> None:
    results, terminal = shown.results, shown.views["terminal"]
    overview = summary_of(shown.uri, NAME).overview(NAME)
    table = ElementTree.fromstring(overview.html()).find("table")
    assert table is not None
    heads, *lines = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    assert [line[heads.index("method")] for line in lines] == [c.method for c in results.all_cells]
    for line in lines:
        assert line[heads.index("score")] in terminal
    assert len(str(results).splitlines()) > len(lines)
    assert results.answer == "\n".join(answers(results.analysis))
    assert {results.answer, "Made up, [all] of it."} <= {*overview.notes}


def test_lost_trials_are_shown_and_not_averaged(shown: Shown) -> None:
    lost = [seed for seed in shown.results.all_seeds if not seed.finished]
    assert lost
    page = shown.views["index.html"]
    assert f"{len(lost)} failed or missing trial" in page
    for seed in lost:
        assert (seed.failure or "missing") in page
    terminal = shown.views["terminal"]
    assert re.search(r"1 trial\(s\) failed", terminal)
    assert re.search(r"1 trial\(s\) are missing", terminal)
    for cell in shown.results.all_cells:
        if cell.studies is None and not cell.complete:
            scores = [seed.score for seed in cell.trials if seed.finished]
            assert cell.mean == pytest.approx(sum(scores) / len(scores))
            text = f"{100 * (cell.mean or 0):.2f} ± {100 * (cell.sd or 0):.2f} †"
            assert text in shown.views["tables/tables.md"]


def drawings(text: str) -> list[str]:
    """The shapes in each figure of a page, without their colours and links."""
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    shapes = (" ".join(re.findall(r' d="[^"]*"|<text[^>]*>|<title>[^<]*', figure)) for figure in figures)
    return [re.sub('fill: [^;"]*|stroke: [^;"]*', "", each) for each in shapes]


def test_a_notebook_draws_the_figures_of_the_page(shown: Shown) -> None:
    on_page = drawings(shown.text("index.html"))
    figures = shown.results.plot()
    kinds = {"differences", "differences-by-task", "score-vs-parameters", "score-vs-memory"}
    kinds |= {"curves", "rates"} if shown.analysis.blocks[0].tuned else set()
    assert {figure.kind for figure in figures} >= kinds
    for figure in figures:
        (drawing,) = drawings(Figures([figure])._repr_html_())
        assert drawing in on_page, figure.name
        text = figure._repr_html_()
        assert "var(--" not in text
        assert 'href="#trial' not in text
    assert [figure.kind for figure in shown.results.plot("differences")] == ["differences"]
    with pytest.raises(UnknownNameError, match="differences"):
        shown.results.plot("difference")


def test_a_figure_is_saved_as_the_report_saves_it(shown: Shown, tmp_path: Path) -> None:
    (figure,) = shown.results.plot("differences")
    for suffix in (".svg", ".png"):
        saved = figure.save(tmp_path / f"mine{suffix}")
        assert saved.read_bytes() == (shown.folder / f"figures/{figure.name}{suffix}").read_bytes()
    for path in ("figure.pdf", "figure", "no/folder.svg"):
        with pytest.raises(UserError, match="figure"):
            figure.save(tmp_path / path)
    evil = Drawn(figure.name, EVIL, EVIL, EVIL, figure.figure, figure.tips)
    assert "<script" not in evil._repr_html_()


def test_names_are_text_in_every_view(shown: Shown) -> None:
    results = shown.results
    cells = [replace(cell, method=cell.method.replace("LoTR", EVIL)) for cell in results.all_cells]
    attacked = LoadedResults(results.experiments, tuple(cells), ())
    files = compose(attacked, ["html", "md", "latex", "csv", "json"]).files
    clean = (shown.folder / "index.html").read_text()
    for name, text in files.items():
        if name.endswith((".html", ".md")):
            assert EVIL not in str(text), name
    for tag in ("<script", "<title", "<a", "<img"):
        assert str(files["index.html"]).count(tag) == clean.count(tag)
    assert EVIL in attacked.overview().text()
    assert EVIL not in attacked._repr_html_()


def test_unfinished_results_have_nothing_to_draw(shown: Shown) -> None:
    results = shown.results
    none = {"finished": 0, "complete": False, "metric": "", "mean": None}
    lost = {
        cell.number: tuple(replace(seed, status="MISSING") for seed in cell.trials)
        for cell in results.all_cells
    }
    cells = tuple(replace(cell, **none, trials=lost[cell.number]) for cell in results.all_cells)
    unfinished = LoadedResults(results.experiments, cells, ())
    with pytest.raises(UserError, match="figure"):
        unfinished.plot()
    assert any(word in unfinished.answer for word in ("No study is complete", "No seed has finished"))


# --- files ---


def test_every_format_is_written_and_logged_on_the_suites_run(shown: Shown) -> None:
    files = set(json.loads(shown.text(MANIFEST)))
    assert {"index.html", "report.json", "tables/tables.md", "tables/tables.tex", "tables/cells.csv"} <= files
    figures = {Path(name).stem for name in files if name.startswith("figures/")}
    assert {f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")} <= files
    opened = Store.existing(shown.uri, NAME)
    suite_run = opened.records(RunKind.SUITE)[-1].run_id
    logged = {file.path for file in opened.client.list_artifacts(suite_run, "report")}
    assert {"report/index.html", "report/report.json", "report/tables", "report/figures"} == logged


def test_the_report_of_a_store_that_can_only_be_read_is_written_and_not_logged(
    call: Call, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("read-only file system")

    # Nothing is read-only to root.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr(Store, "keep_folder", refuse)
    ended = call("report", "small", "--store", small, "--out", tmp_path / "out", "--format", "json")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "report.json").exists()
    assert "suite run of small" in ended.out
    assert "note: 2 seeds" in ended.out
    monkeypatch.undo()
    monkeypatch.setattr(Store, "keep_folder", refuse)
    ended = call("report", "small", "--store", small, "--out", tmp_path / "other", "--format", "json")
    assert ended.code == 2


def test_formats_can_be_picked(small: str, tmp_path: Path) -> None:
    done = write_report("small", out=tmp_path / "out", store=small, formats=["json", "md"], log=False)
    assert set(done.files) == {"report.json", "tables/tables.md"}
    with pytest.raises(UserError, match=naming("'pdf'", "csv, html")):
        write_report("small", out=tmp_path / "other", store=small, formats=["pdf"])
    assert not (tmp_path / "other").exists()


def test_a_folder_in_use_needs_force_which_spares_what_is_not_the_reports(small: str, tmp_path: Path) -> None:
    write_report("small", out=tmp_path, store=small, formats=["json", "md"], log=False)
    mine = tmp_path / "tables" / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(UserError, match="--force"):
        write_report("small", out=tmp_path, store=small, formats=["json"], log=False)
    write_report("small", out=tmp_path, store=small, formats=["json"], log=False, force=True)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "tables" / "tables.md").exists()
    (tmp_path / MANIFEST).write_text("5")
    with pytest.raises(UserError, match="cannot be written"):
        write_report("small", out=tmp_path, store=small, formats=["json"], log=False, force=True)


def test_a_later_report_replaces_the_one_on_the_suites_run(small: str, tmp_path: Path) -> None:
    opened = Store.existing(small, "small")
    suite_run = opened.records(RunKind.SUITE)[-1].run_id
    for format_, files in (("json", ["report/report.json"]), ("md", ["report/tables"])):
        write_report("small", out=tmp_path / format_, store=small, formats=[format_])
        assert [file.path for file in opened.client.list_artifacts(suite_run, "report")] == files


def test_an_experiment_that_is_not_there_gets_the_nearest_name(
    call: Call, small: str, tmp_path: Path
) -> None:
    ended = call("report", "smal", "--store", small, "--out", tmp_path / "out")
    assert ended.code == 2
    assert re.search(naming("no experiment 'smal'", "'small'"), ended.err)
    assert not (tmp_path / "out").exists()
