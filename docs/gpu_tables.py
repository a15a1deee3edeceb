"""Puts the tables of `python -m tools.gpu --out DIR` into performance.md: `python docs/gpu_tables.py DIR`.

Raises SystemExit, and writes nothing, if DIR has no results of a GPU. Results of a CPU are refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from marked import replaced

PAGE = Path(__file__).parent / "explanations" / "performance.md"

BEGIN, END = (
    "<!-- The tables of a card, by docs/gpu_tables.py. -->",
    "<!-- The end of the tables of a card. -->",
)


def tables(folder: Path) -> str:
    """The tables of the run in a folder, below the name of its GPU.

    Raises SystemExit if the folder has no results of a GPU.
    """
    try:
        lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        page = (folder / "results.md").read_text(encoding="utf-8")
    except OSError as error:
        raise SystemExit(f"{folder} has no results of a run: {error}") from error
    machine = {row["what"]: row["value"] for row in map(json.loads, lines) if row["table"] == "machine"}
    if "compute capability" not in machine:
        raise SystemExit(
            f"{folder} has the results of {machine.get('device', 'no machine')}: no card, no figures"
        )
    return f"{machine['device']}, torch {machine['torch']}, random weights.\n\n{page}"


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("python docs/gpu_tables.py DIR")
    page = PAGE.read_text(encoding="utf-8")
    content = tables(Path(sys.argv[1])).strip()
    PAGE.write_text(replaced(page, BEGIN, END, f"\n\n{content}\n\n"), encoding="utf-8")


if __name__ == "__main__":
    main()
