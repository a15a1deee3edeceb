"""The search: chooses ranks within a budget by Optuna."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, product
from typing import TYPE_CHECKING, Any, Literal

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.choosing import Search
from tensorbench.plan.recipe import Setting
from tensorbench.plan.rows import Plan
from tensorbench.records.metrics import METRICS
from tensorbench.records.record import Record, latest, results
from tensorbench.records.words import OWN_SIZE
from tensorbench.run.search.allocation import RankAllocation
from tensorbench.run.search.chooser import Batch, Choices, Chooser, Steps, ending, mean_result
from tensorbench.run.search.pilot import PilotChooser
from tensorbench.run.search.space import Ranks, RankSpace

if TYPE_CHECKING:
    # Imported late, since they take seconds, and most suites choose no ranks.
    import optuna

#: The number of points in a batch of proposals, so that workers and processes can share their trials. It is a
#: constant, since the proposals must not depend on the number of workers.
AT_ONCE = 4
#: The number of draws from Optuna's model of the tried points. If none of them is an untried point, as many
#: points are drawn at random. If none of those is untried either, the first untried point is proposed.
DRAWS = 100

#: Yields the batches of a cell, and receives the records of each batch. Returns the records of all batches.
Tries = Generator[Batch, Sequence[Record], Sequence[Record]]


def choosers_of(plan: Plan) -> dict[str, Chooser]:
    """Makes the choosers of the section `search`, `allocation` or `pilot` of a plan's suite.

    A search has one chooser for each task on each backbone, and each chooser writes its own suite. The keys
    are the names of task and backbone, or empty if there is a single chooser. If the suite has a pilot, only
    the pilot's chooser is returned: the suite that it writes keeps the search or the allocation, to be run
    next. Raises UserError for a section that does not fit the plan.
    """
    if plan.suite.pilot is not None:
        return {"": PilotChooser(plan.suite.pilot, plan.cells)}
    if plan.suite.allocation is not None:
        return {"": RankAllocation(plan.cells)}
    pairs: dict[str, Chooser] = {
        f"{task}_{backbone}": RankSearch(list(of_pair))
        for (task, backbone), of_pair in groupby(plan.cells, lambda cell: (cell.task.task, cell.info.name))
    }
    return pairs if len(pairs) > 1 else dict.fromkeys([""], *pairs.values())


@dataclass(frozen=True)
class RankPoint:
    """Ranks, with the rates and the scale that are tried together with them."""

    ranks: Ranks
    setting: Setting = field(default_factory=Setting)


class CellPoints:
    """The points of a search in one cell, always within its budget. The first has the heuristic's ranks.

    Optuna proposes the other points. Its sampler is seeded, and receives only the first result of each trial.
    A search that starts again therefore makes the same proposals, and finds their trials in the store. Raises
    UserError as `RankSpace` does, and for rates that the recipe refuses.
    """

    def __init__(self, cell: PlanCell, section: Search) -> None:
        self.cell, self.section = cell, section
        #: Whether a small number of parameters is a second objective.
        self.below = section.objectives != "metric"
        method, geometry = cell.method, cell.info.geometry
        assert method.size
        self.budget = cell.target_count or method.count(geometry)
        searched = section.modes or method.rank_names
        given = cell.method_row.ranks_in_part
        modes = [name for name in method.rank_names if name in searched and name not in given]
        if not modes:
            raise UserError(
                f"search.modes: {', '.join(section.modes or ())}: {cell.own.method} gives their ranks itself"
            )
        self.space = RankSpace(method, geometry, self.budget, modes, below=self.below)
        self.heuristic = method.size
        if self.space.count(method.size) > self.budget:
            # The largest ranks within the budget in the same proportions.
            self.heuristic = self.space.ranks(method.size)
        #: The ids of each point's trials, one for each seed.
        self.trials: dict[RankPoint, list[str]] = {}
        budget = cell.budget.label if cell.budget else OWN_SIZE
        self.name = " · ".join((cell.shown.method, budget, cell.shown.task, cell.shown.backbone))
        self.grids = cell.tunable(section.grids)
        self.first = RankPoint(self.heuristic, next(self.settings()))
        #: The number of points to try.
        self.count = section.trials
        #: All points of the space, if there are no more than the section's `trials`. Otherwise empty.
        self.all: list[RankPoint] = []
        # One point more tells whether there are more. The heuristic's ranks may not be among the vectors.
        points = dict.fromkeys([self.first, *islice(self._points(), section.trials + 1)])
        if len(points) <= section.trials:
            rest = list(points)[1:]
            random.Random(section.seed).shuffle(rest)
            self.all, self.count = [self.first, *rest], len(points)
        # The recipe refuses rates that are too low or too high before any trial runs.
        ends = ({axis: grid[end] for axis, grid in self.grids.items()} for end in (0, -1))
        try:
            self.batch(RankPoint(self.heuristic, Setting.model_validate(rates)) for rates in ends)
        except UserError as error:
            raise UserError(f"search: {error}") from error
        self.trials.clear()

    def settings(self) -> Iterator[Setting]:
        """Yields every combination of rates and scale."""
        for values in product(*self.grids.values()):
            yield Setting.model_validate(dict(zip(self.grids, values, strict=True)))

    def _points(self) -> Iterator[RankPoint]:
        for ranks in self.space.vectors():
            yield from (RankPoint(ranks, setting) for setting in self.settings())

    def tries(self) -> Tries:
        if self.all:
            return (yield self.batch(self.all))
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sign = METRICS.get(self.cell.definition.metric).sign if self.section.by == "score" else -1.0
        best: Literal["maximize", "minimize"] = "maximize" if sign > 0 else "minimize"
        study = optuna.create_study(directions=[best, "minimize"] if self.below else [best])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # A constant liar keeps the proposals of one batch apart from each other.
            # Versions of Optuna differ in their default of `multivariate`, and a resumed search proposes the
            # same points.
            model = optuna.samplers.TPESampler(
                seed=self.section.seed, constant_liar=True, multivariate=not self.below
            )
        samplers = [model, optuna.samplers.RandomSampler(seed=self.section.seed)]
        records: list[Record] = []
        while (left := self.count - len(self.trials)) > 0:
            proposals: dict[RankPoint, optuna.Trial] = {}
            for _ in range(min(AT_ONCE, left)):
                trial, point = self._ask(study, samplers, {*self.trials, *proposals})
                proposals[point] = trial
            batch = self.batch(proposals)
            batch.following = (left - len(proposals)) * len(self.section.seeds)
            new = yield batch
            records += new
            # The first result of each trial: if a failure is tried again, later proposals stay the same.
            first = {record.trial_id: record for record in reversed(new) if record.settled}
            if not {trial.id for trial in batch.trials} <= first.keys():
                break
            for point, trial in proposals.items():
                value = mean_result(first, self.trials[point], self.section.by)
                if value is None:
                    # To the model a pruned trial is a bad one, and a failed trial is unknown.
                    study.tell(trial, state=TrialState.PRUNED)
                else:
                    study.tell(trial, [value, self.space.count(point.ranks)] if self.below else value)
        return records

    def _ask(
        self,
        study: optuna.Study,
        samplers: Sequence[optuna.samplers.BaseSampler],
        tried: set[RankPoint],
    ) -> tuple[optuna.Trial, RankPoint]:
        """Returns a trial of Optuna with an untried point.

        The first point has the heuristic's ranks. For later points, the samplers draw one after the other, up
        to `DRAWS` times each, until a draw is untried. If no draw is untried, the first untried point is
        returned.
        """
        from optuna.trial import TrialState

        for sampler in samplers if tried else ():
            study.sampler = sampler
            for _ in range(DRAWS):
                trial = study.ask()
                if (point := self._suggest(trial)) not in tried:
                    return trial, point
                study.tell(trial, state=TrialState.FAIL)
        point = next(point for point in self._points() if point not in tried) if tried else self.first
        rates = {axis: getattr(point.setting, axis) for axis in self.grids}
        study.enqueue_trial({**self.space.parameters(point.ranks), **rates})
        trial = study.ask()
        # Optuna learns the parameters and their limits.
        self._suggest(trial)
        return trial, point

    def _suggest(self, trial: optuna.trial.BaseTrial) -> RankPoint:
        ranks = self.space.suggest(trial)
        chosen = {axis: trial.suggest_categorical(axis, list(grid)) for axis, grid in self.grids.items()}
        return RankPoint(ranks, Setting.model_validate(chosen))

    def batch(self, points: Iterable[RankPoint]) -> Batch:
        """Returns a batch with the trials of these points, one for each seed."""
        batch, cell = Batch(self.name), self.cell
        for point in points:
            method, setting = cell.method.with_size(point.ranks), point.setting
            if cell.suite.tuning is not None:
                # In a suite with studies, a rate that the point leaves open is the centre's.
                window = cell.window()
                rates = window.setting(setting.lr or window.centre)
                setting = setting.model_copy(update=rates.model_dump(exclude_none=True))
            trials = [
                cell.trial(seed, "validation", method=method, setting=setting, epochs=self.section.epochs)
                for seed in self.section.seeds
            ]
            self.trials[point] = batch.add(cell, trials, method=method, note=point.setting.label)
        return batch

    def choose(self, records: Sequence[Record], choices: Choices, *, alone: bool) -> None:
        """Chooses a point. Adds it to `choices`, with a row for its ranks and one for the heuristic's ranks.

        Both rows have the rates and the scale of the chosen point. `alone` says that no other cell has a
        method of the same name. If no point has a result of every seed, a note is added to `choices.missing`.
        """
        # Imported after the trials, since it takes a second.
        from tensorbench.reports.choice import RankChoice, TriedRanks

        by_id = latest(records)
        tried = [
            TriedRanks(
                label=point.setting.label,
                ranks=point.ranks,
                parameters=self.space.count(point.ranks),
                seeds=len(ids),
                scores=tuple(results(by_id, ids, "score")),
                losses=tuple(results(by_id, ids, "loss")),
            )
            for point, ids in self.trials.items()
        ]
        choice = RankChoice(
            name=self.name,
            modes=self.space.names,
            budget=self.budget,
            metric=self.cell.definition.metric,
            by=self.section.by,
            tried=tuple(tried),
            small=self.below,
        )
        choices.ranks.append(choice)
        if not choice.chosen:
            choices.missing.append(f"{self.name}: no point has a result of every seed")
            return
        choices.lines += choice.sentences
        points, cell, method = list(self.trials), self.cell, self.cell.method
        best = points[choice.ranked[0]].setting
        own = RankPoint(method.size if cell.target_count and method.size else self.heuristic, best)
        rows = choices.methods.setdefault(cell.number, [])
        size = "" if alone or not cell.budget else f", {cell.budget.label}"
        label = cell.method_row.label
        rows.append(self.row(own, label and ending(label, size)))
        for point in (points[place] for place in choice.chosen):
            if point != own:
                parameters = f", {self.space.count(point.ranks):,} parameters" * self.below
                rows.append(self.row(point, ending(cell.shown.method, f" chosen{size}{parameters}")))

    def row(self, point: RankPoint, label: str | None) -> dict[str, Any]:
        """Returns a row of a suite whose method has a point's ranks, rates and scale.

        The row omits ranks if the budget determines them, so that reports recognise the heuristic's row.
        """
        cell, setting = self.cell, point.setting
        method = setting.method(cell.method.with_size(point.ranks))
        fields = type(method).model_fields
        options = {
            key: value
            for key, value in method.model_dump(mode="json").items()
            if getattr(method, key) != fields[key].get_default(call_default_factory=True)
        }
        if cell.target_count and point.ranks == cell.method.size:
            scale = {key: options[key] for key in ("scale",) if key in options}
            options = {**cell.method_row.options, **scale}
        recipe = cell.recipe.model_dump(mode="json")
        training = {key: recipe[key] for key in sorted(cell.method_row.training)}
        rates = setting.model_dump(exclude={"scale"}, exclude_none=True)
        centre = cell.method_row.centre_on(cell.task.task)
        if cell.suite.tuning:
            centre = rates.pop("lr", centre)
        file = cell.method_row.file
        row: dict[str, Any] = {"method": method.name, **({"file": str(file)} if file else {}), **options}
        if cell.budget and not cell.budget.isorank:
            row["budgets"] = [cell.budget.model_dump(mode="json", exclude_unset=True)]
        extra = {"training": training | rates or None, "centre": centre, "label": label}
        return row | {key: value for key, value in extra.items() if value is not None}


class RankSearch(Chooser):
    """The chooser of the section `search`, for each method and budget of one task on one backbone.

    Methods without any of the section's modes keep their ranks. Raises UserError if no method has a rank, for
    a mode that no method has, and as `CellPoints` does.
    """

    section = "search"

    def __init__(self, cells: Sequence[PlanCell]) -> None:
        sized = [cell for cell in cells if cell.method.rank_names]
        if not sized:
            labels = ", ".join(dict.fromkeys(cell.method.label for cell in cells))
            raise UserError(f"search: no rank in {labels}, so there is nothing to choose")
        suite, cell = sized[0].suite, sized[0]
        assert suite.search is not None
        task = [row.task for row in suite.tasks].index(cell.task.task)
        super().__init__(suite, (task, [s.pinned(cell.info) for s in suite.backbones].index(cell.spec)))
        known = dict.fromkeys(name for cell in sized for name in cell.method.rank_names)
        modes = suite.search.modes or tuple(known)
        for mode in modes:
            if mode not in known:
                raise UnknownNameError("search.modes:", mode, known)
        self.by_cell = [
            CellPoints(cell, suite.search) for cell in sized if {*modes} & {*cell.method.rank_names}
        ]

    def steps(self) -> Steps:
        """Tries the points of each cell, one cell after the other, and chooses a point of each cell."""
        choices = Choices()
        names = Counter(points.cell.shown.method for points in self.by_cell)
        for points in self.by_cell:
            points.trials.clear()
            records = yield from points.tries()
            points.choose(records, choices, alone=names[points.cell.shown.method] == 1)
        return choices
