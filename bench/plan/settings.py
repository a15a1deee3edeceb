"""What is tuned besides ranks: the adapter's learning rate, the method's scale, the head's learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from bench.suite.recipe import Recipe
from methods import Method
from methods.validation import Frozen, validate

#: The axes in their order, by the names that a suite's grids have.
AXES = ("lr", "scale", "head_lr")

Grids = Mapping[str, Sequence[float]]


class Setting(Frozen):
    """A point of the grids. An axis of None stays as the suite has it."""

    lr: float | None = None
    #: A factor of the scale that the method has in the suite, which by default is the published one.
    scale: float | None = None
    head_lr: float | None = None

    def recipe(self, recipe: Recipe, epochs: int | None = None, *, head_follows: bool = False) -> Recipe:
        """The resolved recipe with these rates and, if given, another number of epochs.

        With `head_follows` a head without a rate of its own has the adapter's. Raises UserError for a rate
        below the recipe's floor.
        """
        lr = self.lr or recipe.lr
        update: dict[str, Any] = {
            "lr": lr,
            "head_lr": self.head_lr or (lr if head_follows else recipe.head_lr),
        }
        if epochs is not None:
            update |= {"epochs": epochs, "steps": None}
        return validate(Recipe, recipe.model_dump() | update, f"training with {self.label}")

    def method(self, method: Method) -> Method:
        """The method at this scale."""
        if self.scale is None or self.scale == 1:
            return method
        return method.model_copy(update={"scale": getattr(method, "scale") * self.scale})  # noqa: B009

    @property
    def label(self) -> str:
        shown = ((axis, getattr(self, axis)) for axis in AXES)
        return ", ".join(
            f"{axis} {'×' * (axis == 'scale')}{value:g}" for axis, value in shown if value is not None
        )

    def edges(self, grids: Grids) -> tuple[str, ...]:
        """The axes on which this setting is at an end of the grid, so that a better one may lie beyond."""
        return tuple(
            axis
            for axis, grid in grids.items()
            if len(grid) > 1 and getattr(self, axis) in (grid[0], grid[-1])
        )


def applicable(
    grids: Mapping[str, Sequence[float] | None], method: Method, parameters: int, *, head_follows: bool
) -> Grids:
    """The grids that mean something to a method whose adapter has so many parameters.

    Some methods have no scale. A trained head alone has none either, and of the rates only its own: that is
    `lr` where it follows the adapter's and no grid of `head_lr` is there to tune it by.
    """
    of_head = head_follows and not grids.get("head_lr")
    without = set() if parameters else {"scale", *([] if of_head else ["lr"])}
    if "scale" not in type(method).model_fields:
        without.add("scale")
    return {axis: grid for axis, grid in grids.items() if grid is not None and axis not in without}


def sample(grids: Grids, count: int, seed: int) -> list[Setting]:
    """`count` different points of the grids, or all of them if there are no more; the same for the same seed.

    They are drawn by Optuna's QMCSampler, a scrambled Sobol' sequence, and snapped to the grids. All are
    known before the first trial starts, so that every method gets the same ones, and their trials can run in
    any order on any number of machines. Even a few of them spread over each axis, where independent draws
    would leave gaps on the learning rate.
    """
    sizes = {axis: len(grid) for axis, grid in grids.items()}
    wanted = min(count, prod(sizes.values()))
    import optuna
    from optuna.distributions import BaseDistribution, IntDistribution

    with warnings.catch_warnings():
        # Optuna calls the sampler experimental. Its interface may change, but not its sequence.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    space: dict[str, BaseDistribution] = {
        axis: IntDistribution(0, size - 1) for axis, size in sizes.items() if size > 1
    }
    # The sampler learns its axes from the first finished trial, so it is given one that is no point.
    study.add_trial(
        optuna.trial.create_trial(
            value=0.0,
            params=dict.fromkeys(space, 0),
            distributions=space,
            state=optuna.trial.TrialState.COMPLETE,
        )
    )
    points: dict[tuple[int, ...], Setting] = {}
    while len(points) < wanted:
        trial = study.ask(space)
        index = {axis: trial.params.get(axis, 0) for axis in sizes}
        study.tell(trial, 0.0)
        setting = Setting.model_validate({axis: grids[axis][i] for axis, i in index.items()})
        points.setdefault(tuple(index.values()), setting)
    return list(points.values())
