"""Makes packs for tests from stores, and modifies packs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from tensorbench.machine.files import sha256_of
from tensorbench.records.pack_format import ARRAYS, MANIFEST, NUMBERS, RUNS
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


def edit_json(name: str, change: Callable[[Any], object]) -> Callable[[Files], None]:
    """Makes a function that applies `change` to those JSON files of a pack whose paths end with `name`."""

    def edit(content: Files) -> None:
        for path in [path for path in content if path.endswith(name)]:
            document = json.loads(content[path])
            change(document)
            content[path] = json.dumps(document).encode()

    return edit


def edit_runs(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Files], None]:
    """Makes a function that applies `change` to the lines of runs. The last of them is a trial's."""

    def edit(content: Files) -> None:
        name = path_of(content, RUNS)
        lines = sorted(map(json.loads, content[name].splitlines()), key=lambda line: line["tags"]["kind"])
        change(lines)
        lines.sort(key=lambda line: str(line["run_id"]))
        content[name] = "".join(json.dumps(line) + "\n" for line in lines).encode()

    return edit


def edit_run(change: Callable[[dict[str, Any]], object]) -> Callable[[Files], None]:
    """Makes a function that applies `change` to the line of a trial's run."""
    return edit_runs(lambda lines: change(lines[-1]))


def edit_arrays(change: Callable[[dict[str, Any]], object]) -> Callable[[Files], None]:
    """Makes a function that applies `change` to the arrays of a pack, as numbers (values,)."""

    def edit(content: Files) -> None:
        name = path_of(content, NUMBERS)
        arrays = {
            key: np.ascontiguousarray(planes.T).view(ARRAYS[key]).reshape(-1)
            for key, planes in load(content[name]).items()
        }
        change(arrays)
        content[name] = save(
            {
                key: np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)
                for key, values in arrays.items()
            }
        )

    return edit


def path_of(content: Files, name: str) -> str:
    """The path of the first file of a pack whose path ends with `name`."""
    return next(path for path in content if path.endswith(name))
