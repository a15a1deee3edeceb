"""Tests that tables and lists in the documentation say what the program does, and that links work."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin
from xml.etree import ElementTree

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tensorbench.backbones import BackboneSpec
from tensorbench.methods import METHODS
from tensorbench.plan.choosing import (
    Allocation,
    Centres,
    HeadRates,
    Lengths,
    Pilot,
    Search,
    Studies,
    Window,
)
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_rows import Budget, MethodRow, TaskRow

DOCS = Path(__file__).parents[1] / "docs"

SECTIONS: dict[str, type[BaseModel]] = {
    "The suite": Suite,
    "A task": TaskRow,
    "A backbone": BackboneSpec,
    "A method": MethodRow,
    "A budget": Budget,
    "The recipe": Recipe,
    "Studies": Studies,
    "The window of studies": Window,
    "`pilot`": Pilot,
    "A pilot's `head_lr`": HeadRates,
    "A pilot's `epochs`": Lengths,
    "A pilot's `centres`": Centres,
    "`search`": Search,
    "`allocation`": Allocation,
}


def table_rows(page: str, column: int) -> dict[str, dict[str, str]]:
    """Reads two columns of the tables on a page: the first column, and the one with the number `column`.

    For each section, by its heading, returns a map from the first to the other column. Rows that do not begin
    with a backquote are left out. Backquotes around cells are removed.
    """
    sections = {}
    for section in (DOCS / page).read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, rows = section.split("\n", 1)
        cells = [[cell.strip() for cell in row.split("|")] for row in re.findall(r"^\| `.*\|$", rows, re.M)]
        sections[heading] = {row[1].strip("`"): row[column].strip("`") for row in cells}
    return sections


def default(field: FieldInfo, none: str) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return none if value is None else json.dumps(value)


def test_the_files_that_pages_and_ci_name_exist() -> None:
    root = DOCS.parent
    folders = "bench|methods|baselines|reports|tests|tools|suites|docs|results|[.]ci"
    named = {
        (str(page.relative_to(root)), path)
        for page in [*root.glob("*.md"), *DOCS.glob("**/*.md")]
        for path in re.findall(rf"`((?:{folders})/[a-z_/.0-9-]*)`", page.read_text(encoding="utf-8"))
    }
    tried = re.findall(r"tests/[\w/.]+", (root / ".ci" / "floors").read_text(encoding="utf-8"))
    assert len(named) > 50
    assert tried
    assert [path for path in tried if not (root / path).exists()] == []
    assert [pair for pair in sorted(named) if not (root / pair[1]).exists()] == []


def anchors(text: str) -> set[str]:
    """The anchors to which links within a page can lead, named as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    slugs = {
        re.sub(r"[^\w\- ]", "", re.sub(r"\]\(\S*\)", "", heading)).lower().replace(" ", "-")
        for heading in headings
    }
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    root = DOCS.parent
    files = [*root.glob("*.md"), *root.glob("*/*.md"), *DOCS.glob("*/*.md")]
    return {page: page.read_text(encoding="utf-8") for page in files}


def test_links_lead_to_a_file_and_a_heading(pages: dict[Path, str]) -> None:
    links = [
        (page, target, anchor)
        for page, text in pages.items()
        for target, anchor in re.findall(r"\]\(((?!\w+://)[^)#\s]*)(?:#([^)\s]+))?", text)
    ]
    broken = []
    for page, target, anchor in links:
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(pages[file])):
            broken.append((page, target, anchor))
    assert broken == []
    assert len(pages) > 20
    assert sum(bool(anchor) for *_, anchor in links) > 40


def test_every_table_has_a_heading(pages: dict[Path, str]) -> None:
    for page, content in pages.items():
        text = re.sub(r"^```.*?^```", "", content, flags=re.M | re.S)
        for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
            assert re.match(r"\|.*\n\|[-:| ]+\|\n", table), f"{page}: {table[:60]}"


def depths_of_items(page: str) -> list[int]:
    """The depth of each list item of a page in HTML."""
    depth, depths = 0, []
    for closing, tag in re.findall(r"<(/?)(ul|ol|li)\b", page):
        if tag == "li":
            depths += [depth] * (not closing)
        else:
            depth += -1 if closing else 1
    return depths


def test_the_site_nests_lists_as_github_does(pages: dict[Path, str]) -> None:
    pytest.importorskip("pymdownx", reason="the extra docs is not installed")
    markdown = pytest.importorskip("markdown")
    on_github = pytest.importorskip("markdown_it").MarkdownIt().render
    nested = {page: depths_of_items(on_github(text)) for page, text in pages.items() if DOCS in page.parents}
    on_site = {
        page: depths_of_items(markdown.markdown(pages[page], extensions=["pymdownx.superfences"]))
        for page in nested
    }
    assert [page for page in nested if on_site[page] != nested[page]] == []
    assert sum(2 in depths for depths in nested.values()) > 1


