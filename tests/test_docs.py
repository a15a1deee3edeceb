"""Tests that the lists in the documents equal those of the program."""

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

from bench.backbones import BackboneSpec
from bench.plan.choosing import (
    Allocation,
    Centres,
    HeadRates,
    Lengths,
    Pilot,
    Search,
    Studies,
    Tuning,
    Window,
)
from bench.plan.recipe import Recipe
from bench.plan.suite import Suite
from bench.plan.suite_file import load_suite
from bench.plan.suite_rows import Budget, MethodRow, TaskRow
from methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"

SECTIONS: dict[str, type[BaseModel]] = {
    "The suite": Suite,
    "A task": TaskRow,
    "A backbone": BackboneSpec,
    "A method": MethodRow,
    "A budget": Budget,
    "The recipe": Recipe,
    "`tuning`": Tuning,
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
    """Each section's fields with one column of its table, without code marks."""
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


def test_links_between_pages_lead_somewhere() -> None:
    root = DOCS.parent
    pages = [*root.glob("*.md"), *root.glob("*/*.md"), *DOCS.glob("*/*.md")]
    broken = [
        f"{page.relative_to(root)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        # The site of published results is generated and not committed.
        if "://" not in link and "../leaderboard/" not in link and not (page.parent / link).exists()
    ]
    assert len(pages) > 20
    assert not broken


def test_the_files_that_contributing_and_ci_name_exist() -> None:
    root = DOCS.parent
    page = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", page)
    tried = re.findall(r"tests/[\w/.]+", (root / ".ci" / "floors").read_text(encoding="utf-8"))
    assert named
    assert tried
    assert [path for path in (*named, *tried) if not (root / path).exists()] == []


def anchors(text: str) -> set[str]:
    """The link targets of a page, named like GitHub's."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    slugs = {
        re.sub(r"[^\w\- ]", "", re.sub(r"\]\(\S*\)", "", table_rows)).lower().replace(" ", "-")
        for table_rows in headings
    }
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def test_links_within_pages_lead_to_a_heading() -> None:
    root = DOCS.parent
    pages = {
        page: page.read_text(encoding="utf-8")
        for page in [*root.glob("*.md"), *root.glob("*/*.md"), *DOCS.glob("*/*.md")]
    }
    links = [
        (page, target, anchor)
        for page, text in pages.items()
        for target, anchor in re.findall(r"\]\(((?!\w+://)[^)#\s]*)#([^)\s]+)\)", text)
        if not target or target.endswith(".md")
    ]
    assert len(links) > 50
    broken = [
        f"{page.relative_to(root)}: {target}#{anchor}"
        for page, target, anchor in links
        if anchor not in anchors(pages[(page.parent / target).resolve() if target else page])
    ]
    assert not broken


def test_every_table_has_a_heading() -> None:
    root = DOCS.parent
    for page in [*root.glob("*.md"), *root.glob("*/*.md"), *DOCS.glob("*/*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
            assert re.match(r"\|.*\n\|[-:| ]+\|\n", table), f"{page.relative_to(root)}: {table[:60]}"


@pytest.mark.parametrize(
    ("page", "names"),
    [("README.md", ["my_suite", "mine"]), ("docs/start.md", ["mine"]), ("docs/guides/own-data.md", ["mine"])],
)
def test_suites_printed_on_pages_validate(tmp_path: Path, page: str, names: list[str]) -> None:
    rows = "".join(f"words {number},{number % 2}\n" for number in range(200))
    (tmp_path / "data").mkdir()
    for file in ("reviews.csv", "data/reviews.csv"):
        (tmp_path / file).write_text(f"body,stars\n{rows}")
    loaded = []
    for text in re.findall(
        r"```yaml\n(name: .*?)```", (DOCS.parent / page).read_text(encoding="utf-8"), re.S
    ):
        (tmp_path / "suite.yaml").write_text(text)
        loaded.append(load_suite(tmp_path / "suite.yaml").name)
    assert loaded == names


def test_every_option_of_a_method_is_documented_with_its_default() -> None:
    sections = table_rows("reference/methods.md", column=3)
    # Methods without options share a section.
    assert not sections.pop("`head_only`, `converged_head` and `full`")
    bare = {"head_only", "converged_head", "full"}
    assert not any(METHODS.get(name).model_fields for name in bare)
    assert {heading.strip("`") for heading in sections} == set(METHODS) - bare
    for heading, options in sections.items():
        fields = METHODS.get(heading.strip("`")).model_fields
        # Without cuts no rank is free to change.
        assert options == {
            name: default(field, "–" if name == "cuts" else "free").strip('"')
            for name, field in fields.items()
        }


def test_every_value_that_a_method_takes_is_documented() -> None:
    for heading, accepted in table_rows("reference/methods.md", column=2).items():
        for option, values in accepted.items():
            annotation = METHODS.get(heading.strip("`")).model_fields[option].annotation
            if get_origin(annotation) is Literal:
                assert values.replace("`", "").split(", ") == list(get_args(annotation)), (heading, option)


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
    ],
)
def test_a_table_is_what_its_script_makes(page: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    text = (DOCS / page).read_text(encoding="utf-8")
    rewritten: str = importlib.import_module(script).rewritten(text)
    assert rewritten == text, f"run python docs/{script}.py"


def test_the_findings_are_what_the_packs_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    findings = importlib.import_module("findings")
    answers = findings.answers()
    for page, text in findings.pages(answers).items():
        assert page.read_text(encoding="utf-8") == text, "run python docs/findings.py"
    pictures = [picture for answer in answers.values() for picture in answer.pictures]
    assert set((DOCS / "pictures").glob("findings-*.svg")) == {picture.path for picture in pictures}
    for picture in pictures:
        drawn = ElementTree.fromstring(picture.path.read_text(encoding="utf-8"))
        described = drawn.find("{http://www.w3.org/2000/svg}desc")
        assert described is not None
        assert described.text == picture.alternative, "run python docs/findings.py"


def test_the_table_of_kinds_is_what_the_kinds_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    page = importlib.import_module("backbones")
    text = page.PAGE.read_text(encoding="utf-8")
    checks = page.checks_of(text)
    assert page.stated(text) == page.table(checks), "run python docs/backbones.py"
    passed = [cell.split(" of ") for cell in checks.values()]
    assert all(number == applicable and int(applicable) > 15 for number, applicable in passed)
    assert page.table({**checks, "vit": "0 of 1"}) != page.stated(text)
