"""The findings of a verification: faults, values that cannot be checked, and trials that were run again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensorbench.records.record import Record


@dataclass(frozen=True)
class Fault:
    """A stored value that differs from the recomputed value."""

    experiment: str
    #: The ids of trial and run. Empty if the value is in a plan or in the cache.
    trial: str
    run: str
    what: str
    stored: str
    recomputed: str


@dataclass(frozen=True)
class Unchecked:
    """A stored value that cannot be checked on this machine or at all. `why` gives the reason."""

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
    #: The stored and the new score. None if the run has no score.
    stored: float | None
    score: float | None
    #: The largest allowed difference between the two scores.
    allowed: float
    #: The reason why this difference is allowed.
    reason: str
    #: Whether the scores differ and are not compared, because rounding may decide them on other hardware.
    incomparable: bool = False


@dataclass
class Examined:
    """Collects the findings about one stored run, about a plan, or about the cache."""

    experiment: str
    record: Record | None = None
    faults: list[Fault] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    #: Remarks that are neither faults nor values that cannot be checked.
    notes: list[str] = field(default_factory=list)
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
        """Adds a fault if `stored` is None or NaN, or differs from `recomputed` by more than `allowed`."""
        if stored is None or not abs(stored - recomputed) <= allowed:
            self.broken(what, stored, recomputed)


@dataclass(frozen=True)
class Verification:
    """The result of a verification."""

    #: The number of finished runs, and the number of runs that were checked completely without a fault.
    looked_at: int
    verified: int
    faults: Sequence[Fault]
    unchecked: Sequence[Unchecked]
    reruns: Sequence[Rerun] = ()
    #: The number of files in the caches that were read. None if the caches were not checked.
    cached_files: int | None = None
    #: Remarks on things that are missing without being faults, such as the adapters of a pack.
    notes: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether everything could be checked and nothing is broken."""
        return not self.faults and not self.unchecked

    def sentences(self) -> Iterator[str]:
        """Yields a sentence for each finding, and a summary."""
        for fault in self.faults:
            values = f"stored {fault.stored}, recomputed {fault.recomputed}"
            yield f"✗ broken  {_whose(fault)}: {fault.what}: {values}"
        for item in self.unchecked:
            yield f"not checkable  {_whose(item)}: {item.what}: {item.why}"
        for rerun in self.reruns:
            stored, now = ("no score" if s is None else f"{s:.6f}" for s in (rerun.stored, rerun.score))
            said = "not compared" if rerun.incomparable else f"{rerun.allowed:g} allowed"
            yield (
                f"run again  {rerun.experiment} · trial {rerun.trial} ({rerun.name}): stored {stored}, now "
                f"{now}; {said}, since {rerun.reason}"
            )
        yield from (f"note: {note}" for note in self.notes)
        if self.cached_files is not None:
            yield f"{self.cached_files:,} files of the caches were read."
        broken = {fault.run for fault in self.faults if fault.run}
        unchecked = {item.run for item in self.unchecked if item.run} - broken
        of_none = sum(not fault.run for fault in self.faults)
        unread = sum(not item.run for item in self.unchecked)
        yield (
            f"{self.looked_at:,} finished trial{'s' * (self.looked_at != 1)}: {self.verified:,} verified, "
            f"{len(broken):,} broken, {len(unchecked):,} not checkable"
            + f"; {of_none:,} fault{'s' * (of_none != 1)} in plans or caches" * bool(of_none)
            + f"; {unread:,} part{'s' * (unread != 1)} of plans not checkable" * bool(unread)
            + "."
        )


def _whose(item: Fault | Unchecked) -> str:
    return item.experiment + f" · trial {item.trial}, run {item.run}" * bool(item.trial)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:.9g}" if isinstance(value, float) else str(value)
