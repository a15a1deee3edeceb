"""A search over ranks by Optuna: on validation only, within a budget, by one or more processes, resumable."""

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
from math import ceil, prod
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from bench.execution.driver import patiently
from bench.execution.perform import Event
from bench.metrics import METRICS
from bench.plan.cells import Cell
from bench.plan.settings import Setting
from bench.search.importance import importances
from bench.search.nested import Nested, about
from bench.search.space import Ranks, RankSpace
from bench.store.connect import shown_uri
from bench.store.records import Record, comparable, latest, results
from bench.suite.choosing import Search
from bench.suite.recipe import Recipe
from bench.training.loop import Pruned
from bench.wire.found import SearchPoint, SearchResult
from bench.wire.words import PointState, Tag
from methods import UserError
from methods.validation import earlier

#: How often the model may draw points that were tried already before points are drawn at random, and how
#: often those may be before the points that are left are listed.
DRAWS = 100
#: Seconds between two looks at what other processes do.
LOOK = 1.0
#: Seconds that a process has to sign a trial as its own, from when another one sees that it is taken.
UNSIGNED = 60
#: What a study says of a head that has no grid where `lr` has one.
FOLLOWS = "whether the head has the rate of lr"

#: What a study says of the result by which it ranks points.
BY = "ranked by"

#: States of trials that count as tried.
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Point:
    """What one trial of the search tries."""

    ranks: Ranks
    setting: Setting

    @property
    def key(self) -> str:
        """A text that is equal for equal points, and that `of` reads."""
        return json.dumps([self.ranks, self.setting.model_dump(exclude_none=True)])

    @classmethod
    def of(cls, key: str) -> Point:
        """The point of this key."""
        ranks, setting = json.loads(key)
        return cls(tuple(ranks), Setting.model_validate(setting))


