"""Runs a pilot: chooses head rates, epochs and centres on validation, and writes a suite with them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tensorbench.machine.files import written_whole
from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import shown
from tensorbench.methods.validation import validate
from tensorbench.plan.cells import MANTISSA, PlanCell
from tensorbench.plan.choosing import Centres, HeadRates, Lengths, Pilot
from tensorbench.plan.rows import Row
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_rows import NAME, NAME_RULE
from tensorbench.plan.trial import Trial
from tensorbench.plan.yaml_text import parse, written
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record, scores

#: The registered name of the method that trains only the head.
HEAD = "head_only"

#: A function that runs trials with their rows. It returns the record of each ended trial, by trial id. If a
#: trial has several runs, it is the record of the run that counts.
Run = Callable[[Sequence[Row], Sequence[Trial]], Mapping[str, Record]]


@dataclass
class Choices:
    """The choices of a pilot, with the mean losses on which they are based."""

    #: The chosen learning rate of the head, and the chosen epochs, by task.
    head_lr: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    #: The chosen centres, by index of the method's row in the suite.
    centres: dict[int, float] = field(default_factory=dict)
    #: A line for each choice, with the tried values and their mean validation losses. After the choice of a
    #: task's epochs, a line with the methods' mean scores.
    lines: list[str] = field(default_factory=list)
    #: A line for each choice that could not be made.
    missing: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.missing


@dataclass
class _Step:
    """The trials of a pilot's step. `ids` has their ids by subject of the choice and by tried value.

    The subject is a task's name, or the index of a method's row.
    """

    rows: list[Row] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    ids: defaultdict[tuple[Any, float], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self,
        subject: Any,
        value: float,
        cell: PlanCell,
        rate: float,
        seeds: Iterable[int],
        choices: Choices,
        epochs: int | None = None,
    ) -> list[str]:
        """Adds trials of a cell at this learning rate, one for each seed. Returns their ids.

        `value` is the value that these trials try for `subject`. The trials have the head's rate and the
        epochs that earlier steps chose for the cell's task. If given, `epochs` replaces the chosen number.
        """
        task = cell.task.task
        rates = cell.window()
        if rates.head_lr is not None:
            rates = replace(rates, head_lr=choices.head_lr.get(task, rates.head_lr))
        epochs = epochs or choices.epochs.get(task)
        setting = rates.setting(rate)
        trials = {seed: cell.trial(seed, "validation", setting=setting, epochs=epochs) for seed in seeds}
        note = setting.label + (f", epochs {epochs}" if epochs else "")
        ids = {seed: trial.id for seed, trial in trials.items()}
        self.rows.append(cell.row(ids, note=note, phase="search"))
        self.trials += trials.values()
        self.ids[subject, value] += ids.values()
        return list(ids.values())

    def losses(self, records: Mapping[str, Record]) -> dict[Any, dict[float, float]]:
        """Returns the mean validation loss of each value, by subject. Infinite if a trial has no loss."""
        means: dict[Any, dict[float, float]] = defaultdict(dict)
        for (subject, value), ids in self.ids.items():
            stored = [records[id_].measure(Measure.SELECTED_LOSS) for id_ in ids if id_ in records]
            losses = [loss for loss in stored if loss is not None]
            means[subject][value] = fmean(losses) if len(losses) == len(ids) else math.inf
        return {subject: dict(sorted(by_value.items())) for subject, by_value in means.items()}


def check_pilot(pilot: Pilot, cells: Sequence[PlanCell]) -> None:
    """Raises UserError for a step that does not fit these cells. To be called before any trial."""
    suite = cells[0].suite
    tasks = {cell.task.task for cell in cells}
    if pilot.head_lr is not None and (
        headless := sorted(tasks - {cell.task.task for cell in cells if cell.method.name == HEAD})
    ):
        raise UserError(f"pilot.head_lr: task '{headless[0]}' has no row of {HEAD}, which chooses the rate")
    if pilot.epochs is not None:
        if by_steps := next((cell for cell in cells if cell.recipe.epochs is None), None):
            raise UserError(
                f"pilot.epochs: task '{by_steps.task.task}' counts steps; give epochs, or pilot epochs: null"
            )
        for number in sorted(_rows_of_lengths(pilot.epochs, cells)):
            if {key for key, value in suite.methods[number].training.items() if value} & {"epochs", "steps"}:
                raise UserError(
                    f"pilot.epochs: methods.{number} ('{suite.methods[number].method}') sets its own length; "
                    "leave it out there, or name the rows that choose in pilot.epochs.methods"
                )
    if (centres := pilot.centres) is not None:
        _multiples(centres, cells)
        if centres.task is not None and centres.task not in tasks:
            raise UnknownNameError("pilot.centres.task:", centres.task, tasks)
        if centres.task is None and suite.tasks[0].task not in tasks:
            raise UserError(
                f"pilot.centres: they are chosen on the first task, '{suite.tasks[0].task}', which is not in "
                "this part of the suite; name another in pilot.centres.task"
            )
        for number in sorted({cell.number for cell in _adapted(cells) if cell.centre is None}):
            if (row := suite.methods[number]).each:
                raise UserError(
                    f"pilot.centres: methods.{number} ('{row.method}') stands for several methods, but "
                    "has one centre: write them as rows of their own"
                )


def run_pilot(pilot: Pilot, cells: Sequence[PlanCell], run: Run) -> Choices:
    """Runs the steps of a pilot, each with the choices of earlier steps. The test split is not used."""
    choices = Choices()
    if pilot.head_lr is not None:
        _choose_head_rates(pilot.head_lr, cells, run, choices)
    if pilot.epochs is not None:
        _choose_epochs(pilot.epochs, cells, run, choices)
    if pilot.centres is not None:
        _choose_centres(pilot.centres, cells, run, choices)
    return choices


def _choose_head_rates(section: HeadRates, cells: Sequence[PlanCell], run: Run, choices: Choices) -> None:
    step = _Step()
    for cell in cells:
        if cell.method.name == HEAD:
            for rate in section.rates:
                step.add(cell.task.task, rate, cell, rate, section.seeds, choices)
    for task, losses in step.losses(run(step.rows, step.trials)).items():
        subject = f"{task}: head_lr"
        if _any_ended(subject, losses, choices):
            best = min(losses, key=lambda rate: losses[rate])
            choices.head_lr[task] = best
            choices.lines.append(_line(subject, best, losses, _edge(best, losses)))


def _choose_epochs(section: Lengths, cells: Sequence[PlanCell], run: Run, choices: Choices) -> None:
    step, rows = _Step(), _rows_of_lengths(section, cells)
    by_method: defaultdict[tuple[str, float], dict[str, list[str]]] = defaultdict(dict)
    fitted: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if cell.number in rows:
            assert cell.recipe.epochs is not None
            task = cell.task.task
            lengths = {max(1, round(times * cell.recipe.epochs)) for times in section.times}
            for epochs in sorted({1, *lengths}):
                ids = step.add(task, epochs, cell, section.lr, section.seeds, choices, epochs)
                by_method[task, epochs].setdefault(cell.shown.method, []).extend(ids)
    for cell in cells:
        # Adapters should beat the fitted head, so its score is shown as well.
        if cell.method.fits_head:
            trial = cell.trial(section.seeds[0], "validation")
            step.rows.append(cell.row({trial.seed: trial.id}, phase="search"))
            step.trials.append(trial)
            fitted.setdefault(cell.task.task, {})[cell.shown.method] = [trial.id]
    records = run(step.rows, step.trials)
    for task, losses in step.losses(records).items():
        subject = f"{task}: epochs"
        if _any_ended(subject, losses, choices):
            best = min(losses, key=lambda epochs: losses[epochs])
            choices.epochs[task] = int(best)
            choices.lines.append(_line(subject, best, losses, _edge(best, losses)))
            compared = by_method[task, best] | fitted.get(task, {})
            choices.lines.append(_scores(task, compared, records))


def _choose_centres(section: Centres, cells: Sequence[PlanCell], run: Run, choices: Choices) -> None:
    step, names, multiples = _Step(), {}, _multiples(section, cells)
    task = section.task or cells[0].suite.tasks[0].task
    for cell in _adapted(cells):
        if cell.task.task == task and cell.centre is None:
            names[cell.number] = cell.shown.method
            for rate in section.rates:
                rate = float(f"{rate * multiples.get(cell.number, 1.0):.{MANTISSA}e}")
                step.add(cell.number, rate, cell, rate, section.seeds, choices)
    for number, losses in step.losses(run(step.rows, step.trials)).items():
        subject = f"{names[number]} on {task}: centre"
        if _any_ended(subject, losses, choices):
            centre = vertex(losses)
            choices.centres[number] = centre
            best = min(losses, key=lambda rate: losses[rate])
            choices.lines.append(_line(subject, centre, losses, _edge(best, losses)))


def vertex(losses: Mapping[float, float]) -> float:
    """Returns the learning rate with the lowest mean loss, by a parabola over the logarithm of the rate.

    `losses` maps tried rates to mean losses. The parabola goes through the rate with the lowest loss and its
    two neighbours only, so that collapses at distant rates do not bend it. If a neighbour is missing or has
    no finite loss, the rate with the lowest loss is taken instead. The result is rounded to half a decade and
    kept within the tried rates.
    """
    rates = sorted(losses)
    best = min(range(len(rates)), key=lambda i: losses[rates[i]])
    lowest = math.log10(rates[best])
    around = rates[best - 1 : best + 2] if best else []
    if len(around) == 3 and all(math.isfinite(losses[rate]) for rate in around):
        lowest = _lowest_point(*((math.log10(rate), losses[rate]) for rate in around))
    rounded = float(f"{10 ** (round(2 * lowest) / 2):.{MANTISSA}e}")
    return min(max(rounded, rates[0]), rates[-1])


def _lowest_point(left: tuple[float, float], mid: tuple[float, float], right: tuple[float, float]) -> float:
    """Returns the x of the vertex of the parabola through three points (x, y). `mid` must be the lowest."""
    (x0, y0), (x1, y1), (x2, y2) = left, mid, right
    rise, fall = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
    if rise == fall:
        return x1
    return x1 - 0.5 * ((x1 - x0) * rise - (x1 - x2) * fall) / (rise - fall)


def _any_ended(subject: str, losses: Mapping[float, float], choices: Choices) -> bool:
    """Whether all trials of at least one value ended with a loss. If not, notes this in `choices.missing`."""
    if any(map(math.isfinite, losses.values())):
        return True
    choices.missing.append(f"{subject}: at every tried value a trial has no validation loss")
    return False


def _edge(best: float, losses: Mapping[float, float]) -> bool:
    return best in (min(losses), max(losses))


def _line(subject: str, choice: float, losses: Mapping[float, float], edge: bool) -> str:
    values = ", ".join(f"{value:g} → {loss:.4f}" for value, loss in losses.items())
    at_edge = "; the lowest is at an edge of the tried values" * edge
    return f"{subject} {choice:g} (mean validation loss: {values}{at_edge})"


def _rows_of_lengths(section: Lengths, cells: Sequence[PlanCell]) -> set[int]:
    """Returns the indices of the rows whose losses choose the epochs.

    These are the rows of the section's methods, or else all rows with an adapter.
    """
    if section.methods is None:
        return {cell.number for cell in _adapted(cells) if not cell.method.trains_weights}
    return set().union(*(_rows_named("pilot.epochs.methods", name, cells) for name in section.methods))


def _multiples(section: Centres, cells: Sequence[PlanCell]) -> dict[int, float]:
    """Returns the factors by which rates are multiplied, by index of the method's row."""
    named = {name: _rows_named("pilot.centres.multiples", name, cells) for name in section.multiples}
    return {number: section.multiples[name] for name, rows in named.items() for number in rows}


