"""Groups methods by recipe, and finds mixtures: properties that should not differ between trials of a table.

Only methods with the same recipe are compared. The rates that studies tried are not part of the recipe.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tensorbench.methods import UserError
from tensorbench.methods.errors import first_few
from tensorbench.records.stored_plan import PlannedTrial, Row, StudyPlan
from tensorbench.reports.results import CONVERGED, FLOOR, NO_ADAPTERS, Cell, Experiment, Results, grouped

#: A flattened recipe: the values of its fields, by name.
Recipe = Mapping[str, str]
#: The fields in which two recipes differ. Maps each field to its values in the first and the second recipe.
Differences = dict[str, tuple[str, str]]

#: The fields of a trial that define what is measured. If they differ, scores of trials are not comparable.
DECISIVE = ("protocol", "evaluate", "weights_hash", "data", "train_size", "validation_size", "test_size")

#: The fields whose values a suite may set for each method separately.
PER_METHOD = ("training lr", "training head_lr", "training core_lr")

#: Prefixes of keys of provenance. For these keys, all trials of a table should have the same value.
SURROUNDINGS = (
    "harness",
    "git_commit",
    "git_dirty",
    "python",
    "cpu",
    "gpu",
    "driver",
    "slots",
    "threads",
    "micro_batch",
    "checkpointing",
    "version_",
)

#: The JSON texts of a field that is not set. Older plans leave such fields out.
_NOTHING = ("null", "[]", "false")


def fields(trial: PlannedTrial) -> dict[str, str]:
    """A trial's flattened configuration, without its method, backbone, task and seed."""
    values = _decisive(trial)
    values |= {f"data {key}": value for key, value in values.pop("data").items()}
    values |= {f"training {key}": value for key, value in trial.recipe.items()}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _is_decisive(key: str) -> bool:
    """Whether a field of `fields` defines what is measured."""
    return key.partition(" ")[0] in DECISIVE


def _decisive(trial: PlannedTrial) -> dict[str, Any]:
    return {key: getattr(trial, key, trial.task.get(key)) for key in DECISIVE}


def with_heads(experiments: Sequence[Experiment], chosen: Sequence[Sequence[Row]]) -> list[tuple[Row, ...]]:
    """The chosen rows of each experiment, followed by the heads to which their adapters are comparable.

    These are rows of the head alone and of the converged head, restricted to their finished trials. They tell
    whether an adapter learned anything, so a report needs them even if nobody chose them.
    """

    def measured(experiment: Experiment, row: Row) -> str:
        trial = experiment.trial_of(row)
        return json.dumps([row.task, row.backbone, trial and _decisive(trial)])

    both = list(zip(experiments, chosen, strict=True))
    of_adapters = {
        measured(each, row) for each, rows in both for row in rows if each.family(row) not in NO_ADAPTERS
    }
    parts = []
    for each, rows in both:
        finished = {id_ for id_, record in each.records.items() if record.score is not None}
        there = {(row.name, row.task, row.backbone) for row in rows}
        heads = [
            row.only([seed for seed, id_ in row.trials.items() if id_ in finished])
            for row in each.rows
            if each.family(row) in (FLOOR, CONVERGED) and measured(each, row) in of_adapters
            if (row.name, row.task, row.backbone) not in there and finished & {*row.trials.values()}
        ]
        parts.append((*rows, *heads))
    return parts


def without_ranks(cell: Cell) -> str:
    """A text for a cell's method without its ranks. Allocations of one method have equal texts."""
    trial = cell.configuration
    return json.dumps([trial.method | {"ranks": None}, trial.recipe.get("core_lr")]) if trial else ""


def recipe_of(trial: PlannedTrial, studies: StudyPlan | None, *, foreign: bool) -> Recipe:
    """The recipe of a cell with this trial: protocol, data, training and tuning.

    With studies, it has the extent of the tuning instead of learning rates. Otherwise it has the suite's
    rates. Methods of other programs (`foreign`) may have unequal numbers of trials in a study: they are
    compared at the largest number that all have.
    """
    recipe = {key: value for key, value in fields(trial).items() if value not in _NOTHING}
    if studies:
        recipe = {key: value for key, value in recipe.items() if key not in PER_METHOD}
        points = "" if foreign else f"{studies.points} trials each "
        recipe["tuning studies"] = f"{points}over {studies.decades:g} decades"
    return recipe


def difference(first: Recipe, second: Recipe) -> Differences:
    """The fields in which two recipes differ, each with both values."""
    return {
        key: (first.get(key, "none"), second.get(key, "none"))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    }


def in_words(differences: Differences) -> str:
    """Lists the differences as text."""
    return "; ".join(f"{key} {' against '.join(short(*both))}" for key, both in differences.items())


#: Maps the name of each method to its cells.
Methods = Mapping[str, Sequence[Cell]]


