"""What is tuned besides ranks: the learning rates of adapter, head and core, and the method's scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm, prod
from random import Random
from typing import Any

from bench.suite.choosing import AXES
from bench.suite.recipe import Recipe
from methods import Method
from methods.validation import Frozen, validate

#: The axes whose values are factors.
RATIOS = ("scale", "core_lr")
#: The axes in the order in which points are made. An axis that some methods lack comes late, so that the
#: others have the same values in all methods.
SHARED_FIRST = ("lr", "head_lr", "scale", "core_lr")

Grids = Mapping[str, Sequence[float]]


class Setting(Frozen):
    """A point of the grids. An axis of None stays as the suite has it."""

    lr: float | None = None
    #: A factor of the scale that the method has in the suite, which by default is the published one.
    scale: float | None = None
    head_lr: float | None = None
    #: The core's rate as a multiple of `lr`.
    core_lr: float | None = None

    def recipe(self, recipe: Recipe, epochs: int | None = None, *, head_follows: bool = False) -> Recipe:
        """The resolved recipe with these rates and, if given, another number of epochs.

        With `head_follows` a head without a rate of its own has the adapter's. Raises UserError for a rate
        below the recipe's floor.
        """
        lr = self.lr or recipe.lr
        update: dict[str, Any] = {
            "lr": lr,
            "head_lr": self.head_lr or (lr if head_follows else recipe.head_lr),
            "core_lr": self.core_lr or recipe.core_lr,
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
            f"{axis} {'×' * (axis in RATIOS)}{value:g}" for axis, value in shown if value is not None
        )

    def edges(self, grids: Grids) -> tuple[str, ...]:
        """The axes on which this setting is at an end of the grid or outside of it, so that a better one may
        lie beyond.
        """
        return tuple(
            axis
            for axis, grid in grids.items()
            if len(grid) > 1 and not grid[0] < getattr(self, axis) < grid[-1]
        )


def applicable(
    grids: Mapping[str, Sequence[float] | None],
    method: Method,
    parameters: int,
    *,
    head_follows: bool,
    has_head: bool = True,
) -> Grids:
    """The grids that mean something to a method whose adapter has so many parameters.

    Some methods have no scale, and most no core. A trained head alone has none either, and of the rates only
    its own: that is `lr` where it follows the adapter's and no grid of `head_lr` is there to tune it by.
    Without `has_head` a model answers by its words, and there is no head whose rate could be tuned. A fitted
    head has no rate.
    """
    if method.fits_head:
        return {}
    of_head = has_head and head_follows and not grids.get("head_lr")
    without = set() if parameters else {"scale", *([] if of_head else ["lr"])}
    if "scale" not in type(method).model_fields:
        without.add("scale")
    if not method.has_core:
        without.add("core_lr")
    if not has_head:
        without.add("head_lr")
    return {axis: grid for axis, grid in grids.items() if grid is not None and axis not in without}


def published(method: Method) -> Setting:
    """The rates and the scale that the method was published with. What its source does not state is None."""
    scale = method.published_scale
    if scale is not None:
        scale /= getattr(method, "scale")  # noqa: B009
    return Setting(
        lr=method.published_lr, scale=scale, head_lr=method.published_head_lr or method.published_lr
    )


def points(grids: Grids, count: int, seed: int, first: Setting) -> list[Setting]:
    """`count` different points of the grids, or all of them if there are no more; the same for the same seed.

    They cover every axis evenly: each of its values stands as often as any other, or once more. Fewer points
    are always the first ones of more. All are known before the first trial starts, so that their trials can
    run in any order on any number of machines. Methods with other axes get the same points without what they
    lack, as far as these still differ.

    What `first` sets is in the first point. Where the grids have it, each axis begins with it, in exchange
    for the value with which it would have begun. Otherwise it makes a point of its own, before those of the
    grids, and the evenness is that of the others.
    """
    orders = {axis: _shuffled(grids[axis], f"{seed} {axis}") for axis in SHARED_FIRST if axis in grids}
    start = {axis: getattr(first, axis) or order[0] for axis, order in orders.items()}
    own: list[Setting] = []
    if all(value in orders[axis] for axis, value in start.items()):
        orders = {axis: _beginning(order, start[axis]) for axis, order in orders.items()}
    else:
        own.append(Setting.model_validate(start))
    size = prod(map(len, orders.values()))
    return own + [_point(orders, number) for number in range(min(count - len(own), size))]


def _shuffled(grid: Sequence[float], seed: str) -> list[float]:
    # Of Python's generator only `random` promises the same numbers in every version.
    draw = Random(seed)
    return sorted(grid, key=lambda _: draw.random())


def _beginning(order: Sequence[float], value: float) -> list[float]:
    """The order with `value` and the first one exchanged."""
    swapped = {value: order[0], order[0]: value}
    return [swapped.get(other, other) for other in order]


def _point(orders: Mapping[str, Sequence[float]], number: int) -> Setting:
    """The point of this number: each axis goes round, and makes no point twice before all were made.

    Where an axis and those before it would meet the same way again, it skips one value. It does so only
    after whole rounds, which keeps it even.
    """
    values: dict[str, float] = {}
    combinations = 1
    for axis, order in orders.items():
        turn = number % (combinations * len(order))
        values[axis] = order[(turn + turn // lcm(combinations, len(order))) % len(order)]
        combinations *= len(order)
    return Setting.model_validate(values)
