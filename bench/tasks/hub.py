"""Tasks whose data are parquet files in a hub repository, or in a local folder with the same files."""

from __future__ import annotations

import copy
import hashlib
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from tensorbench.machine.files import sha256
from tensorbench.machine.hub import commit_of, snapshot
from tensorbench.methods.errors import UserError
from tensorbench.tasks.images import EncodedImages
from tensorbench.tasks.own_labels import listed
from tensorbench.tasks.table_files import Table, embedded_images, is_text, read_parquet
from tensorbench.tasks.task import DataSource, Examples, SplitName, Task

#: Ids start at 0 in the first split of `HubTask.parts`, at this number in the second, and so on.
_SPLIT_STRIDE = 10**9


class HubTask(Task):
    """A task whose data are the parquet files of a hub repository. Code in a repository is never run."""

    repository: ClassVar[str]
    #: The folder of this task's files in the repository. Empty if the files have no folder of their own.
    config: ClassVar[str] = ""
    #: The repository's names of splits, mapped to ours. If all values are None, the repository's splits are
    #: ignored and all examples are dealt. If validation is missing, it is dealt from train.
    parts: ClassVar[dict[str, SplitName | None]]
    #: The keys of `parts` that the repository need not have.
    optional: ClassVar[frozenset[str]] = frozenset()
    #: The column of labels.
    label: ClassVar[str] = "label"
    #: Whether the label column may hold class names instead of class numbers.
    named: ClassVar[bool] = False

    def __init__(self) -> None:
        self.source = DataSource()

    def at(self, source: DataSource) -> Self:
        task = copy.copy(self)
        task.source = source
        return task

    def altered(self, fractions: tuple[int, int, int] | None, metric: str | None) -> Task:
        """Returns a copy, as `Task.altered` does.

        Raises UserError for fractions if the repository always has an official validation or test split.
        """
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
        """The hub repository of the data."""
        return self.source.hub or self.repository

    @property
    def patterns(self) -> tuple[str, ...]:
        """Glob patterns of this task's files in the repository."""
        return (f"{self.config}/*.parquet" if self.config else "*.parquet",)

    @property
    def official(self) -> frozenset[SplitName | None]:
        """The official splits, by our names, that the repository always has."""
        return frozenset(of for part, of in self.parts.items() if part not in self.optional)

    @property
    def commit(self) -> str | None:
        """The current commit of the source's revision. None for a local folder.

        Raises UserError as `snapshot` does.
        """
        return None if self.source.local else commit_of(self.where, self.source.revision, "dataset")

    @property
    def data_hash(self) -> str:  # type: ignore[override]
        """Identifies the data by repository and commit, or by a hash of the files in a local folder.

        Raises UserError if the commit is not available, or if files are missing.
        """
        if self.source.local is None:
            return f"hub:{self.where}@{self.commit}"
        digest = hashlib.sha256()
        for part, files in self._files().items():
            for file in files:
                digest.update(f"{part} {sha256(file)}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    def beneath(self, folder: Path) -> DataSource:
        """Returns the source of this task's data in a folder with the data of several tasks.

        It is the folder there that has the name of the task, of its configuration (`mnli`) or of its
        repository (`glue` or `nyu-mll/glue`). Raises UserError if there is none, or no folder at all.
        """
        if not folder.expanduser().is_dir():
            raise UserError(f"source: there is no folder {folder} on this machine")
        names = dict.fromkeys((self.name, self.config, self.where.rpartition("/")[2], self.where))
        for name in filter(None, names):
            if (place := folder.expanduser() / name).is_dir():
                return DataSource(local=place)
        raise UserError(
            f"task '{self.name}': {folder} has no folder {', '.join(filter(None, names))}; leave the task "
            "out (--task names those that are there), or give it a source of its own"
        )

    def folder(self) -> Path:
        """Returns the folder with the parquet files, downloaded if necessary.

        Raises UserError for a local folder that does not exist, and as `snapshot` does.
        """
        if self.source.local is not None:
            folder = self.source.local.expanduser()
            if not folder.is_dir():
                raise UserError(f"task '{self.name}': there is no folder {folder}")
            return folder
        return snapshot(self.where, self.commit, self.patterns, "dataset")

    def examples(self) -> Examples:
        """Returns one example per row.

        An example's id is its row in its split, plus 10⁹ times the position of the split in `parts`. Raises
        UserError as `folder` does, for missing files, and for columns, types or classes that contradict the
        task.
        """
        tables = {part: self._table(part, files) for part, files in self._files().items()}
        (first, names), *remaining = [
            (part, table.class_names[self.label])
            for part, table in tables.items()
            if self.label in table.class_names
        ] or [("", [])]
        for part, other_names in remaining:
            self._check_order(part, other_names, f"the {first} split", names)
        labels: list[Any] = []
        ids: list[int] = []
        splits: list[SplitName | None] = []
        for place, part in enumerate(self.parts):
            if part in tables:
                of_part = self.labels_of(tables[part].columns[self.label].to_pylist())
                labels += of_part
                ids += range(place * _SPLIT_STRIDE, place * _SPLIT_STRIDE + len(of_part))
                splits += [self.parts[part]] * len(of_part)
        official = [split for split in splits if split is not None]
        return Examples(self.inputs(tables), labels, ids, splits=official or None)

    @property
    def numbered(self) -> tuple[str, ...]:
        """The classes in the order of the repository's class numbers."""
        return self.classes

    def _check_order(self, part: str, named: Sequence[str], other: str, names: Sequence[str]) -> None:
        """Raises UserError if a split numbers its classes differently from another split or the task."""
        if tuple(named) != tuple(names):
            raise UserError(
                f"task '{self.name}': the {part} split numbers its classes as {listed(named)}, and {other} "
                f"as {listed(names)}: the same number would be two classes"
            )

    def labels_of(self, values: Any) -> list[Any]:
        """Converts a column's values to labels: class numbers or targets."""
        return list(values)

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that `inputs` reads."""

    @abstractmethod
    def inputs(self, tables: Mapping[str, Table]) -> Sequence[Any]:
        """Returns the inputs of all tables, one after the other. `tables` has one table per split."""

    def _files(self) -> dict[str, list[Path]]:
        """Returns the files of each split that the repository has.

        Raises UserError for a required split without files, and for a split whose files are incomplete or in
        two places.
        """
        within = self.folder() / self.config
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
        if lacking:
            raise UserError(
                f"task '{self.name}': {within} has no parquet file of {', '.join(lacking)}; it needs those "
                f"of the data set {self.where}, named by split, such as {lacking[0]}-00000-of-00001.parquet. "
                "Of a repository that keeps its data otherwise, the hub may have made such files: ask for "
                "them with `source: {revision: refs/convert/parquet}`"
            )
        for part, files in part_files.items():
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
        return {part: files for part, files in part_files.items() if files}

    def _table(self, part: str, files: list[Path]) -> Table:
        """Reads a split with the task's columns. Raises UserError for columns that contradict the task."""
        names = (*self.columns, self.label)
        table = read_parquet(files, names, f"task '{self.name}': the {part} split")
        class_names = table.class_names.get(self.label, [])
        if class_names and self.classes and len(class_names) != len(self.classes):
            raise UserError(
                f"task '{self.name}': the {part} split has {len(class_names)} classes, "
                f"not {len(self.classes)}"
            )
        if sorted(class_names) == sorted(self.numbered):
            self._check_order(part, class_names, "the task", self.numbered)
        for name in names:
            self._check_column(part, name, table.columns[name])
        return table

    def _check_column(self, part: str, column: str, values: Any) -> None:
        """Raises UserError for rows without a value, and for labels or texts of the wrong type."""
        from pyarrow import types

        where = f"task '{self.name}': {column} of the {part} split"
        if values.null_count:
            raise UserError(f"{where} has no value in {values.null_count} of {len(values)} rows")
        kind = values.type.value_type if types.is_dictionary(values.type) else values.type
        numbered = types.is_integer(kind) or types.is_boolean(kind)
        if column == self.label and self.target == "regression" and not (numbered or types.is_floating(kind)):
            raise UserError(f"{where} should hold numbers, got values of type {kind}")
        if (
            column == self.label
            and self.target not in ("regression", "generation")
            and not (numbered or (self.named and is_text(kind)))
        ):
            raise UserError(f"{where} should hold the numbers of the classes, got values of type {kind}")
        texts = (*self.columns, self.label) if self.target == "generation" else self.columns
        if column in texts and self.modality == "text" and not is_text(kind):
            raise UserError(f"{where} should hold texts, got values of type {kind}")


def _place(file: Path, part: str) -> str:
    """Returns a glob pattern for the set of files to which a split's file belongs.

    If the file's name begins with the split's name, the set is all such files in its folder. Otherwise the
    whole folder belongs to the split. If the files of a split give two patterns, the repository has the split
    twice.
    """
    return f"{file.parent}/{part}*" if _beginning(file) == part else f"{file.parent}/*"


def _beginning(file: Path) -> str:
    """Returns a file's name up to the first hyphen or the ending: "train" for train-0-of-2.parquet."""
    return file.stem.split("-")[0]


class HubTexts(HubTask):
    """A hub task of texts in one column, or of pairs of texts in two columns."""

    modality = "text"

    @property
    def paired(self) -> bool:  # type: ignore[override]
        return len(self.columns) > 1

    def inputs(self, tables: Mapping[str, Table]) -> Sequence[Any]:
        columns = [
            [text for table in tables.values() for text in table.columns[name].to_pylist()]
            for name in self.columns
        ]
        return list(zip(*columns, strict=True)) if self.paired else columns[0]


class HubImages(HubTask):
    """A hub task of images in one column, as encoded bytes or in the form of `datasets.Image`."""

    modality = "vision"
    columns = ("image",)

    def inputs(self, tables: Mapping[str, Table]) -> Sequence[Any]:
        (column,) = self.columns
        items: list[tuple[str, int, Any]] = []
        for part, table in tables.items():
            where = f"task '{self.name}': {column} of the {part} split, row "
            images = embedded_images(table.columns[column], lambda row, where=where: f"{where}{row},")  # type: ignore[misc]
            items += [(part, row, image) for row, image in enumerate(images)]
        return EncodedImages(
            items,
            lambda item: bytes(item[2].as_py()),
            lambda item: f"task '{self.name}': the image in row {item[1]} of the {item[0]} split",
        )
