"""Writes the API reference from docstrings: `python docs/api.py FOLDER`.

Raises SystemExit with a line for each fault. A public name without a docstring is a fault, and so is a
docstring that names something that does not exist.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pdoc
from pdoc.doc import Class, Doc, Function, Module

#: The modules that users and plug-ins import. Other modules may move.
PUBLIC = (
    "tensorbench",
    "tensorbench.run.suites",
    "tensorbench.plan.suite",
    "tensorbench.plan.suite_rows",
    "tensorbench.plan.recipe",
    "tensorbench.plan.choosing",
    "tensorbench.plan.rows",
    "tensorbench.plan.trial",
    "tensorbench.tasks",
    "tensorbench.tasks.data_tasks",
    "tensorbench.backbones",
    "tensorbench.backbones.inputs",
    "tensorbench.checks.conformance",
    "tensorbench.records.stored_plan",
    "tensorbench.records.words",
    "tensorbench.methods",
    "tensorbench.methods.lowrank",
    "tensorbench.methods.sizes",
    "tensorbench.reports.results",
    "tensorbench.reports.report",
)

#: Matches a dotted name of ours between backquotes in a docstring.
NAMED = re.compile(r"`(tensorbench(?:\.\w+)+)(?:\(\))?`")


def build(folder: Path) -> list[str]:
    """Writes the pages of all public modules into a folder and returns the faults of their docstrings."""
    for name in PUBLIC:
        module = importlib.import_module(name)
        # pdoc would miss names that a package imports on demand.
        vars(module).update({public: getattr(module, public) for public in getattr(module, "__all__", ())})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*PUBLIC, output_directory=folder)
    for page in folder.rglob("*.html"):
        page.write_text(_without_dead_links(page.read_text(encoding="utf-8")), encoding="utf-8")
    wrong = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    for name in PUBLIC:
        for doc in _documented(Module(importlib.import_module(name))):
            if _wants_words(doc) and not doc.docstring.strip():
                wrong.append(f"{doc.fullname} has no docstring")
            missing = [named for named in NAMED.findall(doc.docstring) if not _exists(named)]
            wrong += [f"{doc.fullname} names {named}, which is not there" for named in missing]
    return wrong


def _without_dead_links(page: str) -> str:
    """The page without dead links: pdoc links to members of base classes, but does not show these."""
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    link = r'<a href="#([^"]+)">(.*?)</a>'
    return re.sub(link, lambda match: match[0] if match[1] in ids else match[2], page)


def _documented(doc: Doc) -> Iterator[Doc]:
    """Yields a module or class, then its own public definitions."""
    yield doc
    if isinstance(doc, Module | Class):
        for member in doc.own_members:
            if member.name.startswith("_") or isinstance(member, Module):
                continue
            yield from _documented(member)


def _wants_words(doc: Doc) -> bool:
    """Whether a name needs a docstring. Constants, fields and overriding methods need none."""
    if isinstance(doc, Function):
        return not any(doc.name in vars(base) for base in _bases(doc))
    return isinstance(doc, Module | Class)


def _bases(doc: Function) -> tuple[type, ...]:
    owner = getattr(importlib.import_module(doc.modulename), doc.qualname.partition(".")[0], None)
    return inspect.getmro(owner)[1:] if inspect.isclass(owner) else ()


def _exists(dotted: str) -> bool:
    """Whether a dotted name leads to a module or to a member of a module."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            fields = getattr(target, "model_fields", {}) | getattr(target, "__annotations__", {})
            if attribute in fields:
                return True
            if not hasattr(target, attribute):
                return False
            target = getattr(target, attribute)
        return True
    return False


if __name__ == "__main__":
    if problems := build(Path(sys.argv[1])):
        raise SystemExit("\n".join(problems))
