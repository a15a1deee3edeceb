"""The methods' equations, read from `methods/equations.md`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import NamedTuple

#: Matches the beginning of a method's text: **its name**, and its source in brackets.
HEADED = re.compile(r"\*\*(?P<name>[^*]+)\*\*(?: \((?P<source>[^)]*)\))?(?P<stop>\.?)\s*")


class Paragraph(NamedTuple):
    """A paragraph of text, or a displayed equation."""

    text: str
    displayed: bool


@dataclass(frozen=True)
class Equation:
    """The text about a method, with its equations."""

    name: str
    #: The paper or code. Empty if the text names none.
    source: str
    paragraphs: tuple[Paragraph, ...]


@cache
def notation() -> tuple[Paragraph, ...]:
    """The introduction of the equations: their symbols, and what all methods have in common."""
    introduction = _text().split("\n## ")[0].partition("\n")[2]
    return tuple(_paragraph(block) for block in _blocks(introduction))


def equation_of(family: str) -> Equation | None:
    """The text about a registered method. None if there is no text, as for a method from a plug-in.

    One text may cover several methods: the text named FacT covers fact_tt and fact_tk. If the method's name
    begins with the names of several texts, the longest of these names wins. If it begins with none of them,
    the first text is taken whose name begins with the method's name.
    """
    equations, name = _equations(), _plain(family)
    if begin := [head for head in equations if _begins(name, _plain(head))]:
        return equations[max(begin, key=len)]
    return next((equations[head] for head in equations if _begins(_plain(head), name)), None)


def _plain(name: str) -> str:
    return re.sub("[_ ]", "-", name.lower())


def _begins(name: str, start: str) -> bool:
    return f"{name}-".startswith(f"{start}-")


@cache
def _equations() -> dict[str, Equation]:
    equations: dict[str, Equation] = {}
    for section in _text().split("\n## ")[1:]:
        name = ""
        for block in _blocks(section.partition("\n")[2]):
            if head := HEADED.match(block):
                name = head["name"]
                equations[name] = Equation(name, head["source"] or "", ())
                # The name may be the subject of the first sentence.
                block = block[head.end() :] if head["stop"] else f"{name} {block[head.end() :]}"
            if name and not block.startswith("|"):
                own = equations[name]
                equations[name] = replace(own, paragraphs=(*own.paragraphs, _paragraph(block)))
    return equations


def _text() -> str:
    return (files("tensorbench.methods") / "equations.md").read_text(encoding="utf-8")


def _blocks(text: str) -> list[str]:
    return [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]


def _paragraph(block: str) -> Paragraph:
    displayed = block.startswith(">")
    lines = (line.removeprefix(">").strip() for line in block.splitlines())
    text = " ".join(lines)
    # Links would be broken on the site, and marks of code would be shown.
    return Paragraph(re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text).replace("`", ""), displayed)
