"""What `methods/equations.md` says of each method: the one place where its equation is written."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import NamedTuple

#: How the text of a method begins: **its name**, and its source in brackets.
HEADED = re.compile(r"\*\*(?P<name>[^*]+)\*\*(?: \((?P<source>[^)]*)\))?(?P<stop>\.?)\s*")


class Paragraph(NamedTuple):
    """A paragraph, or a displayed equation."""

    text: str
    displayed: bool


@dataclass(frozen=True)
class Equation:
    """The text of a method."""

    name: str
    #: Paper or code; empty where the text names none.
    source: str
    paragraphs: tuple[Paragraph, ...]


@cache
def notation() -> tuple[Paragraph, ...]:
    """What the letters mean, and what all methods share."""
    introduction = _text().split("\n## ")[0].partition("\n")[2]
    return tuple(_paragraph(block) for block in _blocks(introduction))


def equation_of(family: str) -> Equation | None:
    """The text of the method that is registered under a name; None where none is written, as of plug-ins.

    FacT's is of fact_tt and fact_tk, and that of `cp` is headed CP adapters. LoRA-XS has a text of its own.
    """
    known, name = _equations(), _plain(family)
    if begin := [head for head in known if _begins(name, _plain(head))]:
        return known[max(begin, key=len)]
    return next((known[head] for head in known if _begins(_plain(head), name)), None)


def _plain(name: str) -> str:
    return re.sub("[_ ]", "-", name.lower())


def _begins(name: str, start: str) -> bool:
    return f"{name}-".startswith(f"{start}-")


@cache
def _equations() -> dict[str, Equation]:
    found: dict[str, Equation] = {}
    for section in _text().split("\n## ")[1:]:
        name = ""
        for block in _blocks(section.partition("\n")[2]):
            if head := HEADED.match(block):
                name = head["name"]
                found[name] = Equation(name, head["source"] or "", ())
                # The name may be the subject of its first sentence.
                block = block[head.end() :] if head["stop"] else f"{name} {block[head.end() :]}"
            if name and not block.startswith("|"):
                own = found[name]
                found[name] = replace(own, paragraphs=(*own.paragraphs, _paragraph(block)))
    return found


def _text() -> str:
    return (files("methods") / "equations.md").read_text(encoding="utf-8")


def _blocks(text: str) -> list[str]:
    return [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]


def _paragraph(block: str) -> Paragraph:
    displayed = block.startswith(">")
    lines = (line.removeprefix(">").strip() for line in block.splitlines())
    text = " ".join(lines)
    # A link leads nowhere from the site, and code has its marks.
    return Paragraph(re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text).replace("`", ""), displayed)
