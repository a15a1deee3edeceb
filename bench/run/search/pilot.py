"""The pilot: chooses head rates, epochs and centres of a suite with studies."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.plan.cells import MANTISSA, PlanCell
from tensorbench.plan.choosing import Centres, HeadRates, Lengths, Pilot
from tensorbench.records.record import Record, latest, results
from tensorbench.run.search.chooser import Batch, Choices, Chooser, Steps, mean_result

#: The registered name of the method that trains only the head.
HEAD = "head_only"

#: A step of the pilot. Yields a batch, receives its records, and adds its choices to those of earlier steps.
_Steps = Generator[Batch, Sequence[Record], None]


class _Step(Batch):
    """A step of a pilot, with the choices of earlier steps.

    The subject of a choice is a task's name, or the index of a method's row with a task's name.
    """

    def __init__(self, title: str, seeds: Sequence[int], choices: Choices) -> None:
        super().__init__(title)
        self.seeds, self.choices = seeds, choices
        #: The ids of the trials that try a value, by subject and value.
        self.tried: defaultdict[Any, defaultdict[float, list[str]]] = defaultdict(lambda: defaultdict(list))

    def try_value(
        self, subject: Any, value: float, cell: PlanCell, rate: float, epochs: int | None = None
    ) -> list[str]:
        """Adds trials of a cell at this learning rate, one for each seed. Returns their ids.

        `value` is the value that these trials try for `subject`. The trials have the head's rate and the
        epochs that earlier steps chose for the cell's task. If given, `epochs` replaces the chosen number. A
        row with a length of its own keeps it, as in the suite that will be written.
        """
        chosen = self.choices.training.get(cell.task.task, {})
        rates = cell.window()
        if rates.head_lr is not None:
            rates = replace(rates, head_lr=chosen.get("head_lr", rates.head_lr))
        if not (epochs or _has_length(cell)):
            epochs = int(chosen.get("epochs", 0)) or None
        setting = rates.setting(rate)
        trials = [cell.trial(seed, "validation", setting=setting, epochs=epochs) for seed in self.seeds]
        ids = self.add(cell, trials, note=setting.label + (f", epochs {epochs}" if epochs else ""))
        self.tried[subject][value] += ids
        return ids

    def chosen(
        self,
        records: Mapping[str, Record],
        words: Callable[[Any], str],
        choose: Callable[[Mapping[float, float]], float] | None = None,
    ) -> Iterator[tuple[Any, float]]:
        """Yields each subject with its choice, and adds a line on it to the choices.

        `words` names a subject. `choose` takes the mean validation loss of each value, and returns a choice.
        The mean is infinite if a trial has no loss. Without `choose`, the value with the lowest mean is
        chosen. A subject without a finite mean, or with a trial that failed for another reason than
        divergence, is noted as missing, and not yielded.
        """
        for subject, by_value in self.tried.items():
            reasons = [records[id_].failure for ids in by_value.values() for id_ in ids if id_ in records]
            if failed := [reason for reason in reasons if reason and not reason.startswith("diverged")]:
                self.choices.missing.append(
                    f"{words(subject)}: {failed[0]}; `--retry-failed` runs such trials again"
                )
                continue
            means = {value: mean_result(records, ids, "loss") for value, ids in sorted(by_value.items())}
            losses = {value: math.inf if mean is None else mean for value, mean in means.items()}
            if not any(map(math.isfinite, losses.values())):
                self.choices.missing.append(
                    f"{words(subject)}: at every tried value a trial has no validation loss"
                )
                continue
            lowest = min(losses, key=lambda value: losses[value])
            choice = choose(losses) if choose else lowest
            values = ", ".join(f"{value:g} → {loss:.4f}" for value, loss in losses.items())
            edge = "; the lowest is at an edge of the tried values" * (lowest in (min(losses), max(losses)))
            self.choices.lines.append(f"{words(subject)} {choice:g} (mean validation loss: {values}{edge})")
            yield subject, choice


class PilotChooser(Chooser):
    """The chooser of head rates, epochs and centres. The test split is not used.

    Raises UserError for a step that does not fit the cells, and for rates that the recipe refuses.
    """

    section = "pilot"

    def __init__(self, pilot: Pilot, cells: Sequence[PlanCell]) -> None:
        super().__init__(cells[0].suite)
        _check(pilot, cells)
        self.pilot, self.cells = pilot, cells
        # Makes all trials, so that a rate that the recipe refuses is refused before the first one runs.
        self.run(lambda batch: ())

    def steps(self) -> Steps:
        """Runs the steps of the pilot, each with the choices of earlier steps."""
        choices, pilot = Choices(), self.pilot
        if pilot.head_lr is not None:
            yield from self._head_rates(pilot.head_lr, choices)
        if pilot.epochs is not None:
            yield from self._epochs(pilot.epochs, choices)
        if pilot.centres is not None:
            yield from self._centres(pilot.centres, choices)
        return choices

    def _head_rates(self, section: HeadRates, choices: Choices) -> _Steps:
        step = _Step("head rates", section.seeds, choices)
        for cell in self.cells:
            if cell.method.name == HEAD:
                for rate in section.rates:
                    step.try_value(cell.task.task, rate, cell, rate)
        for task, rate in step.chosen(latest((yield step)), "{}: head_lr".format):
            choices.training.setdefault(task, {})["head_lr"] = rate

    def _epochs(self, section: Lengths, choices: Choices) -> _Steps:
        step, rows = _Step("epochs", section.seeds, choices), _rows_of_lengths(section, self.cells)
        by_method: defaultdict[tuple[str, float], dict[str, list[str]]] = defaultdict(dict)
        fitted: dict[str, dict[str, list[str]]] = {}
        for cell in self.cells:
            if cell.number in rows:
                task = cell.task.task
                for epochs in _lengths(section, cell):
                    ids = step.try_value(task, epochs, cell, section.lr, epochs)
                    by_method[task, epochs].setdefault(cell.shown.method, []).extend(ids)
        for cell in self.cells:
            # Adapters should beat the fitted head, so its score is shown as well.
            if cell.method.fits_head:
                ids = step.add(cell, [cell.trial(section.seeds[0], "validation")])
                fitted.setdefault(cell.task.task, {})[cell.shown.method] = ids
        records = latest((yield step))
        for task, length in step.chosen(records, "{}: epochs".format):
            choices.training.setdefault(task, {})["epochs"] = int(length)
            compared = by_method[task, length] | fitted.get(task, {})
            of_methods = {method: results(records, ids, "score") for method, ids in compared.items()}
            means = (f"{name} {fmean(own):.4f}" if own else f"{name} –" for name, own in of_methods.items())
            choices.lines.append(f"{task}: validation scores at this length: {', '.join(means)}")

    def _centres(self, section: Centres, choices: Choices) -> _Steps:
        step, multiples = _Step("centres", section.seeds, choices), _multiples(section, self.cells)
        task, names = section.task or self.suite.tasks[0].task, {}
        cells = [cell for cell in _centred(self.cells) if section.by_task or cell.task.task == task]
        budgets = dict.fromkeys((cell.number, cell.budget.label) for cell in cells if cell.budget)
        several = len({label for _, label in budgets}) > 1
        for cell in cells:
            subject = cell.number, cell.task.task
            own = [label for number, label in budgets if number == cell.number]
            size = f" under {' and '.join(own)}" if several and own else ""
            names[subject] = f"{cell.shown.method}{size} on {cell.task.task}"
            for rate in section.rates:
                rate = float(f"{rate * multiples.get(cell.number, 1.0):.{MANTISSA}e}")
                step.try_value(subject, rate, cell, rate)
        records = latest((yield step))
        of_rows = defaultdict[int, dict[str, float]](dict)
        for (number, on), centre in step.chosen(records, lambda of: f"{names[of]}: centre", vertex):
            try:
                for cell in self.cells:
                    if cell.number == number and (cell.task.task == on or not section.by_task):
                        cell.window(centre)
            except UserError as error:
                choices.missing.append(f"{names[number, on]}: centre {centre:g}: {error}")
                continue
            of_rows[number][on] = centre
        for number, centres in of_rows.items():
            stated = self.suite.methods[number].centre
            by_task = (stated if isinstance(stated, dict) else {}) | centres
            choices.centres[number] = by_task if section.by_task else centres[task]


def _check(pilot: Pilot, cells: Sequence[PlanCell]) -> None:
    """Raises UserError for a step that does not fit the cells."""
    suite = cells[0].suite
    tasks = {cell.task.task for cell in cells}
    if pilot.head_lr is not None and (
        headless := sorted(tasks - {cell.task.task for cell in cells if cell.method.name == HEAD})
    ):
        raise UserError(f"pilot.head_lr: task '{headless[0]}' has no row of {HEAD}, which chooses the rate")
    if pilot.epochs is not None:
        rows = _rows_of_lengths(pilot.epochs, cells)
        for cell in cells:
            if cell.number in rows and _has_length(cell):
                raise UserError(
                    f"pilot.epochs: methods.{cell.number} ('{cell.method_row.method}') sets its own length; "
                    "leave it out there, or name the rows that choose in pilot.epochs.methods"
                )
            if cell.number in rows and cell.recipe.epochs is None:
                raise UserError(
                    f"pilot.epochs: task '{cell.task.task}' counts steps; give epochs, or pilot epochs: null"
                )
            if cell.number in rows and cell.examples is not None:
                for epochs in _lengths(pilot.epochs, cell):
                    steps = cell.recipe.model_copy(update={"epochs": epochs}).step_count(cell.examples)
                    try:
                        cell.method.check_steps(steps)
                    except UserError as error:
                        raise UserError(
                            f"pilot.epochs: it tries epochs: {epochs}, which '{cell.shown.method}' cannot on "
                            f"'{cell.task.task}': {error}"
                        ) from error
    if (centres := pilot.centres) is not None:
        _multiples(centres, cells)
        if centres.task is not None and centres.task not in tasks:
            raise UnknownNameError("pilot.centres.task:", centres.task, tasks)
        if not (centres.by_task or centres.task or suite.tasks[0].task in tasks):
            raise UserError(
                f"pilot.centres: they are chosen on the first task, '{suite.tasks[0].task}', which is "
                "not in this part of the suite; name another in pilot.centres.task"
            )
        for number in sorted({cell.number for cell in _centred(cells)}):
            row = suite.methods[number]
            if row.centre is not None and not centres.by_task:
                raise UserError(
                    f"pilot.centres: methods.{number} ('{row.method}') has a centre on some tasks alone: "
                    "give it all of them, or write by_task: true"
                )
            if row.each:
                raise UserError(
                    f"pilot.centres: methods.{number} ('{row.method}') stands for several methods, but "
                    "has one centre: write them as rows of their own"
                )


def vertex(losses: Mapping[float, float]) -> float:
    """Returns the learning rate with the lowest mean loss, by a parabola over the logarithm of the rate.

    `losses` maps tried rates to mean losses. The parabola goes through the rate with the lowest loss and its
    two neighbours only, so that collapses at distant rates do not bend it. If a neighbour is missing or has
    no finite loss, the rate with the lowest loss is used. The result is rounded to half a decade, and stays
    in the range of the tried rates. If the lowest loss is at an end of this range, the result is that end.
    """
    rates = sorted(losses)
    best = min(range(len(rates)), key=lambda i: losses[rates[i]])
    if best in (0, len(rates) - 1):
        return rates[best]
    lowest, around = math.log10(rates[best]), rates[best - 1 : best + 2]
    if all(math.isfinite(losses[rate]) for rate in around):
        (x0, y0), (x1, y1), (x2, y2) = ((math.log10(rate), losses[rate]) for rate in around)
        rise, fall = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
        if rise != fall:
            lowest = x1 - 0.5 * ((x1 - x0) * rise - (x1 - x2) * fall) / (rise - fall)
    rounded = float(f"{10 ** (round(2 * lowest) / 2):.{MANTISSA}e}")
    return min(max(rounded, rates[0]), rates[-1])


def _has_length(cell: PlanCell) -> bool:
    """Whether the cell's row gives its own epochs or steps."""
    return any(cell.method_row.training.get(key) is not None for key in ("epochs", "steps"))


def _lengths(section: Lengths, cell: PlanCell) -> list[int]:
    """Returns the numbers of epochs that a cell tries, in order."""
    assert cell.recipe.epochs is not None
    return sorted({1, *(max(1, round(times * cell.recipe.epochs)) for times in section.times)})


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


def _adapted(cells: Sequence[PlanCell]) -> Iterator[PlanCell]:
    """Returns the cells that train an adapter or the backbone, not only the head."""
    return (cell for cell in cells if cell.method.count(cell.info.geometry) > 0)


def _centred(cells: Sequence[PlanCell]) -> Iterator[PlanCell]:
    """Returns the cells that train an adapter or the backbone and whose rows give no centre on their task."""
    return (cell for cell in _adapted(cells) if cell.method_row.centre_on(cell.task.task) is None)


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
