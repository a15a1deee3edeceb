"""What is tuned beside ranks: the adapter's learning rate, the method's scale, the head's learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from bench.suite.recipe import Recipe
from methods import Method
from methods.validation import Frozen, validate

#: The axes, in their order, under the names of the suite's grids.
AXES = ("lr", "scale", "head_lr")

Grids = Mapping[str, Sequence[float]]


class Setting(Frozen):
    """A point of the grids. None: as the suite has it."""

    lr: float | None = None
    #: Multiplies the scale that the method has in the suite, which by default is the published one.
    scale: float | None = None
    head_lr: float | None = None

    def recipe(self, recipe: Recipe, epochs: int | None = None, *, head_follows: bool = False) -> Recipe:
        """The resolved recipe with these rates, and with another number of epochs if given.

        `head_follows`: without a rate of its own the head has the adapter's. Raises UserError for a rate
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
        """The axes on which this is the smallest or the largest of several values."""
        return tuple(
            axis
            for axis, grid in grids.items()
            if len(grid) > 1 and getattr(self, axis) in (grid[0], grid[-1])
        )


def applicable(
    grids: Mapping[str, Sequence[float] | None], method: Method, parameters: int, *, head_follows: bool
) -> Grids:
    """The grids that mean something to the method: a trained head alone has no scale and only its own rate to
    tune, which is `lr` where it follows that and no `head_lr` is tuned; and some methods have no scale."""
    of_head = head_follows and not grids.get("head_lr")
    without = set() if parameters else {"scale", *([] if of_head else ["lr"])}
    if "scale" not in type(method).model_fields:
        without.add("scale")
    return {axis: grid for axis, grid in grids.items() if grid is not None and axis not in without}


def sample(grids: Grids, count: int, seed: int) -> list[Setting]:
    """`count` different points of the grids, all of them if there are no more, the same for the same seed.

    Drawn by Optuna's QMCSampler (a scrambled Sobol' sequence, snapped to the grids): all points are known
    before the first trial starts, so that trials can run in any order, on any number of machines, and
    every method gets the same ones; and even a few of them spread over each axis, where independent draws
    would leave gaps on the learning rate.
    """
    sizes = {axis: len(grid) for axis, grid in grids.items()}
    wanted = min(count, prod(sizes.values()))
    import optuna
    from optuna.distributions import BaseDistribution, IntDistribution

    with warnings.catch_warnings():
        # Optuna calls the sampler experimental: its interface may change, not its sequence.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    space: dict[str, BaseDistribution] = {
        axis: IntDistribution(0, size - 1) for axis, size in sizes.items() if size > 1
    }
    # The sampler learns its axes from a finished trial, which it draws at random.
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
