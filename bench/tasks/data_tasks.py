"""Makes tasks from tables: those that a suite describes, and those of hub repositories."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from tensorbench.machine.files import sha256, sha256_of
from tensorbench.machine.hub import commit_of, snapshot
from tensorbench.methods.errors import UserError
from tensorbench.methods.validation import hashed
from tensorbench.records.metrics.metric import Kind
from tensorbench.tasks.description import SPLIT_WORDS, Description
from tensorbench.tasks.objective import objective
from tensorbench.tasks.registered_tasks import TASKS
from tensorbench.tasks.rows import read_rows
from tensorbench.tasks.tables import LABEL, Table, names_of, read_parquet, read_tables
from tensorbench.tasks.task import SPLITS, DataSource, Examples, SplitName, Task

#: The version of the code that reads described data. Increment it if the same description would give other
#: examples than before.
READING_VERSION = 2

#: The names of folders with public data that this project's suites read, and the pages that tell where to get
#: the data.
PUBLISHED = {"vtab-1k": "https://github.com/ZhangYuanhan-AI/NOAH/#data-preparation"}

#: The default metric for each kind of target.
METRIC_OF: dict[Kind, str] = {
    "single label": "accuracy",
    "multi-label": "f1_macro",
    "regression": "pearson",
    "generation": "exact_match",
}

#: Ids of a hub task's examples start at 0 in the first split of `HubTask.parts`, at this number in the
#: second, and so on.
SPLIT_STRIDE = 10**9


def resolve(
    name: str,
    data: Description | None = None,
    source: DataSource | None = None,
    fractions: tuple[int, int, int] | None = None,
    metric: str | None = None,
) -> Task:
    """Returns the task that a suite names: a registered one, or one made from the description `data`.

    `source`, `fractions` and `metric` replace the task's own unless they are None. Described data are read,
    which may take long, so call this once per task of a suite. Raises UserError for an unknown name, for the
    name of a registered task beside data, for data that are unreadable or contradict their description, and
    for a source, fractions or a metric that do not fit the task.
    """
    task: Task
    if data is None:
        task = TASKS.get(name)
    elif name in TASKS:
        raise UserError(
            f"task '{name}': there is a registered task of this name; give your data another name"
        )
    elif data.hub is not None:
        task = HubTask(name, data)
    else:
        task = _own_task(name, data)
    task = task if source is None else task.at(source)
    if fractions is None and metric is None:
        return task
    task = task.altered(fractions, metric)
    objective(task)
    return task


def _own_task(name: str, data: Description) -> OwnTask:
    with _blaming(name):
        for role, path in data.paths.items():
            if not path.expanduser().exists():
                places = [
                    f"; {place} says where to get {of}" for of, place in PUBLISHED.items() if of in path.parts
                ]
                raise UserError(f"{role}: there is no {path} on this machine{''.join(places)}")
        stamps = []
        for named, file in files_of(data):
            status = file.stat()
            # An image's name includes its class, which may change while the file does not.
            stamps.append((named, str(file), status.st_size, status.st_mtime_ns))
        return _unchanged(name, data.model_dump_json(), tuple(stamps))


@lru_cache(maxsize=8)
def _unchanged(name: str, description: str, stamps: tuple[tuple[str, str, int, int], ...]) -> OwnTask:
    """Makes a task from files on this machine.

    `stamps` holds the name, path, size in bytes and modification time of every file. Calls with equal
    arguments return the same task, so changed files are read again.
    """
    return OwnTask(name, Description.model_validate_json(description))


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """A context that raises each UserError and OSError as a UserError beginning with the task's name."""
    try:
        yield
    except (UserError, OSError) as error:
        message, where = str(error), f"task '{name}'"
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from error


def files_of(data: Description, tables: Sequence[Table] | None = None) -> list[tuple[str, Path]]:
    """Returns all files of the data as (name, path). The names stay the same if the data are moved.

    Without `tables`, reads them if necessary. Raises UserError as `read_tables` does.
    """
    if (folder := data.dataset) is not None:
        # `datasets` writes the results of `map` and `filter` there, under names that begin with "cache-".
        files = sorted(file for file in folder.rglob("*.arrow") if not file.name.startswith("cache-"))
        return [(str(file.relative_to(folder)), file) for file in files]
    paths = list(data.paths.items())
    if (data.image is None and data.format not in ("images", "image_list")) or data.parquet is not None:
        return paths
    tables = tables or read_tables(data)
    files = [file for table in tables for file in table.files or ()]
    if data.images is not None:
        return [(str(file.relative_to(data.images)), file) for file in files]
    if data.image_list is not None:
        labels = [f"{table.split} {label}" for table in tables for label in table.columns[LABEL].to_pylist()]
        return list(zip(labels, files, strict=True))
    return paths + [(str(row), file) for row, file in enumerate(files)]


