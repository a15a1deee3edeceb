"""The interface of choosers, which run trials, choose by validation results, and write a suite.

There are three: the search and the allocation, which choose ranks, and the pilot, which chooses rates and
epochs for studies. The allocation needs no trials.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from tensorbench.machine.files import written_whole
from tensorbench.methods import UserError
from tensorbench.methods.errors import cut, shown
from tensorbench.methods.validation import MOST_OF_LABEL, validate
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.suite import Suite, with_methods
from tensorbench.plan.suite_rows import NAME, NAME_RULE
from tensorbench.plan.trial import Trial
from tensorbench.plan.yaml_text import parse, written
from tensorbench.records.record import Record, results
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import By

if TYPE_CHECKING:
    # Imported late, since it takes a second.
    from tensorbench.reports.choice import RankChoice


@dataclass
class Batch:
    """Trials whose results a chooser needs before it continues, with their rows and the cell of each row."""

    #: The subject of the choice, in words.
    title: str
    rows: list[Row] = field(default_factory=list)
    cells: list[PlanCell] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    #: The number of trials that the chooser needs afterwards and that depend on these results.
    following: int = 0

    def add(self, cell: PlanCell, trials: Sequence[Trial], **options: Any) -> list[str]:
        """Adds a row of trials, with these `options` of `PlanCell.row`. Returns their ids."""
        self.rows.append(cell.row(trials, **options))
        self.cells.append(cell)
        self.trials += trials
        return [trial.id for trial in trials]


def mean_result(records: Mapping[str, Record], ids: Collection[str], by: By) -> float | None:
    """Returns the mean validation result of trials. None unless each of them has one."""
    values = results(records, ids, by)
    return fmean(values) if len(values) == len(ids) else None


@dataclass
class Choices:
    """The choices of a chooser, as changes to its suite, with the results on which they are based."""

    #: The fields of `training` that were chosen for a task, by the task's name.
    training: dict[str, dict[str, float]] = field(default_factory=dict)
    #: The chosen centres, by index of the method's row in the suite. With a centre for each task, by task.
    centres: dict[int, float | dict[str, float]] = field(default_factory=dict)
    #: The rows that replace a row of the suite's methods, by its index.
    methods: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    #: A line for each choice. The written suite begins with them.
    lines: list[str] = field(default_factory=list)
    #: The choices of ranks, with all points that were tried.
    ranks: list[RankChoice] = field(default_factory=list)
    #: A line for each choice that could not be made.
    missing: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.missing


#: Yields batches and receives the stored records of their trials, from old to new. Returns the choices.
Steps = Generator[Batch, Sequence[Record], Choices]


class Chooser(ABC):
    """Makes the choices that one section of a suite describes, and writes a suite with them.

    Constructing a chooser checks the section, and raises UserError before any trial runs. A chooser keeps
    nothing between starts: it repeats its steps, and finds stored trials by their ids.
    """

    #: The name of its section in the suite.
    section: ClassVar[str]

    def __init__(self, suite: Suite, pair: tuple[int, int] | None = None) -> None:
        self.suite = suite
        #: The indices of the suite's task and backbone for which it chooses. None: it chooses for all.
        self.pair = pair

    @abstractmethod
    def steps(self) -> Steps:
        """Makes the choices. The same records always lead to the same batches and choices."""

    def run(self, results: Callable[[Batch], Sequence[Record]] | None = None) -> Choices:
        """Goes through all steps, and returns the choices.

        `results` is called with every batch, and returns the records of its trials. If some have none, a
        search leaves out the trials that depend on them, and a pilot goes on with the suite's own values. An
        allocation needs no `results`.
        """
        steps = self.steps()
        records: Sequence[Record] | None = None
        while True:
            try:
                batch = next(steps) if records is None else steps.send(records)
            except StopIteration as end:
                choices: Choices = end.value
                return choices
            assert results is not None
            records = results(batch)

    def check_target(self, out: Path) -> None:
        """Raises UserError if the chooser's suite cannot be written to `out`.

        The file must be NAME.yaml or NAME.yml, where NAME is a valid name that differs from the suite's.
        Relative paths in the suite must lead to the same folders and files if they start at the folder of
        `out`. A file that exists must be one that this chooser wrote.
        """
        if not NAME.fullmatch(out.stem) or out.suffix not in (".yaml", ".yml"):
            raise UserError(f"--out {out}: a suite's file is NAME.yaml, and its name {NAME_RULE}")
        if out.stem == self.suite.name:
            raise UserError(
                f"--out {out}: the suite itself is '{self.suite.name}'; give the file another name"
            )
        if not out.parent.is_dir():
            raise UserError(f"--out {out}: there is no folder {out.parent}")
        if out.exists() and not out.is_file():
            raise UserError(f"--out {out}: this is no file; give another name")
        if out.exists() and not out.read_bytes().startswith(self._first_line.encode()):
            raise UserError(
                f"--out {out}: there is a file that this {self.section} did not write; give another name"
            )
        elsewhere = "paths in the suite begin at its folder; put the file there, or make them absolute"
        try:
            values = with_methods(self.filled_in(Choices(), out.stem), out.parent, str(out))
        except UserError as error:
            raise UserError(f"{error}; {elsewhere}") from error
        made = validate(Suite, values, str(out)).beside(out.parent)
        tasks, backbones = self._of_pair(self.suite.tasks, self.suite.backbones)
        written, own = _paths(made.tasks, made.backbones), _paths(tasks, backbones)
        if (written, made.source) != (own, self.suite.source):
            raise UserError(f"--out {out}: {elsewhere}")

    def filled_in(self, choices: Choices, name: str) -> dict[str, Any]:
        """Returns the fields of the suite as its author wrote them, with the choices filled in.

        The suite gets the name `name`, and the chooser's section is left out.
        """
        values: dict[str, Any] = parse(self.suite.file.text)
        values = {key: value for key, value in values.items() if key != self.section} | {"name": name}
        tasks: list[dict[str, Any]] = [
            {"task": row} if isinstance(row, str) else dict(row) for row in values["tasks"]
        ]
        for task in tasks:
            # A task described in the suite has `name` instead of `task`.
            if chosen := choices.training.get(task["task"] if "task" in task else task["name"]):
                task["training"] = task.get("training", {}) | chosen
        tasks, backbones = self._of_pair(tasks, values["backbones"])
        names = {task.get("task", task.get("name")) for task in tasks}
        methods: list[dict[str, Any]] = []
        for number, row in enumerate(values["methods"]):
            row = {"method": row} if isinstance(row, str) else dict(row)
            if number in choices.centres:
                row["centre"] = choices.centres[number]
            if isinstance(centre := row.get("centre"), dict):
                row["centre"] = {task: rate for task, rate in centre.items() if task in names} or None
            methods += choices.methods.get(number, [row])
        return values | {"tasks": tasks, "methods": methods, "backbones": backbones}

    def write(self, choices: Choices, out: Path) -> None:
        """Writes the suite with the choices. Comments at its top list what each choice is based on.

        Raises UserError if the file cannot be written.
        """
        values = self.filled_in(choices, out.stem)
        validate(Suite, with_methods(values, out.parent, str(out)), str(out))
        text = self._first_line + "".join(f"# {line}\n" for line in choices.lines) + written(values)
        try:
            with written_whole(out) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {shown(str(out))}: cannot write there: {error.strerror}") from error

    @property
    def _first_line(self) -> str:
        return f"# Made by the {self.section} '{self.suite.name}'; `tensorbench search` wrote this file.\n"

    def _of_pair(self, tasks: Sequence[Any], backbones: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Selects from a suite's tasks and backbones those that the chooser's choices apply to."""
        if self.pair is None:
            return list(tasks), list(backbones)
        return [tasks[self.pair[0]]], [backbones[self.pair[1]]]


def ending(name: str, end: str) -> str:
    """Returns a label that ends with `end`. If it would be too long, the name before it is cut."""
    return cut(name, MOST_OF_LABEL - len(end)) + end


def _paths(tasks: Sequence[Any], backbones: Sequence[Any]) -> list[object]:
    """Returns the paths on this machine that a suite's rows name. A row without a path gives None."""
    sources = [row.source and row.source.local for row in tasks]
    return [spec.local for spec in backbones] + sources + [row.data and row.data.paths for row in tasks]
