"""Tests the site of published results: contents, links and refusals."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from os.path import normpath
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

import pytest

from tensorbench.machine.outputs import Files, put_files
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports.answers import answer
from tensorbench.reports.site import (
    packs_in,
    published,
    site_files,
)

from ..fixtures import Call
from ..packs import changed, edit_json, packed
from ..stored import Result
from . import made_up_studies
from .made_up import SMALL, Stored, plan_of

EVIL = "=cmd|'/C calc'!A0<script>alert(1)</script>"


def evil(content: dict[str, bytes]) -> None:
    """Changes a pack into the pack of a second suite, in which every name is an attack."""

    def rename(plan: dict[str, Any]) -> None:
        for row in plan["rows"]:
            names = dict.fromkeys(("title", "task", "backbone", "budget", "family"), EVIL)
            row.update(names, method=EVIL + row["method"])
        for trial in plan["trials"]:
            trial["method"]["method"] = EVIL
        plan["closing"] = EVIL

    edit_json("experiment.json", lambda experiment: experiment.update(name="evil"))(content)
    edit_json("plan.json", rename)(content)


@pytest.fixture(scope="module")
def results(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two packs and a text file. Tests only read it."""
    folder = tmp_path_factory.mktemp("published") / "results"
    pack = packed(small, "small", folder.with_name("made"))
    folder.mkdir()
    shutil.copy(pack, folder / pack.name)
    changed(pack, folder / "evil.tensorbench.zip", evil)
    (folder / "README.md").write_text("# Packs\n")
    return folder


@pytest.fixture(scope="module")
def site(results: Path) -> Files:
    return site_files(packs_in(results))


