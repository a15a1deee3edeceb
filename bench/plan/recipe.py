"""The recipe of a trial's training, and settings, whose rates and scale replace the suite's."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from tensorbench.methods import Method, UserError
from tensorbench.methods.validation import Frozen, refuse_repeats, validate

#: The hyper-parameters besides ranks that can be tuned, called axes. They are the learning rate of the
#: adapter, the scale of the method, the learning rate of the head, and the core's rate as a factor of `lr`.
AXES = ("lr", "scale", "head_lr", "core_lr")

#: The axes whose values are factors. A value of `scale` multiplies the method's own scale, and a value of
#: `core_lr` multiplies `lr`.
RATIOS = ("scale", "core_lr")

#: Bounds against typing errors such as an extra zero.
MAX_EPOCHS, MAX_STEPS = 100_000, 10**9

#: The largest learning rate. float32 ends at 3.4e38.
MAX_RATE = 1e38

Epochs = Annotated[int, Field(gt=0, le=MAX_EPOCHS)]

Augmentation = Literal["colour_jitter", "flip", "crop"]

#: The fields that can change a result even if no step is trained, because they change the forward pass in
#: evaluation mode.
OF_FORWARD = frozenset({"batch_size", "precision", "compile", "deterministic"})


class Recipe(Frozen):
    """The training of a trial: AdamW with a cosine schedule.

    All methods have the same recipe, except for overrides in their rows of the suite.
    """

    #: Peak learning rate of the adapter.
    lr: PositiveFloat = 5e-4
    #: Peak learning rate of the head. None: equal to `lr`.
    head_lr: PositiveFloat | None = None
    #: The core's learning rate as a multiple of `lr`. No effect on methods without a core.
    core_lr: PositiveFloat = 1.0
    #: Weight decay of the head.
    weight_decay: float = Field(0.01, ge=0)
    #: Weight decay of the adapter. 0 is the only value that treats all methods alike: any other shrinks ΔW
    #: faster the more factors a method has, and pulls gates and magnitudes towards 0 instead of towards their
    #: initial values.
    adapter_weight_decay: float = Field(0.0, ge=0)
    batch_size: PositiveInt = 64
    #: Passes over the training split. A recipe has either `epochs` or `steps`. Default: 10 epochs.
    epochs: Epochs | None = None
    #: The number of optimizer steps.
    steps: Annotated[int, Field(gt=0, le=MAX_STEPS)] | None = None
    #: The fraction of the steps in which the learning rate rises linearly from zero.
    warmup: float = Field(0.1, ge=0, lt=1)
    #: The learning rate at which the cosine ends.
    lr_floor: float = Field(1e-6, ge=0)
    #: Adam's epsilon, which is added to the root of the second moment. Where gradients are not much larger,
    #: steps are shorter than the learning rate.
    epsilon: float = 1e-8
    #: The norm to which the joint gradient of adapter and head is clipped. None: no clipping.
    clip: PositiveFloat | None = None
    #: The rule that selects the state to test: the lowest validation loss, the best validation score, or the
    #: last epoch. On a tie the earliest state is tested.
    select: Literal["loss", "score", "last"] = "loss"
    #: The precision of matrix products and convolutions. `fp32` computes them in full float32. `tf32` rounds
    #: the factors to 11 significant bits. `bf16` is autocast. `auto` is bf16 on a GPU that supports it, and
    #: on any device for a bfloat16 backbone. Otherwise it is fp32.
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    #: Augmentations of training images, in order (see `tensorbench.training.augmentation`).
    augmentation: tuple[Augmentation, ...] = ()
    #: Whether the encoder is compiled by `torch.compile`, in training and in evaluation.
    compile: bool = False
    #: Whether to use deterministic algorithms only. A trial with an operation that has no deterministic
    #: algorithm fails.
    deterministic: bool = False

    @field_validator("epsilon")
    @classmethod
    def _within_float32(cls, epsilon: float) -> float:
        # An epsilon that float32 rounds to 0 makes the step of a parameter without gradient 0/0.
        if not 1e-30 <= epsilon <= 1:
            raise ValueError("should be from 1e-30 to 1")
        return epsilon

    @field_validator("augmentation")
    @classmethod
    def _each_once(cls, augmentation: tuple[Augmentation, ...]) -> tuple[Augmentation, ...]:
        refuse_repeats(augmentation)
        return augmentation

    @model_validator(mode="after")
    def _length_and_floor(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        peaks = (("lr", self.lr), ("head_lr", self.head_lr), ("lr · core_lr", self.lr * self.core_lr))
        for name, peak in peaks:
            if peak is not None and peak < self.lr_floor:
                raise ValueError(f"{name} {peak:g} is below lr_floor {self.lr_floor:g}")
            if peak is not None and peak > MAX_RATE:
                raise ValueError(f"{name} {peak:g} is above {MAX_RATE:g}, the largest rate")
        return self

    def step_count(self, examples: int) -> int:
        """Returns the number of optimizer steps for a number of training examples.

        The recipe must be resolved.
        """
        return self.steps or math.ceil(examples / self.batch_size) * (self.epochs or 0)

    def check_batch(self, task: str, available: int) -> None:
        """Raises UserError for a batch larger than `available`, the most that the training split may have."""
        if self.batch_size > available:
            raise UserError(
                f"training of task '{task}': batch_size {self.batch_size} is larger than the train split, "
                f"which has at most {available} examples"
            )

    @staticmethod
    def idle(*, trains_adapter: bool, trains_head: bool) -> tuple[str, ...]:
        """Returns the sorted names of fields that cannot change a result.

        `trains_adapter` and `trains_head` say whether optimizer steps train the adapter and the head. If they
        train neither, as with a fitted head, only the fields in `OF_FORWARD` matter.
        """
        if not (trains_adapter or trains_head):
            return tuple(sorted(Recipe.model_fields.keys() - OF_FORWARD))
        of_adapter = () if trains_adapter else ("adapter_weight_decay", "core_lr", "lr")
        return of_adapter if trains_head else ("head_lr", "weight_decay")

    def resolved(self, device: str, weights: str = "float32") -> Recipe:
        """Returns the recipe with values for the defaults that depend on other fields or on the device.

        Trials with equal training therefore have equal ids, whether their recipes state the defaults or not.
        `weights` is the dtype of the backbone's weights. Raises UserError for a precision that this dtype or
        the device does not support.
        """
        # Imported late: reports read recipes, and torch takes a second.
        from tensorbench.machine.precision import computes_bf16, unsupported

        precision = self.precision
        rounded = weights == "bfloat16"
        if precision == "auto":
            on_gpu = device.startswith("cuda") and computes_bf16(device)
            precision = "bf16" if on_gpu or rounded else "fp32"
        if precision != "bf16" and rounded:
            raise UserError(
                f"precision: {precision} cannot be had of a backbone in bfloat16; accepted: bf16 and auto"
            )
        if not rounded and (reason := unsupported(precision, device)):
            raise UserError(reason)
        return self.model_copy(
            update={
                "head_lr": self.head_lr or self.lr,
                "epochs": self.epochs or (None if self.steps else 10),
                "precision": precision,
            }
        )


class Setting(Frozen):
    """Learning rates and a scale that replace the suite's, as in a search. None keeps the suite's value."""

    lr: float | None = None
    #: The factor by which the method's scale is multiplied. The method's scale is the suite's or, by default,
    #: the published one.
    scale: float | None = None
    head_lr: float | None = None
    #: The core's rate as a multiple of `lr`.
    core_lr: float | None = None

    def recipe(self, recipe: Recipe, epochs: int | None = None, *, head_follows: bool = False) -> Recipe:
        """Returns the recipe with this setting's rates and, if given, with another number of epochs.

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
        """Returns the method with its scale multiplied by the setting's."""
        if self.scale is None or self.scale == 1:
            return method
        return method.model_copy(update={"scale": getattr(method, "scale") * self.scale})  # noqa: B009

    @property
    def label(self) -> str:
        shown = ((axis, getattr(self, axis)) for axis in AXES)
        return ", ".join(
            f"{axis} {'×' * (axis in RATIOS)}{value:g}" for axis, value in shown if value is not None
        )
