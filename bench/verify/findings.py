"""Findings of a verification: faults, values that cannot be checked, and repeated trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.records.record import Record


@dataclass(frozen=True)
class Fault:
    """A stored value that differs from its recomputation."""

    experiment: str
    #: The trial and run. Empty for a plan and for the cache.
    trial: str
    run: str
    what: str
    stored: str
    recomputed: str


@dataclass(frozen=True)
class Unchecked:
    """A stored value that cannot be checked here."""

    experiment: str
    trial: str
    run: str
    what: str
    why: str


@dataclass(frozen=True)
class Rerun:
    """A trial that was run again, with both scores."""

    experiment: str
    trial: str
    run: str
    #: The trial's name.
    name: str
    #: The two scores. None if one is missing.
    stored: float | None
    score: float | None
    #: The largest allowed difference of the two scores.
    allowed: float
    #: The reason for the allowed difference.
    reason: str


@dataclass
class Examined:
    """Collects the findings of checks about one stored run or about a plan."""

    experiment: str
    record: Record | None = None
    faults: list[Fault] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    #: Whether the trial was packed without its adapter.
    without_adapter: bool = False

    @property
    def _whose(self) -> tuple[str, str, str]:
        record = self.record
        return self.experiment, record.trial_id if record else "", record.run_id if record else ""

    @property
    def ok(self) -> bool:
        return not self.faults and not self.unchecked

    def broken(self, what: str, stored: Any, recomputed: Any) -> None:
        self.faults.append(Fault(*self._whose, what, _shown(stored), _shown(recomputed)))

    def cannot(self, what: str, why: str) -> None:
        self.unchecked.append(Unchecked(*self._whose, what, why))

    def compare(self, what: str, stored: Any, recomputed: Any) -> None:
        if stored != recomputed:
            self.broken(what, stored, recomputed)

    def near(self, what: str, stored: float | None, recomputed: float, allowed: float) -> None:
        """Adds a fault if `stored` is None, or differs by more than `allowed` (NaN always does)."""
        if stored is None or not abs(stored - recomputed) <= allowed:
            self.broken(what, stored, recomputed)


@dataclass(frozen=True)
class Verification:
    """The result of a verification."""

    #: The numbers of finished runs, and of those whose checks were complete and found no fault.
    looked_at: int
    verified: int
    faults: Sequence[Fault]
    unchecked: Sequence[Unchecked]
    reruns: Sequence[Rerun] = ()
    #: The number of cache files read. None if not requested.
    cached_files: int | None = None
    #: Remarks on missing parts, such as the adapters of a pack.
    notes: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether everything could be checked and nothing is broken."""
        return not self.faults and not self.unchecked


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:.9g}" if isinstance(value, float) else str(value)
