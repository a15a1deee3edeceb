"""Writes the table of methods from the methods themselves: `python docs/method_table.py [PAGE]`.

PAGE is reference/methods.md by default.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from marked import replaced
from marked import table as written

from tensorbench.methods import METHODS, Geometry, Method, UserError, create
from tensorbench.reports.results import grouped

PAGE = Path(__file__).parent / "reference" / "methods.md"
BEGIN, END = "<!-- docs/method_table.py -->\n", "<!-- end -->\n"
HEADINGS = ("method", "at rank 4", "at LoRA's budget", "sites", "scale", "rate")
#: The geometry of ViT-B and RoBERTa-base.
SHAPE = Geometry(768, 12, 12, 3072)
RANK = 4
#: Maps projections to the value of the option `targets` that selects them.
SITES = {
    ("query", "value"): "qv",
    ("query", "key", "value"): "qkv",
    ("query", "key", "value", "output"): "qkvo",
    ("query", "key", "value", "output", "fc1", "fc2"): "qkvo+mlp",
}


def table() -> str:
    """The table of methods in Markdown, with a line for each method and variant, and a list of exceptions.

    Methods without an adapter are left out. So are peft's types, which have a table of their own.
    """
    templates = [template for name in METHODS if name != "peft" for template in METHODS.get(name).listed()]
    adapters = [template for template in templates if template.projections]
    exceptions = {
        "Not zero at the start": _names(each for each in adapters if each.nonzero_start),
        "Do not export as LoRA": _names(each for each in adapters if each.not_low_rank),
        "Do not merge": _names(each for each in adapters if each.not_mergeable),
        "Dropout": "; ".join([*_dropouts(adapters), "of all others 0"]),
        "Frozen tensors": "; ".join(filter(None, map(_frozen, templates))),
    }
    lines = [f"- {what}: {which}." for what, which in exceptions.items()]
    return "\n".join([written(HEADINGS, map(_row, adapters)), "", *lines, ""])


def _names(templates: Iterable[Method]) -> str:
    return ", ".join(dict.fromkeys(f"`{template.name}`" for template in templates))


def _row(template: Method) -> tuple[str, ...]:
    count = matched = "–"
    with suppress(UserError):
        count = f"{template.isorank(RANK).count(SHAPE):,}"
    if template.sizeable:
        fitted = _fitted(template)
        ranks = "×".join(map(str, fitted.size or ()))
        matched = f"{fitted.count(SHAPE):,} ({ranks})"
    called = f"`{template.name}`"
    if template.title.lower() != template.name:
        called += f" {template.title.removeprefix('TensLoRA ')}"
    rate = template.published_lr
    return (
        called,
        count,
        matched,
        _sites(template),
        _default(template, "scale"),
        "–" if rate is None else f"{rate:g}",
    )


def _sites(template: Method) -> str:
    """The default of the option `targets`, as code. For a method without this option, its fixed sites."""
    adapted = SHAPE.having(template.projections)
    named = SITES.get(adapted, ", ".join(adapted)) or "–"
    return f"`{named}`" if "targets" in type(template).model_fields else named


def _dropouts(templates: Sequence[Method]) -> Iterator[str]:
    """Yields the default values of dropout other than zero, each with its methods.

    Methods without this option are listed too.
    """
    by_default = grouped(templates, lambda template: _default(template, "dropout"))
    named = {"–": "not an option of"}
    yield from (
        f"{named.get(value, value)} {_names(alike)}" for value, alike in by_default.items() if value != "0"
    )


def _default(template: Method, option: str) -> str:
    field = type(template).model_fields.get(option)
    return "–" if field is None else f"{field.default:g}"


def _fitted(template: Method) -> Method:
    return template.fit(SHAPE, create("lora", rank=RANK).count(SHAPE))


def _frozen(template: Method) -> str:
    """A text with the MiB of a method's frozen tensors at LoRA's budget, and whether they are stored.

    Empty if the method has no such tensors or a fixed size.
    """
    if not template.sizeable:
        return ""
    numbers, kept = (count(SHAPE) for count in (_fitted(template).frozen_count, _fitted(template).kept_count))
    held = "stored" if kept else "from a seed"
    return f"`{template.name}` {4 * numbers / 2**20:.1f} MiB, {held}" if numbers else ""


def rewritten(text: str) -> str:
    """The page with the current table."""
    return replaced(text, BEGIN, END, table())


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
