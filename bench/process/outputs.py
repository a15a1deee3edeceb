"""Where a command writes: checked before it does anything."""

from __future__ import annotations

from pathlib import Path

from methods import UserError

PLOTS = (".png", ".svg", ".pdf")


def output_folder(out: Path, what: str, *, force: bool) -> Path:
    """The folder for a report or an export (`what`), absolute. Raises UserError if it cannot take it."""
    try:
        target = out.expanduser().resolve()
    except RuntimeError as error:
        raise UserError(f"--out {out}: {error}") from error
    if target.exists() and not target.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise UserError(f"{out} is not empty; name another folder, or replace the {what} there with --force")
    return target


def prepare_plot(file: Path) -> None:
    """Makes the folder of a picture. Raises UserError for one that could not be written."""
    if file.suffix not in PLOTS:
        raise UserError(f"--plot {file}: accepted endings are {', '.join(PLOTS)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--plot {file}: cannot make its folder: {error.strerror}") from error
