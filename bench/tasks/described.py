"""Tasks of data that a suite describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.metrics.base import Kind
from bench.tasks.base import SPLITS, DataSource, Examples, SplitName, Streamed, Task
from bench.tasks.catalog import TASKS
from bench.tasks.description import SPLIT_WORDS, Description
from bench.tasks.hub import HubImages, HubTask, HubTexts
from bench.tasks.objective import objective
from bench.tasks.own_data import content_hash, files_of, read_rows
from bench.tasks.own_labels import read_labels
from bench.tasks.tables import blank
from methods.errors import UserError

#: Grows whenever the same description gives other examples.
READING_VERSION = 2

#: The metric of a task that names none.
METRIC_OF: dict[Kind, str] = {
    "single label": "accuracy",
    "multi-label": "f1_macro",
    "regression": "pearson",
    "generation": "exact_match",
}


def described(name: str, asked: Description) -> Task:
    """The task of this name. Raises UserError for data that cannot be read, or do not fit the description."""
    if name in TASKS:
        raise UserError(f"task '{name}': there is a registered task of this name; give your data another one")
    if asked.hub is not None:
        return _of_hub(name, asked)
    with _blaming(name):
        stamps = []
        for role, path in asked.paths.items():
            if not path.expanduser().exists():
                raise UserError(f"{role}: there is no {path} on this machine")
        for named, file in files_of(asked):
            status = file.stat()
            # Of an image the name says its class, which may change where its file does not.
            stamps.append((named, str(file), status.st_size, status.st_mtime_ns))
        return _own(name, asked.model_dump_json(), tuple(stamps))


@lru_cache(maxsize=8)
def _own(name: str, description: str, stamps: tuple[tuple[str, str, int, int], ...]) -> OwnTask:
    """One that is kept as long as its files do not change."""
    return OwnTask(name, Description.model_validate_json(description))


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        told = str(error)
        raise UserError(told if told.startswith(f"task '{name}'") else f"task '{name}': {told}") from error
    except OSError as error:
        raise UserError(f"task '{name}': {error}") from error


def _declare(task: Task, name: str, asked: Description, classes: Sequence[str]) -> None:
    task.name, task.modality, task.classes = name, asked.modality, tuple(classes)
    task.target, task.unit, task.every_class = asked.target, asked.unit, asked.every_class
    task.rules = 2
    task.loss_on, task.new_tokens, task.answer_after = asked.loss_on, asked.new_tokens, asked.answer_after
    task.metric = asked.metric or METRIC_OF[asked.target]
    task.license = "the user's own"
    columns = asked.text or asked.image or "images"
    task.description = f"{asked.format}: {columns if isinstance(columns, str) else ' and '.join(columns)}"
    objective(task)


def _identity(of_task: str, asked: Description, classes: Sequence[str]) -> str:
    # Classes of images in files are read and dealt as they ever were.
    before = asked.format in ("images", "image_list") and asked.target != "regression"
    version = 1 if before else READING_VERSION
    content = json.dumps([version, asked.identity(), list(classes)], sort_keys=True)
    return hashlib.sha256(f"{of_task}\0{content}".encode()).hexdigest()


def _fractions(asked: Description, official: Collection[SplitName]) -> tuple[int, int, int]:
    """The percentages of train, validation and test, of what is not official."""
    if asked.fractions is not None:
        return asked.fractions
    lacking = [split for split in SPLITS if split not in official]
    if not official or len(lacking) > 1:
        return Task.fractions
    return {"validation": (90, 10, 0), "test": (85, 0, 15)}.get("".join(lacking), (100, 0, 0))


class OwnTask(Task):
    """Files of this machine, known by their content."""

    at_hand = True

    def __init__(self, name: str, asked: Description) -> None:
        self._asked, self.paired = asked, isinstance(asked.text, tuple)
        rows = read_rows(asked)
        _declare(self, name, asked, rows.classes)
        splits = rows.splits or ()
        self.fractions = _fractions(asked, set(splits))
        counts = [sum(split == one for one in splits) for split in SPLITS]
        self.sizes = (counts[0], counts[1], counts[2]) if all(counts) else None
        self.data_hash = f"sha256:{content_hash(asked)}"

    def examples(self) -> Examples:
        """One example a row; its id is its row, files and folders one after the other."""
        with _blaming(self.name):
            rows = read_rows(self._asked)
            inputs, template = rows.inputs(), self._asked.template
            if self.target == "generation":
                prompts = inputs
                inputs = Streamed(
                    len(prompts), lambda: (template.replace("{prompt}", one) for one in prompts)
                )
            return Examples(inputs, rows.labels, range(len(rows.labels)), rows.groups, rows.splits)

    def identity_hash(self) -> str:
        return _identity(super().identity_hash(), self._asked, self.classes)


class _OfHub(HubTask):
    """A hub's data set by its columns."""

    named = True

    def __init__(self, name: str, asked: Description) -> None:
        super().__init__()
        assert asked.hub is not None
        assert isinstance(asked.label, str)
        self._asked = asked
        self.source = DataSource(revision=asked.revision)
        self.repository, self.config, self.label = asked.hub, asked.config, asked.label  # type: ignore[misc]
        # Ids count from a split's place: those that a repository mostly has keep theirs.
        usual: dict[str, SplitName | None] = {**{split: split for split in SPLITS}, **SPLIT_WORDS}
        words = dict(asked.splits or usual)
        self.parts = words  # type: ignore[misc]
        self.optional = frozenset(words if asked.splits is None else ())  # type: ignore[misc]
        _declare(self, name, asked, asked.names)

    def _files(self) -> dict[str, list[Path]]:
        found = super()._files()
        if "train" not in map(self.parts.get, found):
            raise UserError(
                f"task '{self.name}': {self.folder() / self.config} has no parquet file of train, named by "
                "its split, such as train-00000-of-00001.parquet; splits says what the data call theirs"
            )
        return found

    def examples(self) -> Examples:
        found = super().examples()
        there = set(found.splits or ())
        return found if there - {"train"} else Examples(found.inputs, found.labels, found.ids)

    def shares(self, official: Collection[SplitName]) -> tuple[int, int, int]:
        return self.redealt or _fractions(self._asked, official)

    def identity_hash(self) -> str:
        return _identity(super().identity_hash(), self._asked, self.classes)

    @property
    def numbered(self) -> tuple[str, ...]:
        named = self._asked.classes
        if not isinstance(named, dict):
            return self.classes
        return tuple(named.get(str(number), "") for number in range(len(named)))

    def _check_column(self, part: str, column: str, values: Any) -> None:
        super()._check_column(part, column, values)
        if self.modality == "text" and column in self.columns and (row := blank(values)) is not None:
            raise UserError(f"task '{self.name}': {column} of the {part} split has no text in row {row}")

    def labels_of(self, values: Any) -> list[Any]:
        line = lambda row: f"row {row}"  # noqa: E731
        return list(read_labels(self._asked, values, line)[1])


class _HubTexts(_OfHub, HubTexts):
    @property
    def columns(self) -> tuple[str, ...]:
        text = self._asked.text
        return (text,) if isinstance(text, str) else text or ()


class _HubImages(_OfHub, HubImages):
    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self._asked.image or "",)


def _of_hub(name: str, asked: Description) -> Task:
    return (_HubTexts if asked.text is not None else _HubImages)(name, asked)
