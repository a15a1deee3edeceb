"""The source of a plug-in by its hash, which tells whether two results are of the same code."""

from __future__ import annotations

import hashlib
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

#: What an editable install lists in place of its modules.
FINDER = "__editable__"


def source_hash(point: EntryPoint) -> str:
    """Hex sha256 over the names and contents of a plug-in's Python files; empty where it has none to read.

    They are those of the whole distribution, since a method's numbers may come from any of them.
    """
    files = {name: path for name, path in (_listed(point) or _found(point)).items() if path.is_file()}
    if not files:
        return ""
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _listed(point: EntryPoint) -> dict[str, Path]:
    """What the distribution says that it installed."""
    files = (point.dist.files if point.dist else None) or ()
    return {
        file.as_posix(): Path(str(file.locate()))
        for file in files
        if file.suffix == ".py" and not file.name.startswith(FINDER)
    }


def _found(point: EntryPoint) -> dict[str, Path]:
    """The module or the package that is imported: an editable install lists none of its own files."""
    spec = find_spec(point.module.partition(".")[0])
    if spec is None:
        return {}
    if spec.submodule_search_locations is None:
        paths = [Path(spec.origin)] if spec.origin else []
        return {path.name: path for path in paths}
    folders = map(Path, spec.submodule_search_locations)
    return {
        path.relative_to(folder.parent).as_posix(): path
        for folder in folders
        for path in folder.rglob("*.py")
    }
