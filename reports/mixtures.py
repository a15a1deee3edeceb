"""What differs among trials that one table puts side by side: protocols, recipes, tuning, versions."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass

from bench.wire.plan import PlannedTrial
from methods import UserError
from reports.reading import Study

#: Fields of a trial that say what is measured. Scores that differ in one of them do not compare.
MEASURED = ("protocol", "evaluate", "weights_hash", "data", "train_size", "validation_size", "test_size")

#: What a suite may set for each method, and its rows then name. Experiments that use the same values agree.
PER_METHOD = ("training lr", "training head_lr")

#: Provenance in which trials of one table should agree.
SURROUNDINGS = ("harness", "git_commit", "git_dirty", "python", "cpu", "gpu", "threads", "version_")


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
    told = {key: getattr(trial, key, trial.task.get(key)) for key in MEASURED}
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in (told | recipe).items()
    }


def _trials(study: Study) -> list[Mixture]:
    trials = {id_: trial for source in study.sources for id_, trial in source.trials.items()}
    # A cell's seeds share all but the seed.
    firsts = study.seeds.drop_duplicates("cell").set_index("cell")["trial_id"]
    found = []
    for (task, backbone), cells in study.cells.groupby(["task", "backbone"], sort=False):
        values: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for cell in cells.index:
            # A cell that waits for its tuning has no trial yet.
            if firsts[cell] in trials:
                for key, value in fields(trials[firsts[cell]]).items():
                    if not (key in PER_METHOD and cells.at[cell, "tuning"] is not None):
                        values[key][value].append(int(cell))
        for key, by_value in values.items():
            experiments = {value: set(cells.loc[some, "experiment"]) for value, some in by_value.items()}
            if len(by_value) == 1 or (
                key in PER_METHOD and len(set(map(frozenset, experiments.values()))) == 1
            ):
                continue
            told = {}
            for value, some in by_value.items():
                names = list(dict.fromkeys(cells.loc[some, "method"]))
                who = (
                    ", ".join(sorted(experiments[value])) if len(study.sources) > 1 else ", ".join(names[:3])
                )
                more = f" and {len(names) - 3} more" if len(study.sources) == 1 and len(names) > 3 else ""
                told[_short(value)] = f"{who}{more}"
            found.append(Mixture(key, f"{task} · {backbone}", told, key in MEASURED))
    return found


def _tuning(study: Study) -> list[Mixture]:
    by_source = {source.name: "tuned" if source.tuned else "not tuned" for source in study.sources}
    found = []
    if len(set(by_source.values())) > 1:
        values = {v: ", ".join(n for n, w in by_source.items() if w == v) for v in ("tuned", "not tuned")}
        found.append(Mixture("tuning", "", values, True))
    for source in study.sources:
        spent = Counter(str(row.tuning.trials if row.tuning else 0) for row in source.rows)
        if len(spent) > 1:
            values = {f"{trials} trials": f"{rows} rows" for trials, rows in spent.items()}
            found.append(Mixture("tuning spent", source.name, values, False))
    return found


def _surroundings(study: Study) -> list[Mixture]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for tags in provenance(study):
        for key, value in tags.items():
            if key.startswith(SURROUNDINGS):
                counts[key][value] += 1
    return [
        Mixture(
            key.replace("version_", "version of ").replace("_", " "),
            "",
            {value or "none": f"{trials:,} trials" for value, trials in values.most_common()},
            False,
        )
        for key, values in counts.items()
        if len(values) > 1
    ]


def provenance(study: Study) -> list[dict[str, str]]:
    """Where each finished trial of the tables came from."""
    done = study.seeds[study.seeds["status"] == "FINISHED"].drop_duplicates("run_id")
    return [
        study.source(name).records[id_].provenance
        for name, id_ in zip(done["experiment"], done["trial_id"], strict=True)
    ]


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:57]}…"