def _scores(task: str, by_method: Mapping[str, Sequence[str]], records: Mapping[str, Record]) -> str:
    """Returns a line with the mean validation score of each method."""
    values = {method: scores(records, ids) for method, ids in by_method.items()}
    means = (f"{method} {fmean(own):.4f}" if own else f"{method} –" for method, own in values.items())
    return f"{task}: validation scores at this length: {', '.join(means)}"


def _adapted(cells: Sequence[PlanCell]) -> Iterator[PlanCell]:
    """Returns the cells that train an adapter or the backbone, not only the head."""
    return (cell for cell in cells if cell.method.count(cell.info.geometry) > 0)


def _rows_named(where: str, name: str, cells: Sequence[PlanCell]) -> set[int]:
    """Returns the indices of the rows that tables show under this name.

    If there are none, returns the rows of methods with this title or registered name. Raises UserError if
    there is no such method either.
    """
    # A floor that the suite does not name is no row of it.
    cells = [cell for cell in cells if cell.number < len(cell.suite.methods)]
    labels = {cell.number: cell.shown.method for cell in cells}
    if exact := {number for number, label in labels.items() if label == name}:
        return exact
    numbers = {cell.number for cell in cells if name in (cell.method.title, cell.method.name)}
    if not numbers:
        raise UnknownNameError(f"{where}:", name, labels.values())
    return numbers


