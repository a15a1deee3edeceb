"""Output folders of commands. They are checked before any work, and cleared of earlier output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath

from tensorbench.machine.files import written_whole
from tensorbench.methods import UserError

PLOTS = (".png", ".svg", ".pdf")

#: Contents of files. The keys are paths in a folder, with slashes.
Files = Mapping[str, str | bytes]


def output_folder(out: Path, what: str, *, force: bool, manifest: str = "") -> Path:
    """Returns the absolute path of the folder `out`, if a command may write to it.

    Raises UserError if `out` is a file, if it is in the home of an unknown user, and, without `force`, if the
    folder is not empty. With `force` it has to hold the file `manifest`, if this is given, which lists the
    earlier output. `what` is the word for the output in messages, such as "report".
    """
    try:
        target = out.expanduser().resolve()
    except RuntimeError as error:
        raise UserError(f"--out {out}: {error}") from error
    if target.exists() and not target.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    if not target.is_dir() or all(there.name.startswith(".") for there in target.iterdir()):
        return target
    if not force:
        raise UserError(f"{out} is not empty; name another folder, or replace the {what} there with --force")
    if manifest and not (target / manifest).is_file():
        raise UserError(f"{out} holds files, and no {what} that --force could replace (it has no {manifest})")
    return target


def earlier_files(folder: Path, manifest: str) -> list[Path]:
    """Returns the files that an earlier export or report wrote to `folder`, as its manifest lists them.

    `manifest` is the file's name. It is a JSON list of paths in the folder, or an object with such a list as
    `files`. Paths outside the folder are ignored. Returns an empty list if there is no manifest. Raises
    ValueError for a malformed manifest, and OSError for one that cannot be read.
    """
    file = folder / manifest
    if not file.is_file():
        return []
    listed = json.loads(file.read_text(encoding="utf-8"))
    names = listed.get("files") if isinstance(listed, dict) else listed
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{file} does not list the files of an earlier run")
    paths = [folder / name for name in names if PurePath(name).parts and ".." not in PurePath(name).parts]
    # A path itself may be a link, but its folder must not resolve to a place outside.
    return [path for path in paths if path.parent.resolve().is_relative_to(folder.resolve())]


def replace_files(folder: Path, files: Files, manifest: str) -> None:
    """Replaces the files that an earlier run wrote to `folder`, and its manifest. Other files stay.

    Raises the errors of `earlier_files`.
    """
    for old in earlier_files(folder, manifest):
        old.unlink(missing_ok=True)
    # The list comes first, so that a later call also removes a file that a full disk has cut.
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / manifest) as unfinished:
        unfinished.write_text(json.dumps(sorted(files), indent=1), encoding="utf-8")
    put_files(folder, files)


def put_files(folder: Path, files: Files) -> None:
    """Writes files to `folder`, and creates folders in it where necessary."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def prepare_plot(file: Path) -> None:
    """Makes the folder of a figure, and checks that the file can be written.

    Raises UserError if it cannot be written, or if its name has an ending that is not in `PLOTS`.
    """
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