def differs(cells: Iterable[Cell], group: Methods) -> Differences:
    """The fields in which the recipe of any of `cells` differs from the group's recipe on the same setting.

    Cells without a recipe are ignored, and so are cells on settings for which the group has no recipe.
    """
    of_group: dict[object, Recipe] = {}
    for cell in chain.from_iterable(group.values()):
        if cell.recipe:
            of_group.setdefault(cell.setting, cell.recipe)
    differences: Differences = {}
    for cell in cells:
        if recipe := of_group.get(cell.setting):
            differences |= difference(cell.recipe or recipe, recipe)
    return differences


def alike(methods: Methods) -> list[Methods]:
    """Groups methods by recipe. All cells of a group on one setting have the same recipe.

    The group with the most methods comes first.
    """
    groups: list[dict[str, Sequence[Cell]]] = []
    for method, cells in methods.items():
        group = next((group for group in groups if not differs(cells, group)), None)
        if group is None:
            groups.append(group := {})
        group[method] = cells
    return sorted(groups, key=lambda group: -len(group))


# --- mixtures ---


@dataclass(frozen=True)
class Mixture:
    """A property that differs between trials but should not.

    `what` names the property. `where` is the setting or the experiment in which it differs, or empty.
    `values` maps each value to a text that says which methods, which experiments or how many trials have it.
    """

    what: str
    where: str
    values: dict[str, str]
    #: Whether the mixture makes scores incomparable.
    serious: bool

    def __str__(self) -> str:
        values = "; ".join(f"{value} ({who})" for value, who in self.values.items())
        return f"{self.what} differs{' on ' + self.where if self.where else ''}: {values}"


def find_mixtures(results: Results) -> list[Mixture]:
    """All mixtures among the trials of a report. Serious mixtures come first."""
    mixtures = _mixed_trials(results)
    for key, counts in provenance_counts(results).items():
        if key.startswith(SURROUNDINGS) and len(counts) > 1:
            what = key.replace("version_", "version of ").replace("_", " ")
            values = {value: f"{trials:,} trials" for value, trials in counts.most_common()}
            mixtures.append(Mixture(what, "", values, serious=False))
    return sorted(mixtures, key=lambda mixture: not mixture.serious)


def refuse_mixtures(mixtures: Sequence[Mixture]) -> None:
    """Raises UserError if a mixture is serious, since its trials are not comparable."""
    serious = [str(mixture) for mixture in mixtures if mixture.serious]
    if serious:
        raise UserError(
            f"these trials are not comparable: {' | '.join(serious)}. "
            "Report the experiments one by one, or side by side all the same with --mixed"
        )


def _mixed_trials(results: Results) -> list[Mixture]:
    def named(cells: Sequence[Cell]) -> str:
        """The names of these cells' experiments or, if there is only one experiment, of their methods."""
        if len(results.experiments) > 1:
            return ", ".join(sorted({cell.experiment for cell in cells}))
        return first_few(list(dict.fromkeys(cell.method for cell in cells)), 3)

    mixtures = []
    for setting, cells in grouped(results.all_cells, lambda cell: cell.setting).items():
        values: defaultdict[str, defaultdict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
        of_cells = [
            (cell, fields(trial) | {"text of forgetting": trial.forgetting or "none"})
            for cell in cells
            if (trial := cell.configuration) is not None
        ]
        # A trial may lack an entry of its data, and differs by that too.
        lacking = {key: "none" for _, own in of_cells for key in own if _is_decisive(key)}
        for cell, own in of_cells:
            for key, value in (lacking | own).items():
                if key not in PER_METHOD or not cell.studies:
                    values[key][value].append(cell)
        for key, by_value in values.items():
            experiments = {frozenset(cell.experiment for cell in holders) for holders in by_value.values()}
            # A suite may set rates per method. If all experiments have the same rates, they agree.
            if len(by_value) == 1 or (key in PER_METHOD and len(experiments) == 1):
                continue
            holders_of = dict(zip(short(*by_value), map(named, by_value.values()), strict=True))
            mixtures.append(Mixture(key, str(setting), holders_of, _is_decisive(key)))
    return mixtures


def provenance_counts(results: Results) -> dict[str, Counter[str]]:
    """For each key of provenance, counts the finished trials in the tables by their value of the key."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    # A trial of two cells counts once.
    by_run = grouped((seed for seed in results.all_seeds if seed.finished), lambda seed: seed.run_id)
    for seed, *_ in by_run.values():
        for key, value in seed.record.provenance.items():
            counts[key][value or "none"] += 1
    return counts


def short(*values: str) -> list[str]:
    """Different values, cut with an ellipsis to 60 characters unless two of them would then be the same."""
    cut = [value if len(value) <= 60 else f"{value[:57]}…" for value in values]
    return cut if len({*cut}) == len(values) else list(values)
