"""Choices of the adapter's, head's and core's learning rates, and of the method's scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    """A choice of learning rates and scale, such as a point of a search. None keeps the suite's value."""

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
