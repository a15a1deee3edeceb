"""Tests the documentation as a site: links, navigation, and that it asks no foreign host for anything."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
#: The addresses in a stylesheet that a browser requests.
REQUESTED = re.compile(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""")


class Page(HTMLParser):
    """The addresses of a page: those that links lead to and those that a browser requests. Also its ids."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.requests: list[str] = []
        self.ids: set[str] = set()
        self._style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self._style = tag == "style"
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        addresses = [values[name] for name in ("href", "src", "data") if name in values]
        (self.links if tag == "a" else self.requests).extend(addresses)
        self.requests += REQUESTED.findall(values.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._style:
            self.requests += REQUESTED.findall(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, made by .ci/site in a copy of the documentation, with one published result. Read only."""
    pytest.importorskip("zensical", reason="no site: pip install '.[docs]'")
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("commands.md", "notebook.md"))
    for name in ("zensical.toml", ".ci/site", "methods/equations.md"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "results").mkdir()
    shutil.copy(ROOT / "docs" / "quickstart-report" / "quickstart.tensorbench.zip", root / "results")
    programs = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    made = subprocess.run(root / ".ci" / "site", env=os.environ | programs, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return root / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def target(page: Path, address: str) -> Path:
    """The file to which a relative address on a page leads."""
    path = unquote(urlsplit(address).path)
    file = (page.parent / path).resolve() if path else page
    return file / "index.html" if file.is_dir() else file


@pytest.mark.processes
def test_no_page_asks_a_foreign_host_for_anything(site: Path, pages: dict[Path, Page]) -> None:
    requests = {(path, address) for path, page in pages.items() for address in page.requests}
    styles = list(site.rglob("*.css"))
    requests |= {
        (path, address) for path in styles for address in REQUESTED.findall(path.read_text(encoding="utf-8"))
    }
    assert len(pages) > 50
    assert styles
    assert [request for request in requests if urlsplit(request[1]).netloc] == []


@pytest.mark.processes
def test_every_link_leads_to_a_page_and_a_heading_of_the_site(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        # Absolute addresses in the page of errors are those of the published site.
        for address in () if path.name == "404.html" else {*page.links, *page.requests}:
            if urlsplit(address).scheme or urlsplit(address).netloc:
                continue
            file, anchor = target(path, address), unquote(urlsplit(address).fragment)
            has_anchor = file not in pages or not anchor or anchor in pages[file].ids
            if not (file.is_relative_to(site) and file.is_file() and has_anchor):
                broken.append((str(path.relative_to(site)), address))
    assert broken == []


@pytest.mark.processes
def test_the_site_has_pages_and_no_scripts_that_write_them(site: Path) -> None:
    assert (site / "start.ipynb").is_file()
    assert [path for path in site.rglob("*") if path.suffix == ".py" or path.name == "answers"] == []


@pytest.mark.processes
def test_the_home_page_leads_to_every_part(site: Path, pages: dict[Path, Page]) -> None:
    home = site / "index.html"
    led_to = {target(home, address) for address in pages[home].links if not urlsplit(address).netloc}
    for name in ("reference/api", "troubleshooting", "notebook", "leaderboard", "reference/commands"):
        assert site / name / "index.html" in led_to
    assert any(address.endswith("findings-study.svg") for address in pages[home].requests)
    assert "pip install" in home.read_text(encoding="utf-8")


@pytest.mark.processes
def test_published_results_lead_back_to_the_documentation(site: Path, pages: dict[Path, Page]) -> None:
    published = [path for path in pages if path.is_relative_to(site / "leaderboard")]
    assert len(published) > 1
    for path in published:
        assert site / "index.html" in {target(path, address) for address in pages[path].links}


def messages() -> Iterator[str]:
    """The texts of the program, with "…" for each value in them."""
    for package in ("bench", "methods", "baselines", "reports"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_messages_on_the_page_of_troubleshooting_are_those_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+)` \|", page.partition("## A run fails")[0], re.M)
    texts = list(messages())
    assert len(listed) > 10
    for message in listed:
        pieces = [re.escape(piece) for piece in message.split("…") if piece.strip()]
        found = re.compile(".*".join(pieces), re.DOTALL)
        assert any(found.search(text) for text in texts), message
