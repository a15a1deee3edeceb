"""What differs among trials that one table puts side by side: protocols, recipes, tuning, versions."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.wire.plan import PlannedTrial
from methods import UserError
from methods.errors import first_few
from reports.study import Cell, Study, grouped

#: Fields of a trial that say what is measured. Scores that differ in one of them do not compare.
DECISIVE = ("protocol", "evaluate", "weights_hash", "data", "train_size", "validation_size", "test_size")

#: What a suite may set for each method, and its rows then name. Experiments that use the same values agree.
PER_METHOD = ("training lr", "training head_lr", "training core_lr")

#: Provenance in which trials of one table should agree.
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


@dataclass(frozen=True)
class Mixture:
    """Values of one thing that should be the same, each with how much it holds for."""

    what: str
    where: str
    values: dict[str, str]
    #: Whether the scores do not compare at all.
    serious: bool

    def __str__(self) -> str:
        values = "; ".join(f"{value} ({who})" for value, who in self.values.items())
        return f"{self.what} differs{' on ' + self.where if self.where else ''}: {values}"


def find(study: Study) -> list[Mixture]:
    """All mixtures of a study, those that forbid a comparison first."""
    found = _trials(study) + _tuning(study) + _surroundings(study)
    return sorted(found, key=lambda mixture: not mixture.serious)


def refuse(mixtures: list[Mixture]) -> None:
    """Raises UserError for a mixture that forbids a comparison."""
    serious = [str(mixture) for mixture in mixtures if mixture.serious]
    if serious:
        raise UserError(
            f"these trials do not belong in one table: {' | '.join(serious)}. "
            "Report the experiments one by one, or side by side all the same with --mixed"
        )


def fields(trial: PlannedTrial) -> dict[str, str]:
    """What a trial's configuration sets, flat, beyond its method, backbone, task and seed."""
    recipe = {f"training {key}": value for key, value in trial.recipe.items()}
    told = {key: getattr(trial, key, trial.task.get(key)) for key in DECISIVE}
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in (told | recipe).items()
    }


def trial_of_each(study: Study) -> dict[int, PlannedTrial]:
    """By the number of a cell, a trial of it: its trials share all but the seed, so that any of them tells
    the configuration. A cell whose seeds all wait for their tuning has none; those of one machine may.
    """
    trials = {id_: trial for experiment in study.experiments for id_, trial in experiment.trials.items()}
    return {seed.cell: trials[seed.trial_id] for seed in study.all_seeds if seed.trial_id in trials}


def _trials(study: Study) -> list[Mixture]:
    trials = trial_of_each(study)
    found = []
    for setting, cells in grouped(study.all_cells, lambda cell: cell.setting).items():
        values: defaultdict[str, defaultdict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
        for cell in cells:
            if (trial := trials.get(cell.number)) is not None:
                text = {"text of forgetting": trial.forgetting or "none"}
                for key, value in (fields(trial) | text).items():
                    if key not in PER_METHOD or not (cell.tuning or cell.studies):
                        values[key][value].append(cell)
        for key, by_value in values.items():
            experiments = [frozenset(cell.experiment for cell in some) for some in by_value.values()]
            if len(by_value) == 1 or (key in PER_METHOD and len(set(experiments)) == 1):
                continue
            several = len(study.experiments) > 1
            told = {short(value): _whose(some, by_experiment=several) for value, some in by_value.items()}
            found.append(Mixture(key, str(setting), told, key in DECISIVE))
    return found


def _whose(cells: Sequence[Cell], *, by_experiment: bool) -> str:
    if by_experiment:
        return ", ".join(sorted({cell.experiment for cell in cells}))
    return first_few(list(dict.fromkeys(cell.method for cell in cells)), 3)


def _tuning(study: Study) -> list[Mixture]:
    found = []
    by_kind = grouped(study.experiments, lambda experiment: experiment.tuned)
    if len(by_kind) > 1:
        kinds = (("tuned", by_kind[True]), ("not tuned", by_kind[False]))
        told = {kind: ", ".join(experiment.name for experiment in some) for kind, some in kinds}
        found.append(Mixture("tuning", "", told, True))
    for experiment in study.experiments:
        spent = Counter(str(len(row.tuning.ids) if row.tuning else 0) for row in experiment.rows)
        if len(spent) > 1:
            told = {f"{trials} trials": f"{rows} rows" for trials, rows in spent.items()}
            found.append(Mixture("tuning spent", experiment.name, told, False))
    return found


def _surroundings(study: Study) -> list[Mixture]:
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
    """Each kind of provenance with its values and how many finished trials of the tables have them."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    # A trial of two cells counts once.
    by_run = grouped((seed for seed in study.all_seeds if seed.finished), lambda seed: seed.run_id)
    for seed, *_ in by_run.values():
        for key, value in study.experiment(seed.experiment).records[seed.trial_id].provenance.items():
            counts[key][value or "none"] += 1
    return counts


def short(value: str) -> str:
    """The value, cut where it is long."""
    return value if len(value) <= 60 else f"{value[:57]}…"
