"""How a trial is trained."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from methods import UserError
from methods.validation import Frozen, Later

Augmentation = Literal["colour_jitter", "flip", "crop"]


class Recipe(Frozen):
    """How a trial is trained. AdamW, cosine schedule; the same for all methods unless overridden."""

    #: Peak learning rate of the adapter.
    lr: PositiveFloat = 5e-4
    #: Peak learning rate of the head; None: as `lr`.
    head_lr: PositiveFloat | None = None
    weight_decay: float = Field(0.01, ge=0)
    batch_size: PositiveInt = 64
    #: Passes over the training split. Give this or `steps`.
    epochs: PositiveInt | None = None
    #: Optimizer steps.
    steps: PositiveInt | None = None
    #: Share of the steps in which the rate rises linearly from zero.
    warmup: float = Field(0.1, ge=0, lt=1)
    #: What the cosine ends at.
    lr_floor: float = Field(1e-6, ge=0)
    #: Largest gradient norm over adapter and head; None: no clipping.
    clip: PositiveFloat | None = None
    #: Which state is tested: the one with the best validation metric (the earliest of equals), or the last.
    select: Literal["validation", "last"] = "validation"
    #: `auto` is bf16 autocast on a GPU and fp32 on a CPU.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    #: What happens to training images, in this order: see `bench.training.augmentation`.
    augmentation: Annotated[tuple[Augmentation, ...], Later()] = ()
    #: The encoder goes through `torch.compile`, in training and evaluation.
    compile: Annotated[bool, Later()] = False
    #: Only algorithms of torch that give the same bits every time; an operation without one is an error.
    deterministic: Annotated[bool, Later()] = False

    @model_validator(mode="after")
    def _length_and_floor(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        for name, peak in (("lr", self.lr), ("head_lr", self.head_lr)):
            if peak is not None and peak < self.lr_floor:
                raise ValueError(f"{name} {peak:g} is below lr_floor {self.lr_floor:g}")
        return self

    def step_count(self, examples: int) -> int:
        """Optimizer steps on so many training examples."""
        return self.steps or math.ceil(examples / self.batch_size) * (self.epochs or 0)

    def check_batch(self, task: str, available: int) -> None:
        """Raises UserError for a batch that is larger than the train split."""
        if self.batch_size > available:
            raise UserError(
                f"training of task '{task}': batch_size {self.batch_size} is larger than the train split, "
                f"which has {available} examples"
            )

    def resolved(self, device: str) -> Recipe:
        """Without defaults that depend on anything: what a trial's id can hash."""
        precision = self.precision
        if precision == "auto":
            precision = "bf16" if device.startswith("cuda") else "fp32"
        return self.model_copy(
            update={
                "head_lr": self.head_lr or self.lr,
                "epochs": self.epochs or (None if self.steps else 10),
                "precision": precision,
            }
        )
