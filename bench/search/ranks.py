"""The choosers of ranks within a budget: a search by Optuna, and an allocation by sweeps and a path."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, product
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tensorbench.methods import UserError
from tensorbench.methods.errors import cut
from tensorbench.methods.validation import MOST_OF_LABEL
from tensorbench.metrics import METRICS
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.choosing import Allocation, Search
from tensorbench.plan.recipe import Setting
from tensorbench.plan.rows import Plan
from tensorbench.records.record import Record, latest, results
from tensorbench.records.words import OWN_SIZE
from tensorbench.search.chooser import Batch, Choices, Chooser, Steps, mean_result
from tensorbench.search.pilot import PilotChooser
from tensorbench.search.space import Ranks, RankSpace

if TYPE_CHECKING:
    # Imported late, since they take seconds, and most suites choose no ranks.
    import optuna

#: The number of points that are proposed before the next result, so that workers and processes can share
#: them. It is a constant, since the proposals must not depend on who runs the trials.
AT_ONCE = 4
#: The number of draws from the model of tried points. If none gives an untried point, as many points are
#: drawn at random. If none of these is untried either, the first untried point is taken.
DRAWS = 100

#: Yields the batches of a cell and receives the records of their trials. Returns the records of all of them.
Tries = Generator[Batch, Sequence[Record], Sequence[Record]]


def choosers_of(plan: Plan) -> dict[str, Chooser]:
    """Makes the choosers of the section `search`, `allocation` or `pilot` of a plan's suite.

    Ranks are chosen for each task on each backbone, by a chooser that writes a suite of its own. The keys are
    the names of task and backbone, or empty if there is a single chooser. A pilot comes before a search or an
    allocation, which the suite that it writes still has. Raises UserError for a section that does not fit the
    plan.
    """
    if plan.suite.pilot is not None:
        return {"": PilotChooser(plan.suite.pilot, plan.cells)}
    kind = RankSearch if plan.suite.search else RankAllocation
    pairs: dict[str, Chooser] = {
        f"{task}_{backbone}": kind(list(of_pair))
        for (task, backbone), of_pair in groupby(plan.cells, lambda cell: (cell.task.task, cell.info.name))
    }
    return pairs if len(pairs) > 1 else dict.fromkeys([""], *pairs.values())


@dataclass(frozen=True)
class RankPoint:
    """Ranks, with the rates and the scale that are tried together with them."""

    ranks: Ranks
    setting: Setting = field(default_factory=Setting)


class CellPoints(ABC):
    """The points that are tried in one cell, always within its budget. The first has the heuristic's ranks.

    With `below`, few parameters are a second objective. Raises UserError as `RankSpace` does.
    """

    def __init__(self, cell: PlanCell, section: Search | Allocation, *, below: bool = False) -> None:
        self.cell, self.section, self.below = cell, section, below
        method, geometry = cell.method, cell.info.geometry
        assert method.size
        self.budget = cell.target_count or method.count(geometry)
        self.space = RankSpace(method, geometry, self.budget, section.modes, below=below)
        self.heuristic = self.space.affordable(method.size)
        #: The ids of each point's trials, one for each seed.
        self.trials: dict[RankPoint, list[str]] = {}
        budget = cell.budget.label if cell.budget else OWN_SIZE
        self.name = " · ".join((cell.shown.method, budget, cell.shown.task, cell.shown.backbone))

    @abstractmethod
    def tries(self) -> Tries:
        """Tries points. Returns the records of all their trials."""

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
        """Adds the choice, with the rows of the heuristic's ranks and of the chosen ones.

        Both have the rates and the scale of the choice. `alone` is true if no other cell has a method of the
        same name.
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
        points, cell = list(self.trials), self.cell
        best = points[choice.ranked[0]].setting
        rows = choices.methods.setdefault(cell.number, [])
        size = "" if alone or not cell.budget else f", {cell.budget.label}"
        label = cell.method_row.label
        rows.append(self.row(RankPoint(self.heuristic, best), label and _ending(label, size)))
        for point in (points[place] for place in choice.chosen):
            if point != RankPoint(self.heuristic, best):
                parameters = f", {self.space.count(point.ranks):,} parameters" * self.below
                rows.append(self.row(point, _ending(cell.shown.method, f" chosen{size}{parameters}")))

    def row(self, point: RankPoint, label: str | None) -> dict[str, Any]:
        """Returns a row of a suite whose method has a point's ranks, rates and scale."""
        cell, setting = self.cell, point.setting
        method = setting.method(cell.method.with_size(point.ranks))
        fields = type(method).model_fields
        options = {
            key: value
            for key, value in method.model_dump(mode="json").items()
            if getattr(method, key) != fields[key].get_default(call_default_factory=True)
        }
        recipe = cell.recipe.model_dump(mode="json")
        training = {key: recipe[key] for key in sorted(cell.method_row.training)}
        rates = setting.model_dump(exclude={"scale"}, exclude_none=True)
        centre = cell.method_row.centre
        if cell.suite.tuning:
            centre = rates.pop("lr", centre)
        file = cell.method_row.file
        row: dict[str, Any] = {"method": method.name, **({"file": str(file)} if file else {}), **options}
        if cell.budget and not cell.budget.isorank:
            row["budgets"] = [cell.budget.model_dump(mode="json", exclude_unset=True)]
        extra = {"training": training | rates or None, "centre": centre, "label": label}
        return row | {key: value for key, value in extra.items() if value is not None}


