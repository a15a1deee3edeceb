"""Options that save memory. They change results only by rounding, so trial ids do not contain them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tensorbench.methods.errors import UserError
from tensorbench.records.words import PROVENANCE, Tag

if TYPE_CHECKING:
    from torch import nn

    from tensorbench.plan.trial import Trial

#: The value of `Tag.CHECKPOINTING` in the provenance of a run with gradient checkpointing.
ON = "yes"


@dataclass(frozen=True)
class Saving:
    """Options that save memory. By default all are off."""

    #: The largest number of examples in one forward pass of training. Gradients of a batch are accumulated.
    #: Evaluation takes twice as many examples. None means the batch size.
    micro_batch: int | None = None
    #: Whether activations are recomputed in the backward pass.
    checkpointing: bool = False
    #: Whether a trial that ran out of memory starts again with half the micro-batch.
    shrink: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UserError(f"--micro-batch {self.micro_batch}: accepted are 1 and more")

    def size(self, batch_size: int) -> int:
        """Returns the number of examples in one forward pass of training, given the batch size."""
        return min(self.micro_batch or batch_size, batch_size)

    def smaller(self, batch_size: int) -> Saving | None:
        """Returns the options to try next after memory ran out, with half the examples per forward pass.

        None if `shrink` is off, or if there is already only one example per forward pass.
        """
        size = self.size(batch_size)
        return replace(self, micro_batch=size // 2) if self.shrink and size > 1 else None

    def splits(self, trial: Trial) -> bool:
        """Whether batches of the trial are computed in parts, or may be if memory runs out."""
        return self.shrink or self.size(trial.recipe.batch_size) < trial.recipe.batch_size

    def provenance(self) -> dict[str, str]:
        """Returns the options as entries of a run's provenance."""
        return {
            _key(Tag.MICRO_BATCH): str(self.micro_batch or ""),
            _key(Tag.CHECKPOINTING): ON if self.checkpointing else "",
        }

    @classmethod
    def of(cls, provenance: Mapping[str, str]) -> Saving:
        """Reads `micro_batch` and `checkpointing` of a stored run from its provenance."""
        size = provenance.get(_key(Tag.MICRO_BATCH), "")
        return cls(
            # Python reads no number of more than 4300 digits, which a tag of a pack may have.
            int(size) or None if size.isdecimal() and len(size) < 10 else None,
            provenance.get(_key(Tag.CHECKPOINTING)) == ON,
        )

    def check(self, trials: Sequence[Trial]) -> None:
        """Raises UserError if a trial cannot use the options, or if they would change its result."""
        for trial in trials:
            splits = self.splits(trial)
            if trial.recipe.compile and (splits or self.checkpointing):
                raise UserError(f"{self.options()}: a recipe with compile: true cannot run this way")
            method = trial.build_method()
            if splits and method.shifts_dropout:
                raise UserError(
                    f"{self.options()}: {method.label} would drop other entries ({method.shifts_dropout}); "
                    "without dropout it can be run so"
                )
            if splits and method.depends_on_batch:
                raise UserError(
                    f"{self.options()}: {method.label} would give other outputs if batches were split: "
                    f"{method.depends_on_batch}"
                )

    def options(self) -> str:
        """Returns the options of the command line that are on, for messages."""
        switches = {
            "--micro-batch": self.micro_batch is not None,
            "--checkpointing": self.checkpointing,
            "--shrink-batch": self.shrink,
        }
        return ", ".join(option for option, enabled in switches.items() if enabled)


PLAIN = Saving()


def _key(tag: Tag) -> str:
    return tag.removeprefix(PROVENANCE)


def draws(module: nn.Module, example: Mapping[str, Any], device: str) -> bool:
    """Whether a forward pass in training mode draws random numbers on the device.

    Torch's generator is restored afterwards.
    """
    import torch

    of_gpu = device.startswith("cuda")
    with torch.random.fork_rng([device] if of_gpu else []), torch.no_grad():

        def state() -> torch.Tensor:
            return torch.cuda.get_rng_state(device) if of_gpu else torch.get_rng_state()

        before = state()
        try:
            module.train()(**example)
        finally:
            module.eval()
        return not torch.equal(state(), before)


def switch_of(encoder: Any) -> Any:
    """Returns a function that turns gradient checkpointing on or off. None if the encoder has none."""
    if hasattr(encoder, "set_grad_checkpointing"):
        return encoder.set_grad_checkpointing
    if not getattr(encoder, "supports_gradient_checkpointing", False):
        return None

    def switch(on: bool) -> None:
        with warnings.catch_warnings():
            # transformers 5 renamed both during its life, but all versions accept the old names.
            warnings.simplefilter("ignore", FutureWarning)
            if on:
                encoder.gradient_checkpointing_enable({"use_reentrant": False})
                # Only the reentrant form needs this: it makes the embeddings' output require a gradient.
                encoder.disable_input_require_grads()
            else:
                encoder.gradient_checkpointing_disable()

    return switch


@contextmanager
def checkpointed(encoder: Any, enabled: bool) -> Iterator[None]:
    """A context in which the backward pass recomputes the encoder's activations, if `enabled`.

    It has no effect on an encoder without gradient checkpointing.
    """
    switch = switch_of(encoder) if enabled else None
    if switch is None:
        yield
        return
    cached = getattr(getattr(encoder, "config", None), "use_cache", None)
    if cached:
        # Otherwise transformers warns in every forward that it turns this off.
        encoder.config.use_cache = False
    switch(True)
    try:
        yield
    finally:
        switch(False)
        if cached:
            encoder.config.use_cache = True
