"""Tasks whose data are parquet files of a hub repository, or of a folder in their place."""

from __future__ import annotations

import copy
import hashlib
import re
from abc import abstractmethod
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from bench.process.files import sha256
from bench.sources.hub import commit_of, snapshot
from bench.tasks.base import DataSource, Examples, LazyImages, SplitName, Task
from bench.tasks.own_labels import listed
from bench.tasks.pictures import decoded
from bench.tasks.tables import embedded, is_text
from methods.errors import UserError

#: The examples of the repository's first split have ids from 0 on, those of its second from here, and so on.
_SPLIT_STRIDE = 10**9


class HubTask(Task):
    """A task with a repository's parquet files, in the columns that the repository gives them.

    `parts` are the repository's splits and which of ours each is: its train split is dealt further where
    none is validation, and with all None everything is dealt. The ones in `optional` may be absent. No code
    of a repository is ever run.
    """

    repository: ClassVar[str]
    #: The folder of the repository that has this task's files; empty where it has no such folders.
    config: ClassVar[str] = ""
    parts: ClassVar[dict[str, SplitName | None]]
    optional: ClassVar[frozenset[str]] = frozenset()
    label: ClassVar[str] = "label"
    #: Whether labels may be the names of the classes.
    named: ClassVar[bool] = False

    def __init__(self) -> None:
        self.source = DataSource()

    def at(self, source: DataSource) -> Self:
        task = copy.copy(self)
        task.source = source
        return task

    def altered(self, fractions: tuple[int, int, int] | None, metric: str | None) -> Task:
        """Raises UserError for fractions where splits are official for sure."""
        if fractions is not None and self.official & {"validation", "test"}:
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
        """The hub repository that the data come from."""
        return self.source.hub or self.repository

    @property
    def patterns(self) -> tuple[str, ...]:
        """The repository's files that are used."""
        return (f"{self.config}/*.parquet" if self.config else "*.parquet",)

    @property
    def official(self) -> frozenset[SplitName | None]:
        """Our splits that the repository has for sure."""
        return frozenset(of for part, of in self.parts.items() if part not in self.optional)

    @property
    def commit(self) -> str | None:
        """What the source's revision names now; None for a local folder. Raises UserError."""
        return None if self.source.local else commit_of(self.where, self.source.revision, "dataset")

    @property
    def data_hash(self) -> str:  # type: ignore[override]
        """Repository and commit, or the hash of a local folder's files. Raises UserError."""
        if self.source.local is None:
            return f"hub:{self.where}@{self.commit}"
        digest = hashlib.sha256()
        for part, files in self._files().items():
            for file in files:
                digest.update(f"{part} {sha256(file)}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    def folder(self) -> Path:
        """The folder with the parquet files, downloaded if need be. Raises UserError."""
        if self.source.local is not None:
            folder = self.source.local.expanduser()
            if not folder.is_dir():
                raise UserError(f"task '{self.name}': there is no folder {folder}")
            return folder
        return snapshot(self.where, self.commit, self.patterns, "dataset", self.source.locked)

    def examples(self) -> Examples:
        """One example a row; its id is its row, counted on from a billion times its split's place."""
        tables = {part: self._table(part, files) for part, files in self._files().items()}
        named = {part: getattr(table.features[self.label], "names", None) for part, table in tables.items()}
        (first, names), *others = [(part, names) for part, names in named.items() if names] or [("", ())]
        for part, more in others:
            self._check_order(part, more, f"the {first} split", names)
        labels: list[Any] = []
        ids: list[int] = []
        splits: list[SplitName | None] = []
        for place, part in enumerate(self.parts):
            if part in tables:
                labels += self.labels_of(tables[part][self.label])
                ids += range(place * _SPLIT_STRIDE, place * _SPLIT_STRIDE + len(tables[part]))
                splits += [self.parts[part]] * len(tables[part])
        official = [split for split in splits if split is not None]
        return Examples(self.inputs(list(tables.values())), labels, ids, splits=official or None)

    @property
    def numbered(self) -> tuple[str, ...]:
        """The classes in the order of the numbers that the repository's labels have."""
        return self.classes

    def _check_order(self, part: str, named: Sequence[str], other: str, names: Sequence[str]) -> None:
        """Raises UserError where a split numbers its classes otherwise than another one, or the task."""
        if tuple(named) != tuple(names):
            raise UserError(
                f"task '{self.name}': the {part} split numbers its classes as {listed(named)}, and {other} "
                f"as {listed(names)}: the same number would be two classes"
            )

    def labels_of(self, values: Any) -> list[Any]:
        """The labels of a column's values, which are the numbers of the classes or targets already."""
        return list(values)

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that `inputs` reads."""

    @abstractmethod
    def inputs(self, tables: list[Any]) -> Any:
        """The inputs of `datasets.Dataset`s, one after the other."""

    def _files(self) -> dict[str, list[Path]]:
        """The files of each split. Raises UserError for a split without, or with some of its files only."""
        within = self.folder() / self.config
        # `data/train-00000-of-00002.parquet`, the hub's own `train/0000.parquet`, or `train.parquet`.
        every = list(within.rglob("*.parquet"))
        if not within.is_dir():
            # A folder of this task alone; one of another configuration's must not be taken for it.
            within = self.folder()
            every = [file for place in (".", *self.parts) for file in (within / place).glob("*.parquet")]
        found: dict[str, list[Path]] = {part: [] for part in self.parts}
        for file in sorted(every):
            inner = file.relative_to(within)
            hidden = any(name.startswith(".") for name in inner.parts)
            # A file's own name counts before that of its folder; how `within` is called says nothing.
            for name in (_begins(file), *inner.parts[-2:-1]):
                if name in found and file.is_file() and not hidden:
                    found[name].append(file)
                    break
        lacking = [part for part, files in found.items() if not files and part not in self.optional]
        if lacking:
            raise UserError(
                f"task '{self.name}': {within} has no parquet file of {', '.join(lacking)}; it needs those "
                f"of the data set {self.where}, named by split, such as {lacking[0]}-00000-of-00001.parquet. "
                "Of a repository that keeps its data otherwise, the hub may have made such files: ask for "
                "them with `source: {revision: refs/convert/parquet}`"
            )
        for part, files in found.items():
            if len(places := sorted({_place(file, part) for file in files})) > 1:
                raise UserError(
                    f"task '{self.name}': {within} has the files of {part} more than once: "
                    f"{', '.join(places)}; keep one of them"
                )
            shards = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)", file.name))}
            if shards and len(files) != sum(shards):
                raise UserError(
                    f"task '{self.name}': {within} has {len(files)} of {sum(shards)} files of {part}"
                )
        return {part: files for part, files in found.items() if files}

    def _table(self, part: str, files: list[Path]) -> Any:
        """A split as a `datasets.Dataset` in memory. Raises UserError for columns that are not the task's."""
        import datasets
        import pyarrow
        from datasets.table import InMemoryTable
        from pyarrow import parquet

        wanted = [*self.columns, self.label]
        try:
            have = parquet.read_schema(files[0]).names
            if missing := [column for column in wanted if column not in have]:
                raise UserError(
                    f"task '{self.name}': the {part} split lacks the columns {', '.join(missing)}; it has "
                    f"{', '.join(have)}"
                )
            table = pyarrow.concat_tables([parquet.read_table(file, columns=wanted) for file in files])
            split = datasets.Dataset(InMemoryTable(table), split=datasets.NamedSplit(part))
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(f"task '{self.name}': {files[0].parent} cannot be read: {error}") from error
        named = tuple(getattr(split.features[self.label], "names", None) or ())
        if named and self.classes and len(named) != len(self.classes):
            raise UserError(
                f"task '{self.name}': the {part} split has {len(named)} classes, not {len(self.classes)}"
            )
        if sorted(named) == sorted(self.numbered):
            self._check_order(part, named, "the task", self.numbered)
        for column in wanted:
            self._check_column(part, column, table[column])
        return split

    def _check_column(self, part: str, column: str, values: Any) -> None:
        """Raises UserError for rows without a value, and for labels or texts that are something else."""
        from pyarrow import types

        where = f"task '{self.name}': {column} of the {part} split"
        if values.null_count:
            raise UserError(f"{where} has no value in {values.null_count} of {len(values)} rows")
        kind = values.type.value_type if types.is_dictionary(values.type) else values.type
        whole = types.is_integer(kind) or types.is_boolean(kind)
        if column == self.label and self.target == "regression" and not (whole or types.is_floating(kind)):
            raise UserError(f"{where} should hold numbers, got values of type {kind}")
        if (
            column == self.label
            and self.target not in ("regression", "generation")
            and not (whole or (self.named and is_text(kind)))
        ):
            raise UserError(f"{where} should hold the numbers of the classes, got values of type {kind}")
        texts = (*self.columns, self.label) if self.target == "generation" else self.columns
        if column in texts and self.modality == "text" and not is_text(kind):
            raise UserError(f"{where} should hold texts, got values of type {kind}")


def _place(file: Path, part: str) -> str:
    """Where a split's files lie and how they are named: one data set has one such place."""
    return f"{file.parent}/{part}*" if _begins(file) == part else f"{file.parent}/*"


def _begins(file: Path) -> str:
    """The split that a file's name begins with, if it is one."""
    return file.stem.split("-")[0]


class HubTexts(HubTask):
    """Texts of one column, or pairs of two."""

    modality = "text"

    @property
    def paired(self) -> bool:  # type: ignore[override]
        return len(self.columns) > 1

    def inputs(self, tables: list[Any]) -> Any:
        rows = [row for table in tables for row in zip(*(table[name] for name in self.columns), strict=True)]
        return rows if len(self.columns) > 1 else [text for (text,) in rows]


class HubImages(HubTask):
    """Images of one column: their encoded bytes, alone or as `datasets.Image` stores them, beside a path."""

    modality = "vision"
    columns = ("image",)

    def inputs(self, tables: list[Any]) -> Any:
        parts = [self._contents(table) for table in tables]
        starts = [0, *accumulate(map(len, parts))]

        def image(i: int) -> np.ndarray:
            part = bisect(starts, i) - 1
            row = i - starts[part]
            try:
                return decoded(parts[part][row].as_py())
            except ValueError as error:
                raise UserError(
                    f"task '{self.name}': the image in row {row} of the {tables[part].split} split cannot be "
                    f"read: {error}"
                ) from error

        return LazyImages(range(starts[-1]), image)

    def _contents(self, table: Any) -> Any:
        """The images' bytes, a pyarrow array. Raises UserError for an image that is not in the file."""
        (column,) = self.columns
        where = f"task '{self.name}': {column} of the {table.split} split"
        return embedded(lambda row: f"{where}, row {row},", table.data.column(column))