class DataTask(Task):
    """A task of tables that a description explains: which columns are inputs, and which are labels.

    `published` gives attributes of a task of this package, such as `license` and `fractions`. Without it, the
    task counts as one that a suite describes, and the description enters its identity.
    """

    def __init__(self, name: str, data: Description, **published: Any) -> None:
        self.name, self.data, self.modality = name, data, data.modality
        self.paired, self.classes = isinstance(data.text, tuple), data.names
        self.target, self.unit, self.every_class = data.target, data.unit, data.every_class
        self.loss_on, self.new_tokens, self.answer_after = data.loss_on, data.new_tokens, data.answer_after
        self.metric = data.metric or METRIC_OF[data.target]
        self.license = "the user's own"
        self.description = f"{data.format}: {' and '.join(names_of(data.text or data.image or 'images'))}"
        self.rules = 1 if published else 2
        vars(self).update(published)

    def shares(self, official: Collection[SplitName]) -> tuple[int, int, int]:
        if self.redealt or self.rules == 1:
            return self.fractions
        if self.data.fractions is not None:
            return self.data.fractions
        lacking = [split for split in SPLITS if split not in official]
        if not official or len(lacking) > 1:
            return Task.fractions
        return {"validation": (90, 10, 0), "test": (85, 0, 15)}.get("".join(lacking), (100, 0, 0))

    def identity_hash(self) -> str:
        own = super().identity_hash()
        if self.rules == 1:
            return own
        content = {"task": own, "reading": READING_VERSION, "classes": self.classes}
        return hashed({**content, "description": self.data.identity()})


class OwnTask(DataTask):
    """A task made from files on this machine, identified by their content."""

    at_hand = True

    def __init__(self, name: str, data: Description) -> None:
        super().__init__(name, data)
        tables = read_tables(data)
        rows = read_rows(data, tables)
        self.classes, splits = rows.classes, rows.splits or []
        objective(self)
        self.fractions = self.shares(set(splits))
        train, validation, test = (splits.count(split) for split in SPLITS)
        self.sizes = (train, validation, test) if train and validation and test else None
        # Moving the data does not change it.
        content = "".join(f"{named} {sha256(file)}\n" for named, file in files_of(data, tables))
        self.data_hash = f"sha256:{sha256_of(content.encode())}"

    def examples(self) -> Examples:
        """Returns one example per row. Its id is the row's number, counted through all files."""
        with _blaming(self.name):
            rows = read_rows(self.data, read_tables(self.data))
            return Examples(rows.inputs(), rows.labels, range(len(rows.labels)), rows.groups, rows.splits)