def check_target(suite: Suite, out: Path) -> None:
    """Raises UserError if the suite with a pilot's choices cannot be written to `out`.

    The file must be NAME.yaml or NAME.yml, where NAME is a valid name that differs from the suite's. Relative
    paths in the suite must lead to the same folders and files if they start at the folder of `out`. A file
    that exists must be one that this pilot wrote.
    """
    if not NAME.fullmatch(out.stem) or out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: a suite's file is NAME.yaml, and its name {NAME_RULE}")
    if out.stem == suite.name:
        raise UserError(f"--out {out}: the pilot's suite is '{suite.name}' too; give the file another name")
    if out.exists() and not out.read_bytes().startswith(_first_line(suite).encode()):
        raise UserError(f"--out {out}: there is a file that this pilot did not write; give another name")
    values = filled_in(suite, Choices(), out.stem)
    if _paths(validate(Suite, values, str(out)).beside(out.parent)) != _paths(suite):
        raise UserError(
            f"--out {out}: paths in the suite begin at its folder; put the file there, or make them absolute"
        )


def _paths(suite: Suite) -> list[object]:
    """Returns the paths on this machine that the suite gives, or None where it gives none."""
    backbones = [spec.local for spec in suite.backbones]
    sources = [row.source and row.source.local for row in suite.tasks]
    return [*backbones, *sources, *(row.data and row.data.paths for row in suite.tasks)]


