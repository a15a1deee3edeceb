"""Access control for trials from packs: only files and hub repositories that the user allowed.

A pack may come from anybody and name any file or hub repository. Registered tasks and backbones belong to the
harness or to an installed plug-in, and may always be used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tensorbench.backbones import BackboneSpec
from tensorbench.machine.files import expanded
from tensorbench.methods import UserError
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Record
from tensorbench.records.words import Tag
from tensorbench.store.pack.reading import Packed
from tensorbench.store.source import Source
from tensorbench.tasks.description import Description

#: The word that users give in place of a folder to allow repositories of the Hugging Face hub.
HUB = "hub"


class Access:
    """What trials from packs may open: allowed folders with their subfolders, and the hub if it is allowed.

    `allowed` lists the folders and, if the hub is allowed, the word "hub". Raises UserError for a folder that
    does not exist.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._hub = HUB in allowed
        self._folders = [expanded(name) for name in allowed if name != HUB]
        for folder in self._folders:
            if not folder.is_dir():
                raise UserError(f"--open {folder}: there is no such folder; accepted are folders and '{HUB}'")

    def trial(self, trial: Trial) -> Trial:
        """Returns the trial with the paths that its backbone and data have on this machine.

        The trial's id stays the same. Raises the errors of `backbone` and `task`.
        """
        places = {"backbone": self.backbone(trial.backbone), "task": self.task(trial.task)}
        return trial.model_copy(update=places)

    def backbone(self, spec: BackboneSpec) -> BackboneSpec:
        """Returns the backbone with the path that it has on this machine.

        Raises UserError if it may not be opened or is not there. Registered backbones may always be opened.
        """
        if spec.name is not None:
            return spec
        if spec.hub is not None or spec.timm is not None:
            self._check_hub(f"its backbone {spec.hub or spec.timm}")
        if spec.local is None:
            return spec
        return spec.model_copy(update={"local": self._place("its backbone", spec.local)})

    def task(self, row: TaskRow) -> TaskRow:
        """Returns the task with the path that its data have on this machine.

        Raises UserError if the data may not be opened or are not there. Data of registered tasks may always
        be opened.
        """
        local = row.source.local if row.source else None
        # Data described by a repository lie in the source's folder, if there is one.
        if row.data is not None and not (row.data.hub and local):
            return row.model_copy(update={"data": self._data(row.data)})
        if row.source is None:
            return row
        if local is None:
            self._check_hub(f"the data of task '{row.task}'")
            return row
        place = self._place(f"the data of task '{row.task}'", local)
        return row.model_copy(update={"source": row.source.model_copy(update={"local": place})})

    def _data(self, data: Description) -> Description:
        if data.hub is not None:
            self._check_hub(f"its data {data.hub}")
            return data
        place = getattr(data, data.format)
        if isinstance(place, dict):
            places = {split: self._place(f"its data of {split}", path) for split, path in place.items()}
            return data.model_copy(update={data.format: places})
        return data.model_copy(update={data.format: self._place("its data", place)})

    def _check_hub(self, what: str) -> None:
        if not self._hub:
            raise UserError(
                f"{what} would be downloaded from the hub; trials from packs may do so only with --open {HUB}"
            )

    def _place(self, what: str, path: Path) -> Path:
        """Finds a pack's path below an allowed folder. Packs contain only the last part of absolute paths.

        Raises UserError if no allowed folder has the path, or if it leads out of that folder.
        """
        if not self._folders:
            raise UserError(
                f"{what} would be read from {path}; trials from packs may read files only with --open FOLDER"
            )
        if path.is_absolute() or ".." in path.parts or path.parts[:1] == ("~",):
            raise UserError(f"{what} would be read from {path}, which leads out of the folders of --open")
        for folder in self._folders:
            # Unlike Path.exists, this accepts a name that is too long.
            if os.path.exists(place := folder / path):
                _check_inside(what, place, folder)
                return place.absolute()
        raise UserError(f"{what}: there is no {path} in {', '.join(map(str, self._folders))}")


def _check_inside(what: str, place: Path, folder: Path) -> None:
    """Raises UserError if `place`, or a link anywhere below it, leads out of `folder`."""
    root = folder.resolve()
    seen, coming = set(), [place]
    while coming:
        path = coming.pop()
        try:
            real = path.resolve(strict=True)
            inside = real.is_relative_to(root) and (real.is_file() or real.is_dir())
            # A link may lead to a folder elsewhere inside, which may contain further links.
            if inside and real.is_dir() and real not in seen:
                seen.add(real)
                coming += real.iterdir()
        except (OSError, RuntimeError):  # a broken link, or one to itself
            inside = False
        if not inside:
            raise UserError(f"{what}: {path} is no regular file in {folder}, or leads out of it")


def is_foreign(source: Source, record: Record) -> bool:
    """Whether a run is in a pack or was unpacked from one."""
    return isinstance(source, Packed) or bool(record.tag(Tag.ORIGIN))