class HubTask(DataTask):
    """A task whose data are parquet files in a hub repository, or in a local folder with the same files.

    Code in a repository is never run. `parts` maps the repository's names of splits to ours. If all values
    are None, the repository's splits are ignored and all examples are dealt. If validation is missing, it is
    dealt from train. The parts in `optional` may be missing. Other arguments are those of `DataTask`, such as
    in `HubTask("news", Description(hub="me/news", text="title", …), license="MIT", description="News")`.
    """

    def __init__(
        self,
        name: str,
        data: Description,
        parts: dict[str, SplitName | None] | None = None,
        optional: Collection[str] = (),
        **published: Any,
    ) -> None:
        super().__init__(name, data, **published)
        self.source = DataSource(revision=data.revision)
        # Ids of examples depend on a split's position in this order, which must never change.
        own: dict[str, SplitName | None] = dict(sorted((data.splits or {}).items()))
        usual: dict[str, SplitName | None] = {split: split for split in SPLITS}
        usual |= SPLIT_WORDS
        self.parts = parts or own or usual
        self.optional = frozenset(optional if parts or own else usual)
        objective(self)

    def at(self, source: DataSource) -> Self:
        task = copy.copy(self)
        task.source = source
        return task

    def altered(self, fractions: tuple[int, int, int] | None, metric: str | None) -> Task:
        """Returns a copy with other fractions or another metric, like `Task.altered`.

        Raises UserError if `fractions` is given and an official validation or test split is not optional.
        """
        official = {self.parts[part] for part in self.parts.keys() - self.optional}
        if fractions is not None and official & {"validation", "test"}:
            raise UserError(
                f"task '{self.name}': fractions go with splits that are dealt, and its are official"
            )
        return super().altered(fractions, metric)

    def pinned(self) -> DataSource:
        if self.source.local is not None:
            return self.source
        return self.source.model_copy(update={"hub": self.where, "revision": self.commit})

    @property
    def where(self) -> str:
        """The hub repository of the data."""
        return self.source.hub or str(self.data.hub)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Glob patterns of this task's files in the repository."""
        return (f"{self.data.config}/*.parquet" if self.data.config else "*.parquet",)

    @property
    def commit(self) -> str | None:
        """The current commit of the source's revision. None for a local folder.

        Raises the errors of `snapshot`.
        """
        return None if self.source.local else commit_of(self.where, self.source.revision, "dataset")

    @property
    def data_hash(self) -> str:  # type: ignore[override]
        """Identifies the data by repository and commit, or by a hash of the files in a local folder.

        Raises UserError if the commit is not available, or if files are missing.
        """
        if self.source.local is None:
            return f"hub:{self.where}@{self.commit}"
        files = ((part, file) for part, files in self._files().items() for file in files)
        content = "".join(f"{part} {sha256(file)}\n" for part, file in files)
        return f"sha256:{sha256_of(content.encode())}"

    def beneath(self, folder: Path) -> DataSource:
        """Returns the source of this task's data in a folder with the data of several tasks.

        The source is the subfolder named after the task, its configuration (`mnli`) or its repository (`glue`
        or `nyu-mll/glue`). Raises UserError if `folder` does not exist or has no such subfolder.
        """
        if not folder.expanduser().is_dir():
            raise UserError(f"source: there is no folder {folder} on this machine")
        names = dict.fromkeys((self.name, self.data.config, self.where.rpartition("/")[2], self.where))
        for name in filter(None, names):
            if (place := folder.expanduser() / name).is_dir():
                return DataSource(local=place)
        raise UserError(
            f"task '{self.name}': {folder} has no folder {', '.join(filter(None, names))}; leave the task "
            "out (--task names those that are there), or give it a source of its own"
        )

    def folder(self) -> Path:
        """Returns the folder with the parquet files, downloaded if necessary.

        Raises UserError for a local folder that does not exist, and the errors of `snapshot`.
        """
        if self.source.local is None:
            return snapshot(self.where, self.commit, self.patterns, "dataset")
        if not (folder := self.source.local.expanduser()).is_dir():
            raise UserError(f"task '{self.name}': there is no folder {folder}")
        return folder

    def examples(self) -> Examples:
        """Returns one example per row.

        An example's id is its row in its split, plus 10⁹ times the position of the split in `parts`. Raises
        the errors of `folder`, and UserError for missing files and for columns, types or classes that
        contradict the task.
        """
        names, tables = (*names_of(self.data.text or self.data.image), *names_of(self.data.label)), []
        ids: list[int] = []
        parts = list(self.parts)
        for part, files in self._files().items():
            where = f"task '{self.name}': the {part} split"
            tables.append(replace(read_parquet(files, names, where), split=self.parts[part]))
            first = parts.index(part) * SPLIT_STRIDE
            ids += range(first, first + len(tables[-1].columns))
        with _blaming(self.name):
            # GLUE has a few questions without words.
            rows = read_rows(self.data, tables, blank=self.rules == 1)
            return Examples(rows.inputs(), rows.labels, ids, splits=rows.splits)

    def _files(self) -> dict[str, list[Path]]:
        """Returns the files of each split that the repository has.

        Raises UserError for a required split without files, for a split of which some files are missing, and
        for a split with two sets of files.
        """
        within = self.folder() / self.data.config
        # `data/train-00000-of-00002.parquet`, the hub's own `train/0000.parquet`, or `train.parquet`.
        every = list(within.rglob("*.parquet"))
        if not within.is_dir():
            # A folder with only this task's files. Folders of other configurations must not match.
            within = self.folder()
            every = [file for place in (".", *self.parts) for file in (within / place).glob("*.parquet")]
        part_files: dict[str, list[Path]] = {part: [] for part in self.parts}
        for file in sorted(every):
            inner = file.relative_to(within)
            hidden = any(name.startswith(".") for name in inner.parts)
            # The name of a file takes precedence over that of its folder.
            for name in (_beginning(file), *inner.parts[-2:-1]):
                if name in part_files and file.is_file() and not hidden:
                    part_files[name].append(file)
                    break
        lacking = [part for part, files in part_files.items() if not files and part not in self.optional]
        if not any(part_files[part] for part, split in self.parts.items() if split in ("train", None)):
            lacking = lacking or ["train"]
        if lacking:
            raise UserError(
                f"task '{self.name}': {within} has no parquet file of {', '.join(lacking)}; it needs those "
                f"of the data set {self.where}, named by split, such as {lacking[0]}-00000-of-00001.parquet. "
                "If the repository stores its data in another form, the hub may have converted them: try "
                "`source: {revision: refs/convert/parquet}`"
                + ("" if self.rules == 1 else "; `splits` says which of ours the data's splits are")
            )
        for part, files in part_files.items():
            # All files that begin with a split's name, or the whole folder of that name.
            places = {f"{f.parent}/{part}*" if _beginning(f) == part else f"{f.parent}/*" for f in files}
            if len(places) > 1:
                raise UserError(
                    f"task '{self.name}': {within} has the files of {part} more than once: "
                    f"{', '.join(sorted(places))}; keep one of them"
                )
            shards = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)", file.name))}
            if shards and len(files) != sum(shards):
                raise UserError(
                    f"task '{self.name}': {within} has {len(files)} of {sum(shards)} files of {part}"
                )
        return {part: files for part, files in part_files.items() if files}


def _beginning(file: Path) -> str:
    """Returns a file's name up to the first hyphen or the ending: "train" for train-0-of-2.parquet."""
    return file.stem.split("-")[0]
