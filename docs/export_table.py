"""Writes the tables of exports, by kind of backbone and by method: `python docs/export_table.py`.

The tables are in docs/guides/export.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from marked import replaced, table

from tensorbench.backbones.kinds import KINDS
from tensorbench.methods import METHODS, Geometry, NotLowRank, UserError, attach, create
from tensorbench.methods.skeleton import SkeletonBackbone
from tensorbench.tools.export.original import target_of

PAGE = Path(__file__).parent / "guides" / "export.md"

BEGIN, END = "<!-- The exports, by docs/export_table.py. -->", "<!-- The end of the exports. -->"

RANKS_BEGIN, RANKS_END = "<!-- The ranks, by docs/export_table.py. -->", "<!-- The end of the ranks. -->"

#: The size of ViT-B, and the LoRA rank whose number of parameters is the budget of all methods in the table.
GEOMETRY, RANK = Geometry(768, 12, 12, 3072, encoder=1), 4
#: The largest deviation of a method's number of parameters from that of LoRA, as a share.
NEAR = 0.05

HEADINGS = ("kind", "the original model", "the head", "peft's loader", "one layer there")
OF_RANKS = ("method", "its parameters", "rank as LoRA", "parameters as LoRA")


def rewritten(text: str) -> str:
    """The page with the current tables. Kinds that differ only in name and class share a line."""
    rows: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for named, model, *rest in map(_row, KINDS):
        rows.setdefault(tuple(rest), []).append((named, model))
    lines = []
    for cells, kinds in rows.items():
        names, models = ((", ".join(dict.fromkeys(column))) for column in zip(*kinds, strict=True))
        lines.append((names, models, *cells))
    text = replaced(text, BEGIN, END, f"\n\n{table(HEADINGS, lines)}\n\n")
    ranks = table(OF_RANKS, _ranks(), ("---", "---:", "---:", "---:"))
    return replaced(text, RANKS_BEGIN, RANKS_END, f"\n\n{ranks}\n\n")


def _ranks() -> Iterator[tuple[str, ...]]:
    """Yields a line for each low-rank method with about as many parameters as LoRA of rank `RANK`."""
    backbone, ranks = SkeletonBackbone.random(GEOMETRY), dict[str, tuple[int, int, int]]()
    budget = create("lora", rank=RANK).count(GEOMETRY)
    for template in (each for name in METHODS for each in METHODS.get(name).listed() if each.sizeable):
        try:
            method = template.fit(GEOMETRY, budget)
            close = abs(method.count(GEOMETRY) / budget - 1) <= NEAR
        except UserError:
            close = False
        if not close:
            continue
        adapter = attach(backbone, method)
        with suppress(NotLowRank):
            pairs = adapter.factors().values()
            written = sum(down.numel() + up.numel() for down, up in pairs)
            ranks[method.label] = method.count(GEOMETRY), max(len(down) for down, _ in pairs), written
        adapter.detach()
    for label, (count, rank, written) in sorted(ranks.items(), key=lambda item: item[1][1]):
        yield label, f"{count:,}", str(rank), f"{written:,}"


def _row(name: str) -> tuple[str, ...]:
    kind, target = KINDS[name], target_of(name)
    models, loaders = [f"`{target.class_name}`"], [f"`{target.loader}`"]
    head = ", ".join(f"`{path}`" for path in target.head.values()) or "`head.safetensors`"
    if kind.decodes:
        answering = target_of(name, answers=True)
        models.append(f"`{answering.class_name}`")
        loaders.append(f"`{answering.loader}`")
        head += " / none"
    fused = "; ".join(", ".join(parts[:-1]) + f" and {parts[-1]}" for parts in kind.fused.values())
    named = ", ".join(f"`{kind_name}`" for kind_name in (name, *kind.within))
    return named, " / ".join(models), head, " / ".join(loaders), fused or "–"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