def _ending(name: str, end: str) -> str:
    """Returns a label that ends with `end`. If it would be too long, the name before it is cut."""
    return cut(name, MOST_OF_LABEL - len(end)) + end


class RankChooser(Chooser):
    """A chooser of ranks, for each method and budget of one task on one backbone.

    Raises UserError if no method has as many ranks as it takes to choose, and as `points` does.
    """

    #: The class of the points that it tries, and the smallest number of ranks of a method that takes part.
    points: ClassVar[type[CellPoints]]
    fewest: ClassVar[int] = 1

    def __init__(self, cells: Sequence[PlanCell]) -> None:
        sized = [cell for cell in cells if len(cell.method.rank_names) >= self.fewest]
        if not sized:
            labels = ", ".join(dict.fromkeys(cell.method.label for cell in cells))
            few = "a single mode" if any(cell.method.rank_names for cell in cells) else "no rank"
            raise UserError(f"{self.section}: {few} in {labels}, so there is nothing to choose")
        suite, cell = sized[0].suite, sized[0]
        task = [row.task for row in suite.tasks].index(cell.task.task)
        super().__init__(suite, (task, [s.pinned(cell.info) for s in suite.backbones].index(cell.spec)))
        self.by_cell = [self.points(cell, getattr(suite, self.section)) for cell in sized]

    def steps(self) -> Steps:
        """Tries points of one cell after the other, and chooses in each."""
        choices = Choices()
        names = Counter(points.cell.shown.method for points in self.by_cell)
        for points in self.by_cell:
            points.trials.clear()
            records = yield from points.tries()
            points.choose(records, choices, alone=names[points.cell.shown.method] == 1)
        return choices


