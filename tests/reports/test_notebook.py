"""Tests that results show the same in a notebook as on the page of their report."""

from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

import tensorbench
from tensorbench.methods import UnknownNameError, UserError
from tensorbench.reports.drawing import Drawn, Figures
from tensorbench.reports.overview import counts
from tensorbench.reports.results import Results

from ..stored import write
from . import made_up, made_up_studies
from .made_up import NewStore

EVIL = "</td><script>alert(1)</script>"


@pytest.fixture(scope="module")
def results(rich: str) -> Results:
    return tensorbench.load_results(made_up.NAME, store=rich)


@pytest.fixture(scope="module")
def studied_uri(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    uri = new_store(tmp_path_factory.mktemp("studied"))
    write(uri, made_up_studies.plan_of(closing="Made up."), made_up_studies.result)
    return uri


@pytest.fixture(scope="module")
def studied(studied_uri: str) -> Results:
    return tensorbench.load_results(made_up_studies.NAME, store=studied_uri)


@pytest.fixture(scope="module")
def studied_page(studied_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    tensorbench.write_report(studied_uri, [made_up_studies.NAME], out)
    return out / "index.html"


def table_of(results: Results) -> pd.DataFrame:
    table = ElementTree.fromstring(results._repr_html_()).find("table")
    assert table is not None
    heads, *lines = [[cell.text for cell in row] for row in table.iter("tr")]
    return pd.DataFrame(lines, columns=heads)


def test_results_show_the_scores_of_their_cells(results: Results) -> None:
    shown = table_of(results)
    cells = results.cells.head(len(shown))
    assert shown["method"].tolist() == cells["method"].tolist()
    assert shown["trials"].tolist() == [
        f"{cell.finished}/{cell.seeds}" for cell in results.all_cells[: len(shown)]
    ]
    means = [score.split(" ")[0] for score in shown["score"]]
    assert means == ["–" if pd.isna(mean) else f"{mean:.4f}" for mean in cells["mean"]]
    assert len(str(results).splitlines()) > len(shown)


def test_results_of_studies_show_what_studies_kept(studied: Results) -> None:
    shown = table_of(studied)
    trials = studied.seeds[studied.seeds["cell"] == shown.index[shown["method"] == "LoRA"][0]]
    kept = trials.loc[trials.groupby("study")["validation_loss"].idxmin(), "score"]
    assert shown.loc[shown["method"] == "LoRA", "score"].iloc[0] == f"{kept.mean():.4f} ± {kept.std():.4f}"
    missing = shown[(shown["method"] == "LoTR") & (shown["task"] == "digits")]
    assert missing[["studies", "trials"]].values.tolist() == [["3/4", "15/16"]]


def test_trials_of_two_budgets_are_counted_once(results: Results) -> None:
    finished = results.seeds[results.seeds["status"] == "FINISHED"]["trial_id"].nunique()
    assert counts(results.all_seeds).startswith(f"{finished:,} of {results.seeds['trial_id'].nunique():,} ")


def test_a_hostile_label_is_a_text(results: Results) -> None:
    attacked = Results(results.experiments, results.cells.assign(method=EVIL), results.seeds, ())
    assert set(table_of(attacked)["method"]) == {EVIL}


def drawings(text: str) -> list[str]:
    """The shapes in each figure of a page, without their colours and links."""
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    return [" ".join(re.findall(r' d="[^"]*"|<text[^>]*>|<title>[^<]*', figure)) for figure in figures]


@pytest.mark.parametrize("kind", ["seeds", "studies"])
def test_plots_are_the_drawings_of_the_page(kind: str, request: pytest.FixtureRequest) -> None:
    names = {"seeds": ("results", "page"), "studies": ("studied", "studied_page")}[kind]
    shown, page = map(request.getfixturevalue, names)
    on_page = drawings(page.read_text())
    figures = shown.plot()
    assert len(figures) >= 4
    for figure in figures:
        (drawing,) = drawings(Figures([figure])._repr_html_())
        assert len(drawing) > 1000
        colours = re.compile('fill: [^;"]*|stroke: [^;"]*')
        assert colours.sub("", drawing) in [colours.sub("", each) for each in on_page], figure.name


def test_a_figure_in_a_notebook_needs_nothing_of_the_page(studied: Results) -> None:
    text = studied.plot("rates")._repr_html_()
    assert "var(--" not in text
    assert 'href="#trial' not in text
    assert "<title>" in text
    (figure,) = studied.plot("rates")
    assert html.escape(figure.caption) in text


def test_a_figure_escapes_its_words(studied: Results) -> None:
    (figure,) = studied.plot("differences")
    evil = Drawn(figure.name, EVIL, EVIL, EVIL, figure.figure, figure.tips)
    assert "<script" not in evil._repr_html_()


def test_kinds_are_chosen_by_name(studied: Results) -> None:
    kinds = [figure.kind for figure in studied.plot()]
    assert kinds == ["differences", "differences-by-task", "curves", "rates"]
    assert [figure.kind for figure in studied.plot("rates", "differences")] == ["differences", "rates"]
    with pytest.raises(UnknownNameError, match="rates"):
        studied.plot("rate")


def test_nothing_to_draw_is_said(studied: Results) -> None:
    unfinished = Results(studied.experiments, studied.cells, studied.seeds.assign(status="MISSING"), ())
    with pytest.raises(UserError, match="figure"):
        unfinished.plot()
    assert "complete" in unfinished.answer


def test_a_figure_is_saved_as_the_report_saves_it(
    studied: Results, studied_page: Path, tmp_path: Path
) -> None:
    (figure,) = studied.plot("differences")
    for suffix in (".svg", ".png"):
        saved = figure.save(tmp_path / f"mine{suffix}")
        assert saved.read_bytes() == (studied_page.parent / f"figures/{figure.name}{suffix}").read_bytes()


def test_a_figure_has_no_other_format(studied: Results, tmp_path: Path) -> None:
    (figure,) = studied.plot("differences")
    for path in ("figure.pdf", "figure", "no/folder.svg"):
        with pytest.raises(UserError, match="figure"):
            figure.save(tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_the_answer_is_the_page_s(studied: Results, studied_page: Path, results: Results, page: Path) -> None:
    assert html.escape(studied.answer, quote=False) in html.unescape(studied_page.read_text()).replace(
        "&", "&amp;"
    )
    first, *_ = results.answer.splitlines()
    assert first in html.unescape(page.read_text())


def test_tables_are_those_of_the_report(studied: Results, studied_page: Path) -> None:
    names = {file.stem for file in (studied_page.parent / "tables").glob("*.csv")}
    assert set(studied.tables) == names
    (block,) = studied.analysis.blocks
    differences = studied.tables["differences"]
    assert set(differences.loc[differences["primary"], "method"]) == {e.method for e in block.compared}


def test_a_selection_is_of_rows_and_comparisons(studied_uri: str) -> None:
    selection = tensorbench.Selection(methods=["lotr"], reference="TensLoRA att")
    part = tensorbench.load_results(made_up_studies.NAME, store=studied_uri, selection=selection)
    assert set(part.cells["method"]) == {"LoTR", "TensLoRA att"}
    (block,) = part.analysis.blocks
    assert block.against == "TensLoRA att"
