"""Recipes of cells: which methods ran alike, and mixtures among trials in one table.

Only methods with the same recipe are compared. Rates that tuning chose for each method do not count.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.records.stored_plan import PlannedTrial, Tuned
from methods import UserError
from methods.errors import first_few
from reports.study import Cell, Study, grouped

#: A flattened recipe: values by name.
Recipe = Mapping[str, str]
#: Names that differ, with both values.
Differences = dict[str, tuple[str, str]]

#: The fields of a trial that define what is measured. Scores that differ in one are not comparable.
DECISIVE = ("protocol", "evaluate", "weights_hash", "data", "train_size", "validation_size", "test_size")

#: The fields that a suite may set per method. Its rows then show them.
PER_METHOD = ("training lr", "training head_lr", "training core_lr")

#: Prefixes of the provenance in which trials of one table should agree.
SURROUNDINGS = (
    "harness",
    "git_commit",
    "git_dirty",
    "python",
    "cpu",
    "gpu",
    "threads",
    "micro_batch",
    "checkpointing",
    "version_",
)

#: The JSON of a field that is not set. Older plans leave such fields out.
_NOTHING = ("null", "[]", "false")

#: The prefix of the names of a suite's tuning allowances.
TUNING = "tuning "


def fields(trial: PlannedTrial) -> dict[str, str]:
    """A trial's configuration, flattened, without method, backbone, task and seed."""
    decisive = {key: getattr(trial, key, trial.task.get(key)) for key in DECISIVE}
    values = decisive | {f"training {key}": value for key, value in trial.recipe.items()}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def trial_of_each(study: Study) -> dict[int, PlannedTrial]:
    """One trial of each cell, by the cell's number. The cell's other trials differ only in their seed.

    Cells that are not yet tuned have none.
    """
    trials = {id_: trial for experiment in study.experiments for id_, trial in experiment.trials.items()}
    return {seed.cell: trials[seed.trial_id] for seed in study.all_seeds if seed.trial_id in trials}


def recipes(study: Study) -> dict[int, Recipe]:
    """The recipe of each cell by number: protocol, data, training and tuning allowances.

    Tuned rates are left out, since every method's tuning had the same effort. Rates set by hand for one
    method count. Cells that are not yet tuned have no recipe.
    """
    most = {
        experiment.name: max((row.tuning.trials for row in experiment.rows if row.tuning), default=0)
        for experiment in study.experiments
    }
    of_cells: dict[int, Recipe] = {}
    for number, trial in sorted(trial_of_each(study).items()):
        cell = study.all_cells[number]
        recipe = {key: value for key, value in fields(trial).items() if value not in _NOTHING}
        if cell.tuning or cell.studies:
            recipe = {key: value for key, value in recipe.items() if key not in PER_METHOD}
        if cell.tuning:
            recipe |= allowance(cell.tuning, most[cell.experiment])
        if cell.studies:
            trials = f"{cell.studies.points} trials each over {cell.studies.decades:g} decades"
            recipe[f"{TUNING}studies"] = trials
        of_cells[number] = recipe
    return of_cells


def allowance(tuning: Tuned, most: int) -> dict[str, str]:
    """The fields of the tuning that a suite allows every method. Methods without some axes try fewer points.

    `most` is the largest number of points tried by a method of the suite, for plans without a stored
    allowance.
    """
    allowed = {
        "points": str(tuning.allowed_points or most),
        "seeds": str(len(tuning.seeds)),
        "epochs": str(tuning.epochs or "none"),
        "by": tuning.by,
        **{
            f"grid of {axis}": ", ".join(f"{value:g}" for value in values)
            for axis, values in tuning.allowed_grids.items()
        },
    }
    if not tuning.allowed_grids:
        allowed["grids"] = "not stored"
    return {TUNING + key: value for key, value in allowed.items()}


def difference(first: Recipe, second: Recipe) -> Differences:
    """The fields in which two recipes differ, each with both values."""
    return {
        key: (first.get(key, "none"), second.get(key, "none"))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    }


def in_words(differences: Differences) -> str:
    """The differences as text."""
    return "; ".join(
        f"{key} {short(first)} against {short(second)}" for key, (first, second) in differences.items()
    )


class Alike:
    """Methods whose cells have one recipe on every setting that they share."""

    def __init__(self, of_cells: Mapping[int, Recipe]) -> None:
        self._of_cells = of_cells
        self.methods: dict[str, Sequence[Cell]] = {}
        self._by_setting: dict[object, Recipe] = {}

    @property
    def cells(self) -> list[Cell]:
        return [cell for cells in self.methods.values() for cell in cells]

    def differs(self, cells: Sequence[Cell]) -> Differences:
        """The differences of these cells' recipes from the group's recipes on the same settings."""
        differences: Differences = {}
        for cell in cells:
            if (recipe := self._by_setting.get(cell.setting)) is not None:
                differences |= difference(self._of_cells.get(cell.number, recipe), recipe)
        return differences

    def add(self, method: str, cells: Sequence[Cell]) -> None:
        self.methods[method] = cells
        for cell in cells:
            if cell.number in self._of_cells:
                self._by_setting.setdefault(cell.setting, self._of_cells[cell.number])