@pytest.fixture(scope="module")
def written(site: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site on disk. Tests only read it."""
    folder = tmp_path_factory.mktemp("site")
    put_files(folder, site)
    return folder


class Links(HTMLParser):
    """The link targets and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.to: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.to += [address for name in ("href", "src") if (address := values.get(name))]
        self.ids += [id_ for id_ in (values.get("id"),) if id_]


def test_every_link_leads_to_something_of_the_site(written: Path) -> None:
    pages = {path.resolve(): Links(path.read_text()) for path in written.rglob("*.html")}
    assert len(pages) == 1 + 2
    led_to = set()
    for path, page in pages.items():
        for address in page.to:
            if address.startswith("data:"):
                continue
            assert not re.match(r"\w+:|/", address), address
            file, _, anchor = address.partition("#")
            target = (path.parent / unquote(file)).resolve() if file else path
            assert target.is_file(), (path, address)
            if anchor:
                assert anchor in pages[target].ids, (path, address)
            led_to.add(target)
    assert pages.keys() <= led_to | {written.resolve() / "index.html"}


@pytest.mark.parametrize("docs", ["..", "https://example.org/docs/"])
def test_every_page_leads_to_the_documentation(results: Path, docs: str) -> None:
    site = site_files([results / "small.tensorbench.zip"], docs)
    pages = {name: Links(str(content)) for name, content in site.items() if name.endswith(".html")}
    for name, page in pages.items():
        led_to = set(page.to)
        if docs == "..":
            led_to = {normpath(PurePath("leaderboard", name).parent / address) for address in page.to}
        assert ("index.html" if docs == ".." else f"{docs}index.html") in led_to


def test_a_reference_that_failed_is_named_before_what_is_claimed(tmp_path: Path, stored: Stored) -> None:
    def fallen(trial: Trial, row: Row) -> Result:
        return Result(score=0.9 + 0.001 * trial.seed - 0.5 * (row.title == "LoRA" and trial.seed == 1))

    pack = packed(stored(fallen, plan_of(**SMALL | {"seeds": [0, 1, 2]})), "small", tmp_path)
    (suite,) = published([pack])
    (block,) = suite.analysis.blocks
    assert block.guards
    index = html.unescape(str(site_files([pack])["index.html"]))
    assert 0 < index.index(block.guards[0]) < index.index('class="board')


def test_addresses_distinguish_names_of_packs_and_settings(tmp_path: Path, stored: Stored) -> None:
    suite = SMALL | {
        "tasks": [{"task": "digits", "label": "c"}, {"task": "textile", "label": "c++"}],
        # LoRA at rank 2 appears under both.
        "budgets": [{"isorank": 2}, {"isoparameters": 2, "tolerance": 0.2}],
    }
    uri = stored(lambda trial, row: Result(score=0.5), plan_of(**suite))
    (tmp_path / "results").mkdir()
    pack = packed(uri, "small", tmp_path).rename(tmp_path / "results" / "a#1 100%25.tensorbench.zip")
    site = site_files([pack])
    index = str(site["index.html"])
    heads = re.findall(r'<th scope="col" class="n">(c[^<]*)</th>', index)
    assert {*heads} == {"c", "c++"}
    assert "packs/a%231%20100%2525.tensorbench.zip" in Links(index).to
    assert "12 of 12 trials finished" in index


def test_the_index_opens_with_the_answer_of_each_suite(site: Files) -> None:
    index, report = (html.unescape(str(site[name])) for name in ("index.html", "suites/small/index.html"))
    (said,) = re.findall(r'<p class="answered"><b>([^<]*)</b></p>', report)
    assert f"<b>{said}</b>" in index


def test_a_suite_tuned_by_studies_is_listed_with_the_others(
    results: Path, tmp_path: Path, stored: Stored
) -> None:
    methods = ["converged_head", "lora", "lotr"]
    plan = made_up_studies.plan_of(**made_up_studies.ONE_TASK, methods=methods)
    name = made_up_studies.NAME
    pack = packed(stored(made_up_studies.result, plan), name, tmp_path)
    suite, _ = sorted(published([pack, results / "small.tensorbench.zip"]), key=lambda s: s.name != name)
    (block,) = suite.analysis.blocks
    site = site_files([pack, results / "small.tensorbench.zip"])
    index = html.unescape(str(site["index.html"]))
    # The suite with the most trials comes first.
    assert index.index(answer(block)) < index.index("suites/small/index.html")
    assert f"suites/{name}/{suite.picture}" in Links(index).to
    assert str(site[f"suites/{name}/{suite.picture}"]).startswith("<?xml")
    # The table is the report's, and its methods lead to the report.
    (entrant,) = block.compared
    shown = block.unit.difference(entrant.differences[block.k].effect.difference)
    assert shown.replace("-", "−") in index
    assert f'href="suites/{name}/index.html#suites-0-' in index


def test_names_with_html_and_formulas_are_escaped(site: Files) -> None:
    for name, content in site.items():
        if name.endswith(".html"):
            assert "<script>alert" not in str(content), name
        if name.endswith(".csv"):
            assert not re.search(r"(^|,|\")=cmd", str(content), re.M), name
    assert "&lt;script&gt;alert(1)" in str(site["index.html"])


def test_the_same_packs_elsewhere_give_the_same_files(
    results: Path, site: Files, tmp_path: Path, call: Call
) -> None:
    shutil.copytree(results, tmp_path / "again")
    done = call("tools", "site", tmp_path / "again", "--out", tmp_path / "site")
    assert done.code == 0, done.err
    assert f"Wrote {len(site)} files" in done.out
    there = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.*")}
    assert there == {*site, "site-files.json"}
    for name, content in site.items():
        written = (tmp_path / "site" / name).read_bytes()
        assert written == (content.encode() if isinstance(content, str) else content), name
    # An empty folder of packs is refused, and the existing site stays.
    (tmp_path / "none").mkdir()
    refused = call("tools", "site", tmp_path / "none", "--out", tmp_path / "site")
    assert refused.code == 2
    assert "holds no pack" in refused.err
    assert (tmp_path / "site" / "index.html").is_file()


def text(folder: Path) -> None:
    (folder / "notes.txt").write_text("")


def cut(folder: Path) -> None:
    file = folder / "small.tensorbench.zip"
    file.write_bytes(file.read_bytes()[:3000])


def inner(folder: Path) -> None:
    (folder / "more.tensorbench.zip").mkdir()


def second(folder: Path) -> None:
    shutil.copy(folder / "small.tensorbench.zip", folder / "small-2.tensorbench.zip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (text, "'notes.txt' in .* is no pack"),
        (inner, "'more.tensorbench.zip' in .* is no pack"),
        (cut, "small.tensorbench.zip is refused: it is cut"),
        (second, r"small-2\.tensor.* and small\.tensor.* both have results of 'small'"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_folder_that_makes_no_site(
    change: Callable[[Path], None], message: str, results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(results / "small.tensorbench.zip", folder)
    change(folder)
    with pytest.raises(UserError, match=message):
        site_files(packs_in(folder))
