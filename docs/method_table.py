"""Writes the table of reference/methods.md from the methods themselves.

python docs/method_table.py [PAGE]: without PAGE, reference/methods.md.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from marked import replaced

from methods import METHODS, Geometry, Method, UserError, create

PAGE = Path(__file__).parent / "reference" / "methods.md"
BEGIN, END = "<!-- docs/method_table.py -->\n", "<!-- end -->\n"
HEADINGS = (
    "method",
    "update",
    "parameters",
    "at LoRA's budget",
    "frozen",
    "adapts",
    "start",
    "can",
    "source",
)
#: ViT-B and RoBERTa-base.
SHAPE = Geometry(768, 12, 12, 3072)
RANK = 4
#: The pattern of a method module's first line: `Name (source): what the update is.`
ABOUT = re.compile(r"[^(:]+(?: \((?P<source>[^)]*)\)[^:]*)?: (?P<update>.*)\.")


def table() -> str:
    """One row for each method with a closed-form count; peft's other types have their own table."""
    rows = [HEADINGS, ("---",) * len(HEADINGS)]
    for name in METHODS:
        if name != "peft":
            rows += [_row(template) for template in METHODS.get(name).listed()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(template: Method) -> tuple[str, ...]:
    described = ABOUT.fullmatch((import_module(type(template).__module__).__doc__ or "").splitlines()[0])
    assert described, f"the module of {template.name} should begin: Name (source): what the update is."
    ranks = count = matched = frozen = "–"
    with suppress(UserError):
        count = f"{template.isorank(RANK).count(SHAPE):,}"
    if template.sizeable:
        fitted = template.fit(SHAPE, create("lora", rank=RANK).count(SHAPE))
        ranks = ", ".join(map(str, fitted.size or ()))
        matched = f"{fitted.count(SHAPE):,} ({ranks})"
        frozen = _frozen(fitted)
    can = ["exports as LoRA"] * (not template.not_low_rank) + ["merges"] * (not template.not_mergeable)
    called = f"`{template.name}`"
    if template.title.lower() != template.name:
        called += f": {template.title}"
    return (
        called,
        described["update"],
        count,
        matched,
        frozen,
        ", ".join(SHAPE.having(template.projections)) or "–",
        "not zero" if template.nonzero_start else "zero",
        ", ".join(can if template.projections else ()) or "–",
        described["source"] or "–",
    )


def _frozen(method: Method) -> str:
    """An adapter's frozen bytes in float32 at LoRA's budget, and whether a stored adapter holds them."""
    numbers, kept = method.frozen_count(SHAPE), method.kept_count(SHAPE)
    return f"{4 * numbers / 2**20:.1f} MiB, {'stored' if kept else 'from a seed'}" if numbers else "–"


def rewritten(text: str) -> str:
    """The page with the current table."""
    return replaced(text, BEGIN, END, table())


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