def alike(of_cells: Mapping[int, Recipe], methods: Mapping[str, Sequence[Cell]]) -> list[Alike]:
    """The methods with their cells, grouped by recipe. The largest group comes first."""
    groups: list[Alike] = []
    for method, cells in methods.items():
        group = next((group for group in groups if not group.differs(cells)), None)
        if group is None:
            groups.append(group := Alike(of_cells))
        group.add(method, cells)
    return sorted(groups, key=lambda group: -len(group.methods))


# --- mixtures ---


@dataclass(frozen=True)
class Mixture:
    """A property that differs between trials but should not: its values, each with who has it."""

    what: str
    where: str
    values: dict[str, str]
    #: Whether scores are not comparable at all.
    serious: bool

    def __str__(self) -> str:
        values = "; ".join(f"{value} ({who})" for value, who in self.values.items())
        return f"{self.what} differs{' on ' + self.where if self.where else ''}: {values}"


def find_mixtures(study: Study) -> list[Mixture]:
    """All mixtures of a study, serious ones first."""
    mixtures = _mixed_trials(study) + _mixed_tuning(study) + _mixed_surroundings(study)
    return sorted(mixtures, key=lambda mixture: not mixture.serious)


def refuse_mixtures(mixtures: Sequence[Mixture]) -> None:
    """Raises UserError for a serious mixture."""
    serious = [str(mixture) for mixture in mixtures if mixture.serious]
    if serious:
        raise UserError(
            f"these trials are not comparable: {' | '.join(serious)}. "
            "Report the experiments one by one, or side by side all the same with --mixed"
        )


def _mixed_trials(study: Study) -> list[Mixture]:
    trials, mixtures = trial_of_each(study), []
    for setting, cells in grouped(study.all_cells, lambda cell: cell.setting).items():
        values: defaultdict[str, defaultdict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
        for cell in cells:
            if (trial := trials.get(cell.number)) is not None:
                text = {"text of forgetting": trial.forgetting or "none"}
                for key, value in (fields(trial) | text).items():
                    if key not in PER_METHOD or not (cell.tuning or cell.studies):
                        values[key][value].append(cell)
        for key, by_value in values.items():
            experiments = {frozenset(cell.experiment for cell in holders) for holders in by_value.values()}
            # A suite may set rates per method. If all experiments have the same rates, they agree.
            if len(by_value) == 1 or (key in PER_METHOD and len(experiments) == 1):
                continue
            holders_of = {short(value): _holders(study, holders) for value, holders in by_value.items()}
            mixtures.append(Mixture(key, str(setting), holders_of, key in DECISIVE))
    return mixtures


def _holders(study: Study, cells: Sequence[Cell]) -> str:
    """The experiments of these cells, or their methods if there is only one experiment."""
    if len(study.experiments) > 1:
        return ", ".join(sorted({cell.experiment for cell in cells}))
    return first_few(list(dict.fromkeys(cell.method for cell in cells)), 3)


def _mixed_tuning(study: Study) -> list[Mixture]:
    mixtures = []
    tuned = grouped(study.experiments, lambda experiment: experiment.tuned)
    if len(tuned) > 1:
        names = {
            kind: ", ".join(experiment.name for experiment in tuned[is_tuned])
            for kind, is_tuned in (("tuned", True), ("not tuned", False))
        }
        mixtures.append(Mixture("tuning", "", names, True))
    for experiment in study.experiments:
        spent = Counter(str(len(row.tuning.ids) if row.tuning else 0) for row in experiment.rows)
        if len(spent) > 1:
            rows_of = {f"{trials} trials": f"{rows} rows" for trials, rows in spent.items()}
            mixtures.append(Mixture("tuning spent", experiment.name, rows_of, False))
    return mixtures


def _mixed_surroundings(study: Study) -> list[Mixture]:
    return [
        Mixture(
            key.replace("version_", "version of ").replace("_", " "),
            "",
            {value: f"{trials:,} trials" for value, trials in values.most_common()},
            False,
        )
        for key, values in provenance_counts(study).items()
        if key.startswith(SURROUNDINGS) and len(values) > 1
    ]


def provenance_counts(study: Study) -> dict[str, Counter[str]]:
    """For each field of provenance, the number of finished trials in the tables that have each value."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    # A trial of two cells counts once.
    by_run = grouped((seed for seed in study.all_seeds if seed.finished), lambda seed: seed.run_id)
    for seed, *_ in by_run.values():
        for key, value in study.experiment(seed.experiment).records[seed.trial_id].provenance.items():
            counts[key][value or "none"] += 1
    return counts


def short(value: str) -> str:
    """The value, cut with an ellipsis if it has more than 60 characters."""
    return value if len(value) <= 60 else f"{value[:57]}…"
