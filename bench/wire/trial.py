"""What a trial tells while it runs and leaves when it ends: what training hands to the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.wire.measures import Measure
from bench.wire.text import message, storable
from bench.wire.words import Artifact, Tag

#: How a trial ends. A lost one is not to blame: its worker died, and it may run again.
End = Literal["finished", "failed", "pruned", "lost"]

#: Why a trial has no result.
Failure = Literal["diverged", "out of memory", "timeout", "error", "lost"]


@dataclass
class Progress:
    """What a running trial tells: losses of the latest steps or, after an epoch, the validation metric."""

    step: int
    steps: int
    epoch: int
    #: (step, loss) since the last report.
    losses: list[tuple[int, float]] = field(default_factory=list)
    validation_metric: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class Ending:
    """A trial that has ended. `files` are its artifacts by name."""

    status: End
    metrics: Mapping[Measure, float] = field(default_factory=dict)
    files: Mapping[Artifact, bytes] = field(default_factory=dict)
    tags: Mapping[Tag, str] = field(default_factory=dict)
    reason: Failure | None = None
    message: str = ""

    @property
    def failure(self) -> str:
        return f"{self.reason}: {self.message}" if self.reason else ""


def failed(reason: Failure, said: str, trace: str) -> Ending:
    files = {Artifact.TRACEBACK: storable(trace).encode()}
    return Ending("failed", files=files, reason=reason, message=message(said))


def lost(said: str) -> Ending:
    return Ending("lost", reason="lost", message=message(said))
