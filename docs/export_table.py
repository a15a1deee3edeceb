"""Writes the table of exports by kind of backbone: `python docs/export_table.py`.

The table is in docs/guides/export.md.
"""

from __future__ import annotations

from pathlib import Path

from marked import replaced

from tensorbench.backbones.kinds import KINDS, NAMES, TIMM
from tensorbench.tools.export.original import target_of

PAGE = Path(__file__).parent / "guides" / "export.md"

BEGIN, END = "<!-- The exports, by docs/export_table.py. -->", "<!-- The end of the exports. -->"

HEADINGS = ("kind", "the original model", "the head", "peft's loader", "one layer there")


def rewritten(text: str) -> str:
    """The page with the current table. Kinds that differ only in name and class share a line."""
    rows: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for named, model, *rest in map(_row, NAMES):
        rows.setdefault(tuple(rest), []).append((named, model))
    lines = [HEADINGS, tuple("---" for _ in HEADINGS)]
    for cells, kinds in rows.items():
        names, models = ((", ".join(dict.fromkeys(column))) for column in zip(*kinds, strict=True))
        lines.append((names, models, *cells))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return replaced(text, BEGIN, END, f"\n\n{table}\n\n")


def _row(name: str) -> tuple[str, ...]:
    if name == TIMM:
        return "`timm`", "`timm.create_model(…)`, merged alone", "its classifier", "–", "query, key and value"
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


def main() -> None:
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
