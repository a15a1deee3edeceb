"""How a trial is run in less memory. Its result is the same but for how sums are rounded, so no id has it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.wire.words import PROVENANCE, Tag
from methods.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from bench.plan.trial import Trial

#: What a run's provenance says where gradient checkpointing was on.
ON = "yes"


@dataclass(frozen=True)
class Saving:
    """What is done to need less memory. By default nothing."""

    #: So many examples of a batch at most go through the backbone at once; their gradients are added up.
    micro_batch: int | None = None
    #: Whether a layer's activations are computed again for its backward, and not kept.
    checkpointing: bool = False
    #: Whether a trial that runs out of memory begins again with micro-batches of half the size.
    shrink: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UserError(f"--micro-batch {self.micro_batch}: accepted are 1 and more")

    def size(self, batch_size: int) -> int:
        """The examples of a batch that are computed at once."""
        return min(self.micro_batch or batch_size, batch_size)

    def smaller(self, batch_size: int) -> Saving | None:
        """What to try when memory ran out; None where nothing is left to try, or nothing was asked for."""
        size = self.size(batch_size)
        return replace(self, micro_batch=size // 2) if self.shrink and size > 1 else None

    def splits(self, trial: Trial) -> bool:
        """Whether batches of the trial are, or may come to be, computed in parts."""
        return self.shrink or self.size(trial.recipe.batch_size) < trial.recipe.batch_size

    def told(self) -> dict[str, str]:
        """As provenance has it: empty where nothing is done."""
        return {
            _key(Tag.MICRO_BATCH): str(self.micro_batch or ""),
            _key(Tag.CHECKPOINTING): ON if self.checkpointing else "",
        }

    @classmethod
    def of(cls, provenance: Mapping[str, str]) -> Saving:
        """How a stored trial was run."""
        size = provenance.get(_key(Tag.MICRO_BATCH), "")
        return cls(
            int(size) if size.isdecimal() and int(size) else None,
            provenance.get(_key(Tag.CHECKPOINTING)) == ON,
        )

    def check(self, trials: Sequence[Trial]) -> None:
        """Raises UserError where a trial's result would not stay what it is."""
        from methods import from_identity

        for trial in trials:
            splits = self.splits(trial)
            if trial.recipe.compile and (splits or self.checkpointing):
                raise UserError(f"{self._options()}: a recipe with compile: true cannot be run so")
            method = from_identity(trial.method)
            if splits and method.shifts_dropout:
                raise UserError(
                    f"{self._options()}: {method.label} would drop other entries ({method.shifts_dropout}); "
                    "without dropout it can be run so"
                )
            if splits and method.depends_on_batch:
                raise UserError(
                    f"{self._options()}: {method.label} would answer otherwise: {method.depends_on_batch}"
                )

    def check_backbone(
        self, name: str, module: nn.Module, example: Mapping[str, Any], device: str, *, splits: bool
    ) -> None:
        """Raises UserError where the backbone cannot be run so with the same result.

        `example` is what `module` is called with; `splits` says whether batches are computed in parts.
        """
        if self.checkpointing and _switch(module.encoder) is None:
            raise UserError(f"--checkpointing: backbone '{name}' has no gradient checkpointing")
        if splits and _draws(module, example, device):
            raise UserError(
                f"{self._options()}: backbone '{name}' has dropout of its own, which would drop other "
                "entries in parts of a batch; accepted are backbones without"
            )

    def _options(self) -> str:
        given = {
            "--micro-batch": self.micro_batch is not None,
            "--checkpointing": self.checkpointing,
            "--shrink-batch": self.shrink,
        }
        return ", ".join(option for option, wanted in given.items() if wanted)


PLAIN = Saving()


def _key(tag: Tag) -> str:
    return tag.removeprefix(PROVENANCE)


def _draws(module: nn.Module, example: Mapping[str, Any], device: str) -> bool:
    """Whether a forward in training draws from torch's stream of the device. Leaves streams as they were."""
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


def _switch(encoder: Any) -> Any:
    """What turns an encoder's gradient checkpointing on (True) and off; None where it has none."""
    if hasattr(encoder, "set_grad_checkpointing"):
        return encoder.set_grad_checkpointing
    if not getattr(encoder, "supports_gradient_checkpointing", False):
        return None

    def switch(on: bool) -> None:
        with warnings.catch_warnings():
            # transformers renamed both within version 5; the old names are there in all of them.
            warnings.simplefilter("ignore", FutureWarning)
            if on:
                encoder.gradient_checkpointing_enable({"use_reentrant": False})
                if hasattr(encoder, "_require_grads_hook"):
                    # For the reentrant form alone: it would make the embeddings' output require a gradient.
                    encoder.disable_input_require_grads()
            else:
                encoder.gradient_checkpointing_disable()

    return switch


@contextmanager
def checkpointed(encoder: Any, wanted: bool) -> Iterator[None]:
    """Inside, the encoder's layers are computed again for their backward."""
    switch = _switch(encoder) if wanted else None
    if switch is None:
        yield
        return
    cached = getattr(getattr(encoder, "config", None), "use_cache", None)
    if cached:
        # Or transformers would say with every forward that it turns this off.
        encoder.config.use_cache = False
    switch(True)
    try:
        yield
    finally:
        switch(False)
        if cached:
            encoder.config.use_cache = True