class RankSearch:
    """The search of one cell. Raises UserError for a space, a pruner or a stored study that does not fit."""

    def __init__(self, cell: Cell, search: Search, storage: optuna.storages.BaseStorage, name: str) -> None:
        self.cell, self.search, self.name = cell, search, name
        method, geometry = cell.method, cell.info.geometry
        if not method.rank_names:
            raise UserError(f"method '{method.label}' has no rank to search")
        self.budget = cell.asked or method.count(geometry)
        self.metric = METRICS.get(cell.definition.metric)
        self.two = search.objectives != "metric"
        #: What a point's value is multiplied by so that more is better.
        self.sign = self.metric.sign if search.by == "score" else -1.0
        self.space = RankSpace(method, geometry, self.budget, search.modes, below=self.two)
        self.grids = cell.tunable(search.grids)
        settings = prod(len(grid) for grid in self.grids.values())
        #: Points of the space, counted until there are more than trials were asked for.
        self.size = self.space.size(search.trials // settings + 1) * settings
        self.exhaustive = self.size <= search.trials
        self.trials = min(search.trials, self.size)
        self._pruner = self._choose_pruner()
        self._study = self._open(storage)
        #: Trials that are taken and not signed, and when this process saw each first (seconds, monotonic).
        self._unsigned: dict[int, float] = {}

    def _choose_pruner(self) -> optuna.pruners.BasePruner:
        epochs = self._epochs()
        pruner = self.search.pruner
        if pruner == "auto":
            pruner = "none" if self.two or epochs == 1 else "median"
        elif pruner != "none" and epochs == 1:
            raise UserError(
                f"search.pruner '{pruner}' stops trials by their epoch results, and these end after one: "
                "give more epochs, or pruner: none"
            )
        if pruner == "halving":
            return optuna.pruners.SuccessiveHalvingPruner()
        return optuna.pruners.MedianPruner() if pruner == "median" else optuna.pruners.NopPruner()

    def _epochs(self) -> int | None:
        """How often a trial is validated; None where nobody knows the size of the training split."""
        recipe = Setting().recipe(self.cell.recipe, self.search.epochs)
        if recipe.steps is None:
            return recipe.epochs
        train = self.cell.task.train_examples(self.cell.definition)
        return ceil(recipe.steps / ceil(train / recipe.batch_size)) if train else None

    def _described(self) -> dict[str, Any]:
        """All that must not change between two starts of a study, in the types that JSON gives back."""
        trial = self.cell.trial(self.search.seeds[0], "validation", epochs=self.search.epochs)
        content = trial.model_dump(mode="json", exclude={"seed", "evaluate", "backbone"})
        # Where a task's data lie may change. `data` tells which they are.
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
            pruner=self._pruner,
            sampler=optuna.samplers.RandomSampler(seed=self.search.seed),
        )
        own, there = self._described(), study.user_attrs.get("space")
        if there is None:
            study.set_user_attr("space", own)
            return study
        # A study of an earlier version went by the score. It lacks FOLLOWS and fields of the recipe, and has
        # a task's source.
        there = {
            FOLLOWS: own[FOLLOWS],
            BY: "score",
            **{f"recipe.{key}": v for key, v in earlier(Recipe).items()},
        } | there
        there.pop("task.source", None)
        if there != own:
            differing = [
                f"{key} is {there.get(key, 'not there')} in it and {own.get(key, 'not there')} here"
                for key in {**there, **own}
                if there.get(key) != own.get(key)
            ]
            raise UserError(
                f"the study '{self.name}' exists with another space: {'; '.join(differing)}. "
                "Rename the suite, or name another database with --storage"
            )
        return study

    @property
    def note(self) -> str:
        """What a user must know where the space has fewer points than trials were asked for."""
        if self.trials == self.search.trials:
            return ""
        return f"the space has only {self.size} points: all are tried, and the search ends there"

    def run(self, nested: Nested) -> None:
        """Tries points until as many are done as were asked for, or raises what stopped it."""
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
                # Other processes are at work on the rest. If one of them dies, its trial comes back.
                time.sleep(LOOK)
                continue
            self._take(nested)

    def _trials(self) -> list[FrozenTrial]:
        """The study's trials. Those that are to be tried again count as interrupted."""
        attributes, found = self._study.user_attrs, []
        for trial in self._study.get_trials(deepcopy=False):
            if f"again {trial.number}" in attributes:
                trial = shallow_copy(trial)
                trial.state = TrialState.FAIL
            found.append(trial)
        return found

    def _try_again(self, nested: Nested) -> None:
        """Marks points as untried whose failures are to be tried again, or whose trials are stored no more:
        Optuna changes no trial that has ended.
        """
        # In this order: what another process tries meanwhile is stored before it is told here.
        trials, stored = self._trials(), latest(patiently(nested.store, nested.store.records))
        for trial in trials:
            ids = list(trial.user_attrs.get("trials", {}).values())
            failed = "failure" in trial.user_attrs and any(id_ in nested.again for id_ in ids)
            # One that was given up has not run its later seeds.
            ran = ids if trial.state == TrialState.COMPLETE else ids[:1]
            if trial.state in DONE and (failed or any(id_ not in stored for id_ in ran)):
                self._study.set_user_attr(f"again {trial.number}", True)

    def _release(self, nested: Nested) -> None:
        """Lets running trials fail whose process is gone, so that their points are tried again."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # Asked after the trials: a driver gives its sign before it takes any, so all living ones are in it.
        living, now = nested.living(), time.monotonic()
        for trial in running:
            if driver := trial.user_attrs.get("driver"):
                gone = driver not in living
            else:
                gone = now - self._unsigned.setdefault(trial.number, now) > UNSIGNED
            if gone:
                # Of several processes that see it at once, one is first.
                with suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _lost(self, trials: list[FrozenTrial], taken: set[Any]) -> Point | None:
        """A point that an interrupted trial left untried."""
        for trial in trials:
            key = trial.user_attrs.get("key")
            if trial.state == TrialState.FAIL and key and key not in taken:
                return Point.of(key)
        return None

    def _propose(self, trials: list[FrozenTrial], taken: set[Any]) -> Point:
        """An untried point: first the heuristic's, within the budget, then what a model of the others draws.

        It is drawn on a copy of the study, so that repeated draws leave no trace in it.
        """
        if not taken:
            assert self.cell.method.size
            ranks = self.space.ranks(self.cell.method.size) or self.space.smallest
            return Point(ranks, next(self._settings()))
        if self.exhaustive:
            left = [point for point in self._points() if point.key not in taken]
            return random.Random(self.search.seed).choice(left)
        seed = self.search.seed + len(trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # By a constant liar, processes side by side keep away from each other's running trials.
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

    def _points(self) -> Iterator[Point]:
        for ranks in self.space.vectors():
            yield from (Point(ranks, setting) for setting in self._settings())

    def _suggest(self, trial: optuna.trial.BaseTrial) -> Point:
        ranks = self.space.suggest(trial)
        chosen = {axis: trial.suggest_categorical(axis, list(grid)) for axis, grid in self.grids.items()}
        return Point(ranks, Setting.model_validate(chosen))

    def _parameters(self, point: Point) -> dict[str, Any]:
        """The parameters of Optuna by which `_suggest` makes this point."""
        return {**self.space.parameters(point.ranks), **{a: getattr(point.setting, a) for a in self.grids}}

    def _take(self, nested: Nested) -> None:
        """Takes a trial that waits, and tells what came of it, whatever that is."""
        trial = self._study.ask()
        values, state = None, TrialState.FAIL
        try:
            # Another process may have given the trial up, because this one was silent for too long.
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                values = self._try(trial, nested)
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        finally:
            self._study.tell(trial, values, state, skip_if_finished=True)

    def _try(self, trial: optuna.Trial, nested: Nested) -> Sequence[float] | None:
        """What the trial's point gives; None where another process was first: with the point, or with the
        last trial that was asked for.
        """
        trial.set_user_attr("driver", nested.driver)
        before = [t for t in self._trials() if t.number < trial.number and t.state != TrialState.FAIL]
        point = self._suggest(trial)
        key = trial.user_attrs.get("key")
        # A trial without a key was not queued: another process took the one that this one had queued. And of
        # two trials of one point, the one with the smaller number goes on.
        if key is None or key in {t.user_attrs.get("key") for t in before} or len(before) >= self.trials:
            return None
        point = Point.of(key)
        method = self.cell.method.with_size(point.ranks)
        parameters = self.space.count(point.ranks)
        rows, trials = nested.trials(
            [method], self.search.seeds, "search", setting=point.setting, epochs=self.search.epochs
        )
        trial.set_user_attr("parameters", parameters)
        trial.set_user_attr("trials", rows[0].trials)
        records: dict[str, Record] = {}
        for position, harness_trial in enumerate(trials):

            def listen(event: Event, position: int = position) -> None:
                progress = event.progress
                # Optuna's rules look at the best value so far, and a lucky first seed would set it for the
                # later ones as well: so only the first one reports.
                if self.two or position or progress is None or progress.validation_metric is None:
                    return
                reached = progress.validation_loss if self.search.by == "loss" else progress.validation_metric
                assert reached is not None
                trial.report(reached, progress.epoch)
                # After the last epoch there is nothing left to save.
                if progress.step < progress.steps and trial.should_prune():
                    raise Pruned

            records |= nested.run(rows, [harness_trial], "search", listen)
            record = records.get(harness_trial.id)
            if record is None or not record.settled:
                raise UserError(
                    f"trial {harness_trial.id} was lost with its worker; start the same command again"
                )
            if failure := record.tag(Tag.FAILURE):
                trial.set_user_attr("failure", failure)
            if not results(records, [harness_trial.id], self.search.by):
                raise optuna.TrialPruned
        ids = rows[0].trials.values()
        trial.set_user_attr("score", fmean(results(records, ids, "score")))
        value = fmean(results(records, ids, self.search.by))
        return (value, parameters) if self.two else (value,)

    def finish(self, nested: Nested) -> SearchResult:
        """Searches, then compares the best point with the heuristic, within the budget, on the suite's seeds.

        Both get the rates and the scale of the best point where these were searched.
        """
        self.run(nested)
        found = self.result()
        nested.keep(found)
        if found.best is not None:
            setting = Setting.model_validate({axis: getattr(found.best, axis) for axis in self.search.grids})
            method = self.cell.method
            assert method.size
            vectors = {
                "best of the search": found.best.ranks,
                "heuristic": self.space.affordable(method.size),
            }
            labelled = {label: method.with_size(ranks) for label, ranks in vectors.items()}
            found = found.model_copy(update={"final": nested.compare(labelled, setting=setting)})
            nested.keep(found)
        return found

    def result(self) -> SearchResult:
        """What the search found, before the final trials."""
        points = [self._point(trial) for trial in self._trials() if trial.state in DONE]
        complete = [(point, merit) for point in points if (merit := self._merit(point)) is not None]
        # The smaller of equally good ones, then the earlier.
        best = min(
            complete,
            key=lambda p: (-p[1], p[0].parameters, p[0].number),
            default=(None, 0.0),
        )[0]
        return SearchResult(
            **about(self.cell),
            name=self.name,
            asked=self.budget,
            by=self.search.by,
            objectives=("metric", "parameters") if self.two else ("metric",),
            modes=self.space.names,
            trials=tuple(points),
            pareto=tuple(t.number for t in self._study.best_trials) if self.two and complete else (),
            importance=importances(self.space.names, [(p.ranks, merit) for p, merit in complete]),
            best=best,
        )

    def _merit(self, point: SearchPoint) -> float | None:
        """What points are ranked by, more being better; None of a point that is not complete."""
        value = point.value if self.search.by == "score" else point.loss
        return None if value is None else self.sign * comparable(value)

    def _point(self, trial: FrozenTrial) -> SearchPoint:
        point, attributes = Point.of(trial.user_attrs["key"]), trial.user_attrs
        trials = attributes["trials"]
        state = PointState.FAILED if "failure" in attributes else PointState[trial.state.name]
        # An earlier version went by the score, and stored it as the value alone.
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
