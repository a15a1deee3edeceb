"""Output folders of commands: checked before any work, and cleared of earlier output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath

from methods import UserError

PLOTS = (".png", ".svg", ".pdf")

#: File contents by name, with slashes between folders.
Files = Mapping[str, str | bytes]


def output_folder(out: Path, what: str, *, force: bool) -> Path:
    """The absolute folder for a report or an export (`what`).

    Raises UserError for a file or an unknown user's home, and without `force` for a folder that is not empty.
    """
    try:
        target = out.expanduser().resolve()
    except RuntimeError as error:
        raise UserError(f"--out {out}: {error}") from error
    if target.exists() and not target.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise UserError(f"{out} is not empty; name another folder, or replace the {what} there with --force")
    return target


def earlier_files(folder: Path, manifest: str) -> list[Path]:
    """The files written to `folder` by an earlier export or report, from its manifest. Empty without one.

    A manifest is a JSON list of paths in the folder, or an object with such a list as `files`. Paths outside
    the folder are ignored. Raises ValueError for a malformed manifest, or OSError.
    """
    file = folder / manifest
    if not file.is_file():
        return []
    listed = json.loads(file.read_text(encoding="utf-8"))
    names = listed.get("files") if isinstance(listed, dict) else listed
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{file} does not list the files of an earlier run")
    return [folder / name for name in names if _leads_into(folder, name)]


def replace_files(folder: Path, files: Files, manifest: str) -> None:
    """Replaces the files and the manifest of an earlier run. Other files stay.

    Raises ValueError and OSError as `earlier_files` does.
    """
    for old in earlier_files(folder, manifest):
        old.unlink(missing_ok=True)
    put_files(folder, files)
    (folder / manifest).write_text(json.dumps(sorted(files), indent=1), encoding="utf-8")


def put_files(folder: Path, files: Files) -> None:
    """Writes the files, creating their folders."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _leads_into(folder: Path, name: str) -> bool:
    parts = PurePath(name).parts
    if not parts or ".." in parts:
        return False
    # The path itself may be a link, but its folder must not resolve to a place outside.
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())


def prepare_plot(file: Path) -> None:
    """Makes the folder of a figure. Raises UserError for an ending not in `PLOTS` or an unwritable file."""
    if file.suffix not in PLOTS:
        raise UserError(f"--plot {file}: accepted endings are {', '.join(PLOTS)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        there = file.exists()
        # Checked first, since measuring takes minutes and the picture is drawn last.
        file.open("ab").close()
        if not there:
            file.unlink()
    except OSError as error:
        raise UserError(f"--plot {file}: cannot be written: {error.strerror}") from error