def filled_in(suite: Suite, choices: Choices, name: str) -> dict[str, Any]:
    """Returns the fields of the suite as its author wrote them, with a pilot's choices filled in.

    The suite gets the name `name`, and its field `pilot` is left out.
    """
    values: dict[str, Any] = parse(suite.file.text)
    values = {key: value for key, value in values.items() if key != "pilot"} | {"name": name}
    tasks: list[dict[str, Any]] = [
        {"task": row} if isinstance(row, str) else dict(row) for row in values["tasks"]
    ]
    for task in tasks:
        # A task described in the suite has `name` instead of `task`.
        label = task["task"] if "task" in task else task["name"]
        for key, by_task in (("head_lr", choices.head_lr), ("epochs", choices.epochs)):
            if label in by_task:
                task["training"] = {**task.get("training", {}), key: by_task[label]}
    methods: list[dict[str, Any]] = [
        {"method": row} if isinstance(row, str) else dict(row) for row in values["methods"]
    ]
    for number, centre in choices.centres.items():
        methods[number]["centre"] = centre
    return values | {"tasks": tasks, "methods": methods}


def _first_line(suite: Suite) -> str:
    """The first line of the file that a pilot writes."""
    return (
        f"# Chosen by the pilot '{suite.name}' on validation alone; `tensorbench search` wrote this file.\n"
    )


def write_suite(suite: Suite, choices: Choices, out: Path) -> None:
    """Writes the suite with a pilot's choices. Comments at its top list the losses behind each choice.

    Raises UserError if the file cannot be written.
    """
    values = filled_in(suite, choices, out.stem)
    validate(Suite, values, str(out))
    text = _first_line(suite) + "".join(f"# {line}\n" for line in choices.lines) + written(values)
    try:
        with written_whole(out) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {shown(str(out))}: cannot write there: {error.strerror}") from error
