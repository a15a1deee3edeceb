"""The lock file of a suite: commit and file hashes of every hub repository that the suite uses.

`tensorbench tools fetch SUITE.yaml` writes `SUITE.lock.yaml` beside the suite; loading the suite applies it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tensorbench.backbones import BackboneSpec
from tensorbench.machine.files import written_whole
from tensorbench.machine.hub import LockedFiles
from tensorbench.machine.visible import visible
from tensorbench.methods.errors import UserError
from tensorbench.methods.validation import Frozen, validate
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.plan.yaml_text import read, written
from tensorbench.records.stored_plan import StoredSuite
from tensorbench.tasks import DataSource
from tensorbench.tasks.hub import HubTask

VERSION: Literal[1] = 1


class Locked(Frozen):
    """A repository at a fixed commit, with the hashes of its files."""

    repository: str
    #: The branch, tag or commit given in the suite. None: the main branch.
    asked: str | None = None
    #: The commit of that revision when the lock was written.
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    #: The SHA-256 of each used file, by its path in the repository.
    files: dict[str, str]

    @property
    def locked(self) -> LockedFiles:
        return tuple(self.files.items())


class Lock(Frozen):
    """The content of a lock file: a suite's hub repositories, each fixed to a commit.

    The keys of `tasks` are names of tasks. The keys of `backbones` are the names that the suite gives, such
    as `owner/model` or `timm:model`. If the suite has several revisions of one backbone, `@` and the revision
    follow the name.
    """

    version: Literal[1] = VERSION
    backbones: dict[str, Locked] = {}
    tasks: dict[str, Locked] = {}

    def apply(self, suite: Suite, path: Path) -> Suite:
        """Returns the suite with every hub repository fixed to its commit and file hashes in this lock.

        `path` is the lock's file, for messages. Raises UserError for a repository that the lock lacks, or
        locks at another revision than the suite gives.
        """
        backbones = []
        for spec in suite.backbones:
            if spec.hub_name is not None:
                entry = self._entry(self.of(spec), spec.hub_name, None, spec.revision, path)
                spec = spec.at(entry.revision).lock(entry.locked)
            backbones.append(spec)
        tasks = []
        for row in suite.tasks:
            if (task := hub_task(suite.placed(row))) is not None:
                locked = self.tasks.get(row.task)
                entry = self._entry(locked, row.task, task.where, task.source.revision, path)
                source = DataSource(hub=entry.repository, revision=entry.revision)
                row = row.model_copy(update={"source": source.lock(entry.locked)})
            tasks.append(row)
        return suite.model_copy(update={"backbones": tuple(backbones), "tasks": tuple(tasks)})

    def of(self, spec: BackboneSpec) -> Locked | None:
        """Returns the locked commit and files of a hub backbone. None if the lock lacks the backbone."""
        return self.backbones.get(at_revision(spec)) or self.backbones.get(str(spec.hub_name))

    def _entry(
        self, entry: Locked | None, name: str, repository: str | None, asked: str | None, path: Path
    ) -> Locked:
        if (
            entry is None
            or asked not in (entry.asked, entry.revision)
            or repository not in (None, entry.repository)
        ):
            at = "" if asked is None else f" at revision {asked}"
            locked = name if repository is None else f"{name} from {repository}"
            raise UserError(
                f"{path} does not lock {locked}{at}: run `tensorbench tools fetch` again, or delete it"
            )
        return entry

    def write(self, path: Path, suite: Path) -> None:
        """Writes the lock atomically. Raises UserError if the file cannot be written."""
        name = " ".join(visible(suite.name).split())
        head = (
            f"# Written by `tensorbench tools fetch {name}`: the commits and files (sha256) it uses.\n"
            "# Keep it beside the suite; every plan and run of the suite uses it.\n"
        )
        try:
            with written_whole(path) as unfinished:
                unfinished.write_text(head + written(self.model_dump(mode="json")), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write lock {path}: {error.strerror}") from error


def at_revision(spec: BackboneSpec) -> str:
    """Returns a hub backbone's key in the lock of a suite that uses several revisions of it."""
    return f"{spec.hub_name}@{spec.revision or 'main'}"


def stored_suite(suite: Suite) -> StoredSuite:
    """Returns the suite as it is stored with results: its fields, and the commits and files of its lock."""

    def entry(repository: str | None, place: BackboneSpec | DataSource) -> dict[str, Any]:
        return {"repository": repository, "revision": place.revision, "files": dict(place.locked)}

    backbones = {str(spec.hub_name): entry(spec.hub_name, spec) for spec in suite.backbones if spec.locked}
    sources = {row.task: row.source for row in suite.tasks if row.source and row.source.locked}
    tasks = {task: entry(source.hub, source) for task, source in sources.items()}
    written = suite.model_dump(mode="json", exclude_unset=True)
    return StoredSuite(suite=written, locked={"backbones": backbones, "tasks": tasks})


def lock_path(suite: Path) -> Path:
    """The path of a suite's lock file."""
    return suite.with_suffix(".lock.yaml")


def read_lock(path: Path) -> Lock:
    """Reads a lock file. Raises UserError for a file that is unreadable or not a lock."""
    try:
        values = read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read lock {path}: {error}") from error
    return validate(Lock, values, str(path))


def hub_task(row: TaskRow) -> HubTask | None:
    """Returns the row's task if its data come from a hub, else None. Raises UserError as `lookup` does."""
    task = row.lookup()
    return task if isinstance(task, HubTask) and task.source.local is None else None
