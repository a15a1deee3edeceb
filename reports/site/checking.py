"""Whether a folder has the files that it should, as far as that does not depend on the machine.

Another version of numpy or another processor sums in another order, and another version of matplotlib draws
otherwise. So numbers are compared to six digits, and drawings not at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path

from bench.process.outputs import Files

NUMBER = re.compile(r"-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]\d+)")
DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)
AGREES = 1e-6


def differences(wanted: Files, folder: Path, beside: Collection[str] = ()) -> list[str]:
    """A line for each file that differs, is missing, or should not be there; those of `beside` may."""
    if not folder.is_dir():
        return ["there is no such folder"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    lines = [f"{name} is missing" for name in sorted(wanted.keys() - there)]
    lines += [f"{name} should not be there" for name in sorted(there - wanted.keys() - set(beside))]
    for name in sorted(wanted.keys() & there):
        have, content = (folder / name).read_bytes(), wanted[name]
        if isinstance(content, bytes):
            lines += [f"{name} differs"] * (have != content)
        elif told := _differs(content, have.decode("utf-8", "replace")):
            lines.append(f"{name} differs: {told}")
    return lines


def _differs(wanted: str, have: str) -> str:
    """The first place at which two texts differ; empty where they are alike."""
    if wanted == have:
        return ""
    pairs = zip(*(DRAWING.sub("<svg></svg>", text).splitlines() for text in (wanted, have)), strict=False)
    for number, (own, other) in enumerate(pairs, 1):
        if not _alike(own, other):
            return f"line {number} has {_cut(other)}, and should have {_cut(own)}"
    lines = [len(DRAWING.sub("<svg></svg>", text).splitlines()) for text in (wanted, have)]
    return "" if lines[0] == lines[1] else f"it has {lines[1]} lines, and should have {lines[0]}"


def _alike(own: str, other: str) -> bool:
    if own == other:
        return True
    if NUMBER.sub("#", own) != NUMBER.sub("#", other):
        return False
    pairs = zip(NUMBER.findall(own), NUMBER.findall(other), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=AGREES, abs_tol=AGREES) for a, b in pairs)


def _cut(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= 80 else f"{line[:77]}…")
