"""Tables of runs of other programs, and what reports say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "data" / "foreign"

HEADING = "method,task,seed,score"


def table(folder: Path, lines: Sequence[str], heading: str = HEADING, name: str = "runs.csv") -> Path:
    file = folder / name
    file.write_text("\n".join([heading, *lines, ""]), encoding="utf-8")
    return file


def seeds(**scores: Sequence[float]) -> list[str]:
    """Lines of a table with a seed per score of each method."""
    return [f"{name},t,{seed},{score}" for name, own in scores.items() for seed, score in enumerate(own)]


def difference(results: Any, k: int = 1) -> Any:
    frame = results.tables["differences"]
    return frame[frame["k"] == k].iloc[0]
