"""Which cells were made alike, but for what was chosen for each method: only these are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.wire.plan import Tuned
from reports import mixtures
from reports.study import Cell, Study

#: What a cell was made by: names and values, flat.
Recipe = Mapping[str, str]

#: How JSON says that nothing is asked for; an older plan leaves such a field out.
_NOTHING = ("null", "[]", "false")

#: How the names begin of what a suite allows for tuning.
TUNING = "tuning "


def recipes(study: Study) -> dict[int, Recipe]:
    """By its number, all that a cell was made by beyond its method, backbone, task and seed: protocol, data,
    recipe and what was allowed for its tuning. Rates are left out where they were tuned: they were chosen for
    the method with the same effort. Those that a suite sets by hand for one method count.
    """
    trials = mixtures.trial_of_each(study)
    most = {
        experiment.name: max((row.tuning.trials for row in experiment.rows if row.tuning), default=0)
        for experiment in study.experiments
    }
    found: dict[int, Recipe] = {}
    for cell in study.all_cells:
        # A cell that waits for its tuning has nothing to compare.
        if (trial := trials.get(cell.number)) is not None:
            told = {key: value for key, value in mixtures.fields(trial).items() if value not in _NOTHING}
            if cell.tuning is not None:
                told = {key: value for key, value in told.items() if key not in mixtures.PER_METHOD}
                told |= allowance(cell.tuning, most[cell.experiment])
            if (studies := cell.studies) is not None:
                told = {key: value for key, value in told.items() if key not in mixtures.PER_METHOD}
                told[f"{TUNING}studies"] = f"{studies.points} trials each over {studies.decades:g} decades"
            found[cell.number] = told
    return found


def allowance(tuning: Tuned, most: int) -> dict[str, str]:
    """What a suite allows every method for its tuning, and not what came of it: a method without some axes
    tries fewer points. `most`: the points of the method that tried most, where the suite's are not stored.
    """
    fields = {
        "points": str(tuning.allowed_points or most),
        "seeds": str(len(tuning.seeds)),
        "epochs": str(tuning.epochs or "none"),
        "by": tuning.by,
        **{f"grid of {axis}": _grid(values) for axis, values in tuning.allowed_grids.items()},
    }
    if not tuning.allowed_grids:
        fields["grids"] = "not stored"
    return {TUNING + key: value for key, value in fields.items()}


def _grid(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def difference(one: Recipe, other: Recipe) -> dict[str, tuple[str, str]]:
    """The names that differ, with either value."""
    return {
        key: (one.get(key, "none"), other.get(key, "none"))
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    }


def told(found: Mapping[str, tuple[str, str]]) -> str:
    """What differs, in words."""
    return "; ".join(
        f"{key} {mixtures.short(one)} against {mixtures.short(other)}" for key, (one, other) in found.items()
    )


class Alike:
    """Methods whose cells are made alike on every setting that they share."""

    def __init__(self, made: Mapping[int, Recipe]) -> None:
        self._made = made
        self.methods: dict[str, Sequence[Cell]] = {}
        self._by_setting: dict[object, Recipe] = {}

    def differs(self, cells: Sequence[Cell]) -> dict[str, tuple[str, str]]:
        """In what these cells differ from those of the same settings here; empty if in nothing."""
        found: dict[str, tuple[str, str]] = {}
        for cell in cells:
            if (known := self._by_setting.get(cell.setting)) is not None:
                found |= difference(self._made.get(cell.number, known), known)
        return found

    def add(self, method: str, cells: Sequence[Cell]) -> None:
        self.methods[method] = cells
        for cell in cells:
            if cell.number in self._made:
                self._by_setting.setdefault(cell.setting, self._made[cell.number])


def alike(made: Mapping[int, Recipe], methods: Mapping[str, Sequence[Cell]]) -> list[Alike]:
    """The methods, each with its cells, in groups that were made alike; the largest group first."""
    groups: list[Alike] = []
    for method, cells in methods.items():
        group = next((group for group in groups if not group.differs(cells)), None)
        if group is None:
            groups.append(group := Alike(made))
        group.add(method, cells)
    return sorted(groups, key=lambda group: -len(group.methods))
