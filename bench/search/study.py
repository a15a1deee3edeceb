"""A search over ranks within a budget by Optuna. Several processes can share it, and it can be resumed."""

from __future__ import annotations

import json
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy as shallow_copy
from dataclasses import dataclass
from itertools import product
from math import prod
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from tensorbench.execution.driver import patiently
from tensorbench.methods import UserError
from tensorbench.methods.validation import earlier
from tensorbench.metrics import METRICS
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.choosing import Search
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.settings import Setting
from tensorbench.records.record import comparable, latest, results
from tensorbench.records.search_results import SearchPoint, SearchResult
from tensorbench.records.words import PointState, Tag
from tensorbench.search.importance import importances
from tensorbench.search.nested import Nested, about
from tensorbench.search.space import Ranks, RankSpace
from tensorbench.store.addresses import shown_uri

#: The number of draws from the model of tried points. If none gives an untried point, as many points are
#: drawn at random. If none of these is untried either, the first untried point is taken.
DRAWS = 100
#: Seconds between two reads of the trials of other processes.
LOOK = 1.0
#: Seconds after which a running trial without a driver's name counts as abandoned.
UNSIGNED = 60
#: The attribute of Optuna's study that tells whether a head without a grid of its own has the rates of `lr`.
FOLLOWS = "whether the head has the rate of lr"
#: The attribute of Optuna's study that tells whether points are ranked by loss or by score.
BY = "ranked by"

#: The states of Optuna trials whose points have been tried.
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class SampledPoint:
    """A point of the search: ranks, with the rates and scale that are searched together with them."""

    ranks: Ranks
    setting: Setting

    @property
    def key(self) -> str:
        """The point as text, from which `of` restores it."""
        return json.dumps([self.ranks, self.setting.model_dump(exclude_none=True)])

    @classmethod
    def of(cls, key: str) -> SampledPoint:
        """Restores the point from its `key`."""
        ranks, setting = json.loads(key)
        return cls(tuple(ranks), Setting.model_validate(setting))