#: The options that methods share. methods.md explains them once, and the tables of methods leave them out.
SHARED = {"rank", "targets", "scale", "dropout", "shared_heads"}
TARGETS = ("qv", "qkv", "qkvo", "qkvo+mlp")


def options_of_methods(column: int) -> dict[str, dict[str, str]]:
    """Reads a column of each method's table of options in methods.md, as {method: {option: cell}}."""
    sections = table_rows("reference/methods.md", column)
    methods = {heading.strip("`"): options for heading, options in sections.items() if heading[0] == "`"}
    bare = methods.pop("head_only`, `converged_head` and `full")
    return methods | dict.fromkeys(("head_only", "converged_head", "full"), bare)


def test_every_option_of_a_method_is_documented_with_its_default() -> None:
    sections = options_of_methods(column=3)
    assert set(sections) == set(METHODS)
    for name, options in sections.items():
        fields = METHODS.get(name).model_fields
        assert options == {
            option: default(field, "free").strip('"')
            for option, field in fields.items()
            if option not in SHARED
        }


def test_every_method_has_its_equation() -> None:
    text = (DOCS.parent / "methods" / "equations.md").read_text()
    heads = {re.sub("[^a-z]", "", head.lower()) for head in re.findall(r"^\*\*([^*]+)\*\*", text, re.M)}
    plain = {name: name.replace("_", "") for name in METHODS if name != "peft" and METHODS.is_built_in(name)}
    # One text covers both forms of FacT, and "Full fine-tuning" is the method `full`.
    lacking = [
        name
        for name, word in plain.items()
        if not any(head.startswith(word) or word.startswith(head) for head in heads)
    ]
    assert lacking == []


def test_options_that_methods_share_mean_the_same_in_each() -> None:
    for name in METHODS:
        fields = METHODS.get(name).model_fields
        if "rank" in fields:
            assert fields["rank"].default is None, name
        if "targets" in fields:
            taken = get_args(fields["targets"].annotation)
            assert taken == TARGETS[name in {"tenslora", "peft"} :], name
        if "shared_heads" in fields:
            assert (get_args(fields["shared_heads"].annotation)[0], fields["shared_heads"].default) == (
                "tied",
                "tied",
            ), name


def test_every_value_that_a_method_takes_is_documented() -> None:
    for name, accepted in options_of_methods(column=2).items():
        for option, values in accepted.items():
            annotation = METHODS.get(name).model_fields[option].annotation
            if get_origin(annotation) is Literal:
                assert values.replace("`", "").split(", ") == list(get_args(annotation)), (name, option)


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_field_of_a_suite_is_documented_with_its_default(heading: str) -> None:
    fields = SECTIONS[heading].model_fields
    assert table_rows("reference/suite.md", column=2)[heading] == {
        name: default(field, "–") for name, field in fields.items()
    }


@pytest.mark.parametrize(
    ("page", "script"),
    [
        ("reference/methods.md", "method_table"),
        ("reference/peft.md", "peft_table"),
        ("guides/export.md", "export_table"),
        ("results/learning-rate-matters.md", "learning_rates"),
        ("board.md", "board"),
    ],
)
def test_a_table_is_what_its_script_makes(page: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    text = (DOCS / page).read_text(encoding="utf-8")
    rewritten: str = importlib.import_module(script).rewritten(text)
    assert rewritten == text, f"run python docs/{script}.py"


def description(drawing: str) -> str | None:
    """The numbers of a figure as text, which its file holds."""
    return ElementTree.fromstring(drawing).findtext("{http://www.w3.org/2000/svg}desc")


def test_the_results_pages_are_what_the_packs_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    for page, text in importlib.import_module("findings").pages().items():
        stored = page.read_text(encoding="utf-8")
        if page.suffix == ".svg":
            # Lines of a drawing depend on the version of matplotlib.
            stored, text = description(stored), description(text)
        assert stored == text, "run python docs/findings.py"
    assert description((DOCS / "pictures/findings-study.svg").read_text(encoding="utf-8"))


def test_with_too_few_studies_the_results_pages_have_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.setattr(importlib.import_module("answers.studies"), "LEAST_SEEDS", 99)
    page = importlib.import_module("findings").pages()[DOCS / "results/findings.md"]
    assert "findings-study.svg" not in page
    # The answers of six questions, the first of them twice, the costs and the advice.
    assert page.count("studies complete, and an interval needs 99") == 9


def test_the_table_of_kinds_is_what_the_kinds_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    page = importlib.import_module("backbones")
    text = page.PAGE.read_text(encoding="utf-8")
    checks = page.checks_of(text)
    assert page.stated(text) == page.table(checks), "run python docs/backbones.py"
    passed = [cell.split("/") for cell in checks.values()]
    assert all(number == applicable and int(applicable) > 15 for number, applicable in passed)
    assert page.table({**checks, "vit": "0/1"}) != page.stated(text)
