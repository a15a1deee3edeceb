"""Packs for tests: packed from stores, or modified."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from bench.machine.files import sha256_of
from bench.records.pack_format import MANIFEST
from bench.store.opening import pack

Files = dict[str, bytes]


def packed(uri: str, name: str, folder: Path, adapters: bool = False) -> Path:
    """Packs an experiment into this folder."""
    folder.mkdir(exist_ok=True)
    return pack(name, out=folder / f"{name}.tensorbench.zip", store=uri, adapters=adapters).path


def files(pack: Path) -> Files:
    """The files of a pack by name."""
    with zipfile.ZipFile(pack) as file:
        return {name: file.read(name) for name in file.namelist()}


def changed(pack: Path, target: Path, change: Callable[[Files], None], *, signed: bool = True) -> Path:
    """A pack with other content; `signed` recomputes the manifest's hashes, as any maker of packs can."""
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
    """A change of a pack's files that applies `change` to every JSON file whose name ends with `name`."""

    def edit(content: Files) -> None:
        for path in [path for path in content if path.endswith(name)]:
            document = json.loads(content[path])
            change(document)
            content[path] = json.dumps(document).encode()

    return edit
