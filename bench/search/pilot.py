"""The pilot: chooses head rates, epochs and centres of a suite with studies."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.plan.cells import MANTISSA, PlanCell
from tensorbench.plan.choosing import Centres, HeadRates, Lengths, Pilot
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record, latest, scores
from tensorbench.search.chooser import Batch, Choices, Steps

#: The registered name of the method that trains only the head.
HEAD = "head_only"

#: Adds to the choices of earlier steps.
_Steps = Generator[Batch, Sequence[Record], None]


class _Step(Batch):
    """A step of a pilot. The subject of a choice is a task's name, or the index of a method's row."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        #: The ids of the trials that try a value for a subject.
        self.ids: defaultdict[tuple[Any, float], list[str]] = defaultdict(list)

    def try_value(
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
        chosen = choices.training.get(cell.task.task, {})
        rates = cell.window()
        if rates.head_lr is not None:
            rates = replace(rates, head_lr=chosen.get("head_lr", rates.head_lr))
        epochs = epochs or int(chosen.get("epochs", 0)) or None
        setting = rates.setting(rate)
        trials = [cell.trial(seed, "validation", setting=setting, epochs=epochs) for seed in seeds]
        note = setting.label + (f", epochs {epochs}" if epochs else "")
        ids = list(self.add(cell, trials, note=note).values())
        self.ids[subject, value] += ids
        return ids

    def losses(self, records: Mapping[str, Record]) -> dict[Any, dict[float, float]]:
        """Returns the mean validation loss of each value, by subject. Infinite if a trial has no loss."""
        means: dict[Any, dict[float, float]] = defaultdict(dict)
        for (subject, value), ids in self.ids.items():
            stored = [records[id_].measure(Measure.SELECTED_LOSS) for id_ in ids if id_ in records]
            losses = [loss for loss in stored if loss is not None]
            means[subject][value] = fmean(losses) if len(losses) == len(ids) else math.inf
        return {subject: dict(sorted(by_value.items())) for subject, by_value in means.items()}


def _check(pilot: Pilot, cells: Sequence[PlanCell]) -> None:
    """Raises UserError for a step that does not fit these cells."""
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
        for number in sorted({cell.number for cell in _adapted(cells) if cell.method_row.centre is None}):
            if (row := suite.methods[number]).each:
                raise UserError(
                    f"pilot.centres: methods.{number} ('{row.method}') stands for several methods, but "
                    "has one centre: write them as rows of their own"
                )


class PilotChooser:
    """The chooser of head rates, epochs and centres. The test split is not used.

    Raises UserError for a step that does not fit the cells.
    """

    section = "pilot"
    pair: tuple[int, int] | None = None

    def __init__(self, pilot: Pilot, cells: Sequence[PlanCell]) -> None:
        _check(pilot, cells)
        self.pilot, self.cells = pilot, cells

    def steps(self) -> Steps:
        """Runs the steps of the pilot, each with the choices of earlier steps."""
        choices, pilot = Choices(), self.pilot
        if pilot.head_lr is not None:
            yield from _choose_head_rates(pilot.head_lr, self.cells, choices)
        if pilot.epochs is not None:
            yield from _choose_epochs(pilot.epochs, self.cells, choices)
        if pilot.centres is not None:
            yield from _choose_centres(pilot.centres, self.cells, choices)
        return choices


def _choose_head_rates(section: HeadRates, cells: Sequence[PlanCell], choices: Choices) -> _Steps:
    step = _Step("head rates")
    for cell in cells:
        if cell.method.name == HEAD:
            for rate in section.rates:
                step.try_value(cell.task.task, rate, cell, rate, section.seeds, choices)
    for task, losses in step.losses(latest((yield step))).items():
        subject = f"{task}: head_lr"
        if _any_ended(subject, losses, choices):
            best = min(losses, key=lambda rate: losses[rate])
            choices.training.setdefault(task, {})["head_lr"] = best
            choices.lines.append(_line(subject, best, losses, _edge(best, losses)))


def _choose_epochs(section: Lengths, cells: Sequence[PlanCell], choices: Choices) -> _Steps:
    step, rows = _Step("epochs"), _rows_of_lengths(section, cells)
    by_method: defaultdict[tuple[str, float], dict[str, list[str]]] = defaultdict(dict)
    fitted: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if cell.number in rows:
            assert cell.recipe.epochs is not None
            task = cell.task.task
            lengths = {max(1, round(times * cell.recipe.epochs)) for times in section.times}
            for epochs in sorted({1, *lengths}):
                ids = step.try_value(task, epochs, cell, section.lr, section.seeds, choices, epochs)
                by_method[task, epochs].setdefault(cell.shown.method, []).extend(ids)
    for cell in cells:
        # Adapters should beat the fitted head, so its score is shown as well.
        if cell.method.fits_head:
            ids = list(step.add(cell, [cell.trial(section.seeds[0], "validation")]).values())
            fitted.setdefault(cell.task.task, {})[cell.shown.method] = ids
    records = latest((yield step))
    for task, losses in step.losses(records).items():
        subject = f"{task}: epochs"
        if _any_ended(subject, losses, choices):
            best = min(losses, key=lambda epochs: losses[epochs])
            choices.training.setdefault(task, {})["epochs"] = int(best)
            choices.lines.append(_line(subject, best, losses, _edge(best, losses)))
            compared = by_method[task, best] | fitted.get(task, {})
            choices.lines.append(_scores(task, compared, records))


def _choose_centres(section: Centres, cells: Sequence[PlanCell], choices: Choices) -> _Steps:
    step, names, multiples = _Step("centres"), {}, _multiples(section, cells)
    task = section.task or cells[0].suite.tasks[0].task
    for cell in _adapted(cells):
        if cell.task.task == task and cell.method_row.centre is None:
            names[cell.number] = cell.shown.method
            for rate in section.rates:
                rate = float(f"{rate * multiples.get(cell.number, 1.0):.{MANTISSA}e}")
                step.try_value(cell.number, rate, cell, rate, section.seeds, choices)
    for number, losses in step.losses(latest((yield step))).items():
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
