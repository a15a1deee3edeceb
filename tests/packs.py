"""Makes packs for tests from stores, and modifies packs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from tensorbench.machine.files import sha256_of
from tensorbench.records.pack_format import MANIFEST
from tensorbench.store.opening import pack

Files = dict[str, bytes]


def packed(uri: str, name: str, folder: Path, adapters: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    return pack(name, out=folder / f"{name}.tensorbench.zip", store=uri, adapters=adapters).path


def files(pack: Path) -> Files:
    with zipfile.ZipFile(pack) as file:
        return {name: file.read(name) for name in file.namelist()}


def changed(pack: Path, target: Path, change: Callable[[Files], None], *, signed: bool = True) -> Path:
    """Writes a copy of a pack to `target`, with files that `change` has changed.

    If `signed`, the manifest gets the hashes of the new content, which anybody can compute.
    """
    content = files(pack)
    change(content)
    if signed:
        manifest = json.loads(content.pop(MANIFEST))
        members = {
            name: {"sha256": sha256_of(member), "bytes": len(member)} for name, member in content.items()
        }
        content[MANIFEST] = json.dumps(manifest | {"members": members}).encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for name, member in content.items():
            file.writestr(name, member)
    return target


def edit_json(name: str, change: Callable[[dict], None]) -> Callable[[Files], None]:  # type: ignore[type-arg]
    """Makes a function that applies `change` to those JSON files of a pack whose paths end with `name`."""

    def edit(content: Files) -> None:
        for path in [path for path in content if path.endswith(name)]:
            document = json.loads(content[path])
            change(document)
            content[path] = json.dumps(document).encode()

    return edit