class SearchPoints(CellPoints):
    """The points of a search in one cell, which Optuna proposes.

    The sampler is seeded and receives the first result of each trial, so every start makes the same proposals
    and finds their trials in the store.
    """

    def __init__(self, cell: PlanCell, section: Search) -> None:
        super().__init__(cell, section, below=section.objectives != "metric")
        self.search = section
        self.grids = cell.tunable(section.grids)
        self.first = RankPoint(self.heuristic, next(self.settings()))
        #: The number of points to try, and all points of the space if it has no more.
        self.count = section.trials
        self.all: list[RankPoint] = []
        # One point more tells whether there are more. The heuristic's ranks may not be among the vectors.
        points = dict.fromkeys([self.first, *islice(self._points(), section.trials + 1)])
        if len(points) <= section.trials:
            rest = list(points)[1:]
            random.Random(section.seed).shuffle(rest)
            self.all, self.count = [self.first, *rest], len(points)

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
        sign = METRICS.get(self.cell.definition.metric).sign if self.search.by == "score" else -1.0
        best: Literal["maximize", "minimize"] = "maximize" if sign > 0 else "minimize"
        study = optuna.create_study(directions=[best, "minimize"] if self.below else [best])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Constant liar: the proposals of one batch keep apart from each other.
            model = optuna.samplers.TPESampler(seed=self.search.seed, constant_liar=True)
        samplers = [model, optuna.samplers.RandomSampler(seed=self.search.seed)]
        records: list[Record] = []
        while (left := self.count - len(self.trials)) > 0:
            proposals: dict[RankPoint, optuna.Trial] = {}
            for _ in range(min(AT_ONCE, left)):
                trial, point = self._ask(study, samplers, {*self.trials, *proposals})
                proposals[point] = trial
            batch = self.batch(proposals)
            batch.following = (left - len(proposals)) * len(self.search.seeds)
            new = yield batch
            records += new
            # The first result of each trial: if a failure is tried again, later proposals stay the same.
            first = {record.trial_id: record for record in reversed(new) if record.settled}
            for point, trial in proposals.items():
                value = mean_result(first, self.trials[point], self.search.by)
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
        """Returns Optuna's trial and its point, which is not one of those tried.

        The first point has the heuristic's ranks. Later ones come from the first of the samplers that draws
        an untried point.
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


class RankSearch(RankChooser):
    """The chooser of the section `search`."""

    section = "search"
    points = SearchPoints


def log_spaced(low: int, high: int, count: int) -> list[int]:
    """Returns at most `count` ranks from `low` to `high`, both included, evenly spaced by logarithm."""
    steps = max(count - 1, 1)
    return sorted({round(low * (high / low) ** (i / steps)) for i in range(count)})


def path(start: Ranks, end: Ranks, count: int) -> list[Ranks]:
    """Returns at most `count` rank vectors from `start` to `end`, both included.

    The ranks of each mode are evenly spaced by logarithm. A `count` of 1 gives `start` alone.
    """
    steps = max(count - 1, 1)
    vectors = [
        tuple(round(a * (b / a) ** (i / steps)) for a, b in zip(start, end, strict=True))
        for i in range(count)
    ]
    return list(dict.fromkeys(vectors))


class AllocationPoints(CellPoints):
    """The rank vectors that an allocation tries in one cell: ways to share the budget among the modes.

    These are the heuristic's ranks, sweeps of single modes, and a path from small equal ranks to the
    heuristic's. Raises UserError for an unknown mode, for a budget below the smallest ranks, and if the path
    would begin with more parameters than it ends with.
    """

    def __init__(self, cell: PlanCell, section: Allocation) -> None:
        super().__init__(cell, section)
        space, heuristic = self.space, self.heuristic
        # A rank for which no ranks of the other modes are small enough is left out.
        swept = (
            space.ranks(heuristic, fixed={index: rank})
            for index in space.free
            for rank in log_spaced(1, space.limits[index], section.ranks)
        )
        vectors = [heuristic, *(ranks for ranks in swept if ranks is not None)]
        if section.path:
            vectors += self._path(section)
        self.vectors = list(dict.fromkeys(vectors))

    def _path(self, section: Allocation) -> list[Ranks]:
        method, geometry = self.cell.method, self.cell.info.geometry
        isorank = method.isorank(section.isorank)
        first, last = isorank.count(geometry), self.space.count(self.heuristic)
        if first > last:
            raise UserError(
                f"allocation.isorank: {isorank.label} at rank {section.isorank} throughout has "
                f"{first:,} parameters, more than the {last:,} at the end of the path; "
                "take a smaller one, or path: 0"
            )
        assert isorank.size
        # The path changes every rank, including those that the sweeps keep.
        space = RankSpace(method, geometry, self.budget)
        return [space.affordable(ranks) for ranks in path(isorank.size, self.heuristic, section.path)]

    def tries(self) -> Tries:
        return (yield self.batch(map(RankPoint, self.vectors)))


class RankAllocation(RankChooser):
    """The chooser of the section `allocation`."""

    section = "allocation"
    points, fewest = AllocationPoints, 2
