"""Points of tuning: choices of the adapter's, head's and core's learning rates, and the method's scale."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import combinations, product
from math import prod
from typing import Any

import numpy as np

from tensorbench.methods import Method
from tensorbench.methods.validation import Frozen, validate
from tensorbench.plan.choosing import AXES
from tensorbench.plan.recipe import Recipe

#: The axes whose values are factors. A value of `scale` multiplies the method's own scale, and a value of
#: `core_lr` multiplies `lr`.
RATIOS = ("scale", "core_lr")

#: The values to try for each axis (see `AXES`). An absent axis keeps the suite's value.
Grids = Mapping[str, Sequence[float]]


class Setting(Frozen):
    """A choice of learning rates and scale, such as a point of tuning. None keeps the suite's value."""

    lr: float | None = None
    #: A factor of the method's scale in the suite (by default the published scale).
    scale: float | None = None
    head_lr: float | None = None
    #: The core's rate as a multiple of `lr`.
    core_lr: float | None = None

    def recipe(self, recipe: Recipe, epochs: int | None = None, *, head_follows: bool = False) -> Recipe:
        """Returns the recipe with these rates and, if given, another number of epochs.

        If this setting has no `head_lr`, the head keeps the recipe's rate or, if `head_follows` is true, gets
        the adapter's rate. Raises UserError for a rate below the recipe's `lr_floor`.
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
        """Returns the method with its scale multiplied by this scale."""
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
        """Returns the axes whose value is the lowest or highest of its grid, or outside the grid.

        On these axes, better values may lie outside the grid. Grids of one value do not count.
        """
        return tuple(
            axis
            for axis, grid in grids.items()
            if len(grid) > 1 and not grid[0] < getattr(self, axis) < grid[-1]
        )


def applicable(
    grids: Grids,
    method: Method,
    parameters: int,
    *,
    head_follows: bool,
    has_head: bool = True,
) -> Grids:
    """Returns the grids that affect a method with this number of adapter parameters.

    A method that fits its head keeps no grid, since it has no learning rate. Any other method keeps these:

    - `lr` if it has adapter parameters. `head_only` has none, and keeps `lr` only if the head takes its rate
      from this grid: `has_head` and `head_follows` are true, and there is no grid of `head_lr`.
    - `scale` if it has adapter parameters and a scale.
    - `head_lr` if `has_head` is true. It is false for a language model that answers in words.
    - `core_lr` if it has a core.

    `head_follows` is true if the suite's recipe gives no learning rate for the head.
    """
    if method.fits_head:
        return {}
    head_uses_lr = has_head and head_follows and not grids.get("head_lr")
    used = {
        "lr": parameters > 0 or head_uses_lr,
        "scale": parameters > 0 and "scale" in type(method).model_fields,
        "head_lr": has_head,
        "core_lr": method.has_core,
    }
    return {axis: grid for axis, grid in grids.items() if used[axis]}


def published(method: Method) -> Setting:
    """Returns a method's published rates, and its published scale as a factor of the method's own scale.

    A value is None if the method's paper does not state it. But if the paper states no rate for the head,
    `head_lr` is the adapter's published rate.
    """
    scale = method.published_scale
    if scale is not None:
        scale /= getattr(method, "scale")  # noqa: B009
    return Setting(
        lr=method.published_lr, scale=scale, head_lr=method.published_head_lr or method.published_lr
    )


def points(grids: Grids, axes: Collection[str], count: int, first: Setting) -> list[Setting]:
    """Returns `count` different points on the grids, or all points if there are fewer.

    The first point is `first`, which need not lie on the grids. If `first` has no value on an axis, the point
    has the middle value of the axis's grid. The other points are those of `design` on all grids, which are
    the same for every method. `axes` names the axes that the method has. All other axes are dropped from the
    points. If this makes points equal, only one of them is kept. A smaller `count` gives the first points of
    a larger `count`.
    """
    kept = [axis for axis in grids if axis in axes]
    sizes = tuple(map(len, grids.values()))
    drawn, available = count, prod(sizes)
    while True:
        cells = design(sizes, min(drawn, available))
        settings = [
            Setting(
                **{axis: grids[axis][place] for axis, place in zip(grids, cell, strict=True) if axis in kept}
            )
            for cell in cells
        ]
        start = settings[0].model_copy(
            update={axis: value for axis, value in first if value and axis in kept}
        )
        different = list(dict.fromkeys([start, *settings]))
        if len(different) >= count or drawn >= available:
            return different[:count]
        drawn *= 2


@cache
def design(sizes: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """Returns the first `count` points of a grid, in an order that covers each pair of axes evenly.

    `sizes` has the number of values on each axis. A point has an index for each axis. The first point is the
    middle of the grid. Every later point is the one that shares the fewest values, and pairs of values, with
    earlier points. Ties go to the point after which the axes are least correlated: for every pair of axes,
    the covariance is raised to the fourth power, and the sum is minimised. The order is deterministic.
    """
    cells = np.array(list(product(*map(range, sizes)))).reshape(prod(sizes), len(sizes))
    deviations = [math.sqrt((size**2 - 1) / 3) or 1.0 for size in sizes]
    levels = (2 * cells - np.array(sizes) + 1) / np.array(deviations)
    products = [levels[:, i] * levels[:, j] for i, j in combinations(range(len(sizes)), 2)]
    covariances = [0.0] * len(products)
    shared = -(cells == np.array(sizes) // 2).all(axis=1).astype(int)
    order: list[tuple[int, ...]] = []
    for _ in range(count):
        candidates = np.flatnonzero(shared == shared.min())
        tilt = np.zeros(len(candidates))
        for covariance, values in zip(covariances, products, strict=True):
            tilt += np.square(np.square(covariance + values[candidates]))
        chosen = candidates[tilt.round(9).argmin()]  # rounded, so that the last bits of floats do not decide
        order.append(tuple(cells[chosen].tolist()))
        covariances = [a + float(b[chosen]) for a, b in zip(covariances, products, strict=True)]
        values_in_common = (cells == cells[chosen]).sum(axis=1)
        shared += values_in_common * (values_in_common + 1) // 2
        shared[chosen] = np.iinfo(shared.dtype).max // 2
    return order