class RankSearch:
    """The search over ranks of one cell.

    Raises UserError for a search that does not fit the cell's method, budget or number of epochs, and if
    Optuna's database has a different search under this name.
    """

    def __init__(
        self, cell: PlanCell, search: Search, storage: optuna.storages.BaseStorage, name: str
    ) -> None:
        self.cell, self.search, self.name = cell, search, name
        method, geometry = cell.method, cell.info.geometry
        if not method.rank_names:
            raise UserError(f"method '{method.label}' has no rank to search")
        self.budget = cell.target_count or method.count(geometry)
        self.metric = METRICS.get(cell.definition.metric)
        self.two = search.objectives != "metric"
        #: 1 if larger values of a point are better, and -1 if smaller ones are.
        self.sign = self.metric.sign if search.by == "score" else -1.0
        self.space = RankSpace(method, geometry, self.budget, search.modes, below=self.two)
        self.grids = cell.tunable(search.grids)
        settings = prod(len(grid) for grid in self.grids.values())
        #: The number of points of the space, counted until it exceeds the number of points to try.
        self.size = self.space.size(search.trials // settings + 1) * settings
        self.exhaustive = self.size <= search.trials
        self.trials = min(search.trials, self.size)
        self._study = self._open(storage)
        #: The monotonic time at which this process first saw each running trial without a driver.
        self._unsigned: dict[int, float] = {}

    def _described(self) -> dict[str, Any]:
        """Returns everything that must be equal when a search is resumed, in the types of JSON."""
        trial = self.cell.trial(self.search.seeds[0], "validation", epochs=self.search.epochs)
        content = trial.model_dump(mode="json", exclude={"seed", "evaluate", "backbone"})
        # The location of a task's data may change, since `data` identifies them.
        for place in ("source", "data"):
            content["task"].pop(place, None)
        method = {key: value for key, value in content.pop("method").items() if key not in ("rank", "ranks")}
        described = {
            "budget": self.budget,
            "modes": [self.space.names[i] for i in self.space.free],
            "limits": self.space.limits,
            "seeds": self.search.seeds,
            "objectives": self.search.objectives,
            BY: self.search.by,
            **{f"{axis} grid": grid for axis, grid in self.grids.items()},
            FOLLOWS: self.cell.head_follows and self.grids.keys() & {"lr", "head_lr"} == {"lr"},
            **{f"method.{key}": value for key, value in method.items()},
            **{f"{part}.{key}": v for part in ("task", "recipe", "data") for key, v in content[part].items()},
            "weights": content["weights_hash"],
            "protocol": content["protocol"],
        }
        return dict(json.loads(json.dumps(described)))

    def _open(self, storage: optuna.storages.BaseStorage) -> optuna.Study:
        best: Literal["maximize", "minimize"] = "maximize" if self.sign > 0 else "minimize"
        study = optuna.create_study(
            storage=storage,
            study_name=self.name,
            directions=[best, "minimize"] if self.two else [best],
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=self.search.seed),
        )
        own, stored = self._described(), study.user_attrs.get("space")
        if stored is None:
            study.set_user_attr("space", own)
            return study
        # A study of an earlier version ranks by the score. It lacks FOLLOWS and some fields of the recipe,
        # and it has a task's source.
        stored = {
            FOLLOWS: own[FOLLOWS],
            BY: "score",
            **{f"recipe.{key}": v for key, v in earlier(Recipe).items()},
        } | stored
        stored.pop("task.source", None)
        if stored != own:
            differing = [
                f"{key} is {stored.get(key, 'absent')} in it and {own.get(key, 'absent')} here"
                for key in {**stored, **own}
                if stored.get(key) != own.get(key)
            ]
            raise UserError(
                f"the study '{self.name}' exists with another space: {'; '.join(differing)}. "
                "Rename the suite, or name another database with --storage"
            )
        return study

    @property
    def note(self) -> str:
        """A note for the user if the space has fewer points than the suite requests. Otherwise empty."""
        if self.trials == self.search.trials:
            return ""
        return f"the space has only {self.size} points: all are tried, and the search ends there"

    def run(self, nested: Nested) -> None:
        """Tries points until the requested number has been tried, by this or by other processes.

        Raises UserError if Optuna's database or the store cannot be read or written, and for a trial that was
        lost with its worker.
        """
        try:
            self._try_again(nested)
            self._try_all(nested)
        except optuna.exceptions.StorageInternalError as error:
            raise UserError(
                f"the study '{self.name}' cannot be read or written: {shown_uri(str(error))}; start the same "
                "command again"
            ) from error

    def _try_all(self, nested: Nested) -> None:
        while True:
            self._release(nested)
            trials = self._trials()
            done = [trial for trial in trials if trial.state in DONE]
            if len(done) >= self.trials:
                return
            open_ = [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
            taken = {trial.user_attrs.get("key") for trial in (*done, *open_)}
            if len(done) + len(open_) < self.trials:
                point = self._lost(trials, taken) or self._propose(trials, taken)
                self._study.enqueue_trial(
                    self._parameters(point), user_attrs={"key": point.key, "ranks": point.ranks}
                )
            elif not any(trial.state == TrialState.WAITING for trial in open_):
                # Other processes run the rest. If one of them dies, its trial is released.
                time.sleep(LOOK)
                continue
            self._take(nested)

    def _trials(self) -> list[FrozenTrial]:
        """Returns the trials of Optuna's study. Trials to be retried have the state FAIL."""
        attributes, trials = self._study.user_attrs, []
        for trial in self._study.get_trials(deepcopy=False):
            if f"again {trial.number}" in attributes:
                trial = shallow_copy(trial)
                trial.state = TrialState.FAIL
            trials.append(trial)
        return trials

    def _try_again(self, nested: Nested) -> None:
        """Marks a point as untried if it failed and is to be retried, or if the store lacks its trials.

        The mark is an attribute of the study, since Optuna never changes a trial that has ended.
        """
        # Read the study first: another process stores a trial before the study gets its result.
        trials, stored = self._trials(), latest(patiently(nested.store, nested.store.records))
        for trial in trials:
            ids = list(trial.user_attrs.get("trials", {}).values())
            failed = "failure" in trial.user_attrs and any(id_ in nested.retried for id_ in ids)
            if trial.state in DONE and (failed or any(id_ not in stored for id_ in ids)):
                self._study.set_user_attr(f"again {trial.number}", True)

    def _release(self, nested: Nested) -> None:
        """Marks running trials as failed if their process has ended, so that their points are tried again."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # Read after the trials: a driver gives a sign of life before it takes a trial.
        living, now = nested.living(), time.monotonic()
        for trial in running:
            if driver := trial.user_attrs.get("driver"):
                gone = driver not in living
            else:
                gone = now - self._unsigned.setdefault(trial.number, now) > UNSIGNED
            if gone:
                # Several processes may do so at the same time; the first wins.
                with suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _lost(self, trials: list[FrozenTrial], taken: set[Any]) -> SampledPoint | None:
        """Returns the first point whose trial was interrupted and that is still untried. None without one.

        `taken` has the keys of points that have been tried, are running or are waiting.
        """
        for trial in trials:
            key = trial.user_attrs.get("key")
            if trial.state == TrialState.FAIL and key and key not in taken:
                return SampledPoint.of(key)
        return None

    def _propose(self, trials: list[FrozenTrial], taken: set[Any]) -> SampledPoint:
        """Returns an untried point.

        The first point of a search has the heuristic's ranks. Later points are drawn from a model of the
        tried points, or uniformly if all points of the space are to be tried. Draws are made on a copy of
        Optuna's study, so that draws of tried points leave no trace in it.
        """
        if not taken:
            assert self.cell.method.size
            ranks = self.space.ranks(self.cell.method.size) or self.space.smallest
            return SampledPoint(ranks, next(self._settings()))
        if self.exhaustive:
            untried = [point for point in self._points() if point.key not in taken]
            return random.Random(self.search.seed).choice(untried)
        seed = self.search.seed + len(trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Constant liar: parallel processes avoid each other's running trials.
            model = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        for sampler in (model, optuna.samplers.RandomSampler(seed=seed)):
            copy = optuna.create_study(directions=self._study.directions, sampler=sampler)
            copy.add_trials([trial for trial in trials if trial.state in (*DONE, TrialState.RUNNING)])
            for _ in range(DRAWS):
                drawn = copy.ask()
                point = self._suggest(drawn)
                if point.key not in taken:
                    return point
                copy.tell(drawn, state=TrialState.FAIL)
        return next(point for point in self._points() if point.key not in taken)

    def _settings(self) -> Iterator[Setting]:
        for values in product(*self.grids.values()):
            yield Setting.model_validate(dict(zip(self.grids, values, strict=True)))

    def _points(self) -> Iterator[SampledPoint]:
        for ranks in self.space.vectors():
            yield from (SampledPoint(ranks, setting) for setting in self._settings())

    def _suggest(self, trial: optuna.trial.BaseTrial) -> SampledPoint:
        ranks = self.space.suggest(trial)
        chosen = {axis: trial.suggest_categorical(axis, list(grid)) for axis, grid in self.grids.items()}
        return SampledPoint(ranks, Setting.model_validate(chosen))

    def _parameters(self, point: SampledPoint) -> dict[str, Any]:
        """Returns the parameters of an Optuna trial for which `_suggest` makes this point."""
        return {**self.space.parameters(point.ranks), **{a: getattr(point.setting, a) for a in self.grids}}

    def _take(self, nested: Nested) -> None:
        """Takes a waiting trial from Optuna's study, runs its point and tells the study the result."""
        trial = self._study.ask()
        values, state = None, TrialState.FAIL
        try:
            # Another process may have marked the trial as failed, because this one was silent for too long.
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                values = self._try(trial, nested)
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        finally:
            self._study.tell(trial, values, state, skip_if_finished=True)

    def _try(self, trial: optuna.Trial, nested: Nested) -> Sequence[float] | None:
        """Runs the point of an Optuna trial and returns the values of the objectives.

        None if another process has the point, or if enough points have been tried. Raises TrialPruned if a
        trial has no result, and UserError if it was lost with its worker.
        """
        trial.set_user_attr("driver", nested.driver)
        before = [t for t in self._trials() if t.number < trial.number and t.state != TrialState.FAIL]
        point = self._suggest(trial)
        key = trial.user_attrs.get("key")
        # A trial without a key was not queued: another process took the trial that this one had queued. If
        # two trials have the same point, the one with the smaller number continues.
        if key is None or key in {t.user_attrs.get("key") for t in before} or len(before) >= self.trials:
            return None
        point = SampledPoint.of(key)
        method = self.cell.method.with_size(point.ranks)
        parameters = self.space.count(point.ranks)
        rows, trials = nested.trials(
            [method], self.search.seeds, "search", setting=point.setting, epochs=self.search.epochs
        )
        trial.set_user_attr("parameters", parameters)
        trial.set_user_attr("trials", rows[0].trials)
        records = nested.run(rows, trials, "search")
        for harness_trial in trials:
            record = records.get(harness_trial.id)
            if record is None or not record.settled:
                raise UserError(
                    f"trial {harness_trial.id} was lost with its worker; start the same command again"
                )
            if failure := record.tag(Tag.FAILURE):
                trial.set_user_attr("failure", failure)
        ids = rows[0].trials.values()
        if len(results(records, ids, self.search.by)) < len(ids):
            raise optuna.TrialPruned
        trial.set_user_attr("score", fmean(results(records, ids, "score")))
        value = fmean(results(records, ids, self.search.by))
        return (value, parameters) if self.two else (value,)

    def finish(self, nested: Nested) -> SearchResult:
        """Searches, and then compares the best point with the heuristic's ranks on the suite's seeds.

        Both have the rates and the scale of the best point if these were searched. The heuristic's ranks are
        reduced to the budget if they exceed it.
        """
        self.run(nested)
        result = self.result()
        nested.keep(result)
        if result.best is not None:
            setting = Setting.model_validate({axis: getattr(result.best, axis) for axis in self.search.grids})
            method = self.cell.method
            assert method.size
            methods = {
                "best of the search": method.with_size(result.best.ranks),
                "heuristic": method.with_size(self.space.affordable(method.size)),
            }
            result = result.model_copy(update={"final": nested.compare(methods, setting=setting)})
            nested.keep(result)
        return result

    def result(self) -> SearchResult:
        """Returns the result of the search so far, without the comparison on the suite's seeds."""
        points = [self._point(trial) for trial in self._trials() if trial.state in DONE]
        complete = [(point, merit) for point in points if (merit := self._merit(point)) is not None]
        # On ties the smaller point is best, then the earlier one.
        ranked = sorted(complete, key=lambda entry: (-entry[1], entry[0].parameters, entry[0].number))
        return SearchResult(
            **about(self.cell),
            name=self.name,
            asked=self.budget,
            by=self.search.by,
            objectives=("metric", "parameters") if self.two else ("metric",),
            modes=self.space.names,
            trials=tuple(points),
            pareto=_front(complete) if self.two else (),
            importance=importances(self.space.names, [(p.ranks, merit) for p, merit in complete]),
            best=ranked[0][0] if ranked else None,
        )

    def _merit(self, point: SearchPoint) -> float | None:
        """Returns the number by which points are ranked. Larger is better. None for an incomplete point."""
        value = point.value if self.search.by == "score" else point.loss
        return None if value is None else self.sign * comparable(value)

    def _point(self, trial: FrozenTrial) -> SearchPoint:
        point, attributes = SampledPoint.of(trial.user_attrs["key"]), trial.user_attrs
        trials = attributes["trials"]
        state = PointState.FAILED if "failure" in attributes else PointState[trial.state.name]
        # An earlier version ranked by the score, and stored only this value.
        result = trial.values[0] if state == PointState.COMPLETE else None
        return SearchPoint(
            number=trial.number,
            state=state,
            ranks=point.ranks,
            **point.setting.model_dump(),
            parameters=attributes["parameters"],
            value=result if self.search.by == "score" else attributes.get("score"),
            loss=result if self.search.by == "loss" else None,
            trial_id=next(iter(trials.values())),
            trials=trials,
        )


def _front(points: Sequence[tuple[SearchPoint, float]]) -> tuple[int, ...]:
    """The numbers of the points on the Pareto front of few parameters and much merit.

    `points` has complete points with their merit (see `RankSearch._merit`).
    """
    costs = [(point.number, point.parameters, merit) for point, merit in points]
    return tuple(
        number
        for number, parameters, merit in costs
        if not any(
            less <= parameters and more >= merit and (less, more) != (parameters, merit)
            for _, less, more in costs
        )
    )
