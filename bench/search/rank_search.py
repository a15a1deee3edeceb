"""The search: Optuna proposes ranks within a budget. A start repeats the search from the stored trials."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Literal

import optuna
from optuna.trial import TrialState

from tensorbench.metrics import METRICS
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.choosing import Search
from tensorbench.plan.recipe import Setting
from tensorbench.records.record import Record
from tensorbench.search.chooser import Batch
from tensorbench.search.ranks import CellPoints, RankPoint, Tries

#: The number of points that are proposed before the next result, so that workers and processes can share
#: them. It is a constant, since the proposals must not depend on who runs the trials.
AT_ONCE = 4
#: The number of draws from the model of tried points. If none gives an untried point, as many points are
#: drawn at random. If none of these is untried either, the first untried point is taken.
DRAWS = 100


class CellSearch(CellPoints):
    """The points of a search in one cell, which Optuna proposes.

    The sampler is seeded and receives the first result of each trial, so every start makes the same proposals
    and finds their trials in the store. Raises UserError as `RankSpace` does.
    """

    name_of_section = "search"

    def __init__(self, cell: PlanCell, section: Search) -> None:
        super().__init__(cell, section, below=section.objectives != "metric")
        self.search = section
        self.grids = cell.tunable(section.grids)
        self.first = RankPoint(self.heuristic, next(self._settings()))
        #: The number of points to try, and all points of the space if it has no more.
        self.count = section.trials
        self.all: list[RankPoint] = []
        # One point more tells whether there are more. The heuristic's ranks may not be among the vectors.
        points = dict.fromkeys([self.first, *islice(self._points(), section.trials + 1)])
        if len(points) <= section.trials:
            rest = list(points)[1:]
            random.Random(section.seed).shuffle(rest)
            self.all, self.count = [self.first, *rest], len(points)

    def tries(self) -> Tries:
        if self.all:
            return (yield self.batch(self.all))
        records: list[Record] = []
        study, samplers = self._study(), self._samplers()
        while (left := self.count - len(self.trials)) > 0:
            batch, proposals = Batch(self.name), []
            for _ in range(min(AT_ONCE, left)):
                proposals.append(self._ask(study, samplers))
                self.add(batch, proposals[-1][1])
            batch.following = (left - len(proposals)) * len(self.search.seeds)
            new = yield batch
            records += new
            # The first result of each trial: if a failure is tried again, later proposals stay the same.
            first = {record.trial_id: record for record in reversed(new) if record.settled}
            for trial, point in proposals:
                self._tell(study, trial, point, list(first.values()))
        return records

    def _settings(self) -> Iterator[Setting]:
        for values in product(*self.grids.values()):
            yield Setting.model_validate(dict(zip(self.grids, values, strict=True)))

    def _points(self) -> Iterator[RankPoint]:
        for ranks in self.space.vectors():
            yield from (RankPoint(ranks, setting) for setting in self._settings())

    def _study(self) -> optuna.Study:
        """Makes Optuna's study of the search, without trials."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sign = METRICS.get(self.cell.definition.metric).sign if self.search.by == "score" else -1.0
        best: Literal["maximize", "minimize"] = "maximize" if sign > 0 else "minimize"
        return optuna.create_study(directions=[best, "minimize"] if self.below else [best])

    def _samplers(self) -> list[optuna.samplers.BaseSampler]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Constant liar: the proposals of one batch keep apart from each other.
            model = optuna.samplers.TPESampler(seed=self.search.seed, constant_liar=True)
        return [model, optuna.samplers.RandomSampler(seed=self.search.seed)]

    def _ask(
        self, study: optuna.Study, samplers: Sequence[optuna.samplers.BaseSampler]
    ) -> tuple[optuna.Trial, RankPoint]:
        """Returns an untried point, with Optuna's trial for it.

        The first point has the heuristic's ranks. Later ones come from the first of the samplers that draws
        an untried point.
        """
        if not self.trials:
            return self._enqueued(study, self.first)
        for sampler in samplers:
            study.sampler = sampler
            for _ in range(DRAWS):
                trial = study.ask()
                point = self._suggest(trial)
                if point not in self.trials:
                    return trial, point
                study.tell(trial, state=TrialState.FAIL)
        return self._enqueued(study, next(point for point in self._points() if point not in self.trials))

    def _suggest(self, trial: optuna.trial.BaseTrial) -> RankPoint:
        ranks = self.space.suggest(trial)
        chosen = {axis: trial.suggest_categorical(axis, list(grid)) for axis, grid in self.grids.items()}
        return RankPoint(ranks, Setting.model_validate(chosen))

    def _enqueued(self, study: optuna.Study, point: RankPoint) -> tuple[optuna.Trial, RankPoint]:
        rates = {axis: getattr(point.setting, axis) for axis in self.grids}
        study.enqueue_trial({**self.space.parameters(point.ranks), **rates})
        trial = study.ask()
        # Optuna learns the parameters and their limits.
        self._suggest(trial)
        return trial, point

    def _tell(
        self, study: optuna.Study, trial: optuna.Trial, point: RankPoint, records: Sequence[Record]
    ) -> None:
        value = self.mean(point, records)
        if value is None:
            # To the model a pruned trial is a bad one, and a failed trial is unknown.
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, [value, self.space.count(point.ranks)] if self.below else value)
