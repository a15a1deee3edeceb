"""A log of a run for programs: one line of JSON for each thing that happens, such as a trial's start."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.execution.perform import Event, Report
from bench.plan.rows import Plan
from bench.run import Audience
from bench.search.allocation import RankAllocation
from bench.search.study import RankSearch
from bench.wire.found import AllocationResult, SearchResult
from bench.wire.record import Progress, Record
from bench.wire.words import Phase, Tag
from methods import UserError


class Log(Audience):
    """Adds a line to a file for all that it hears, and passes everything on to another audience.

    Every line has `time` (UTC, ISO 8601) and `event`. Lines are written at once and whole, so that several
    programs may share the file. Where one cannot be written later, on a full disk say, the run goes on.
    Raises UserError for a file that cannot be written to.
    """

    def __init__(self, file: Path | str, others: Audience | None = None) -> None:
        try:
            self._file = open(file, "ab", buffering=0)  # noqa: SIM115 - it stays open as long as the log
        except OSError as error:
            raise UserError(f"--log {file}: cannot write there: {error.strerror}") from error
        self._others = others or Audience()

    def opened(self, sent: int, closed: int) -> None:
        self._write("opened", sent=sent, closed=closed)
        self._others.opened(sent, closed)

    def phase(self, plan: Plan, phase: Phase | None, waiting: int, device: str) -> None:
        trials = len(plan.trials)
        self._write(
            "phase", suite=plan.suite.name, phase=phase, trials=trials, waiting=waiting, device=device
        )
        self._others.phase(plan, phase, waiting, device)

    @contextmanager
    def watch(self, plan: Plan, count: int, slots: int) -> Iterator[Report]:
        names = {
            id_: {"method": row.method, "task": row.task, "backbone": row.backbone, "seed": seed}
            for row in plan.rows
            for seed, id_ in row.trials.items()
        }
        with self._others.watch(plan, count, slots) as pass_on:

            def hear(event: Event) -> None:
                told = _told(event)
                self._write(
                    event.kind, trial=event.trial.id, **names[event.trial.id], worker=event.worker, **told
                )
                pass_on(event)

            yield hear

    def following(self, trials: float) -> None:
        self._others.following(trials)

    def searching(self, search: RankSearch) -> None:
        self._write("searching", name=search.name, points=search.trials, budget=search.budget)
        self._others.searching(search)

    def allocating(self, name: str, allocation: RankAllocation) -> None:
        self._write("allocating", name=name, points=len(allocation.vectors), budget=allocation.budget)
        self._others.allocating(name, allocation)

    def searched(self, found: SearchResult, records: dict[str, Record]) -> None:
        self._write("searched", points=len(found.trials))
        self._others.searched(found, records)

    def allocated(self, found: AllocationResult, records: dict[str, Record]) -> None:
        # A point may be of several modes' sweeps, and of the path.
        tried = {one.ranks for one in (found.heuristic, *found.points, *found.path)}
        self._write("allocated", points=len(tried))
        self._others.allocated(found, records)

    def chosen(self, choices: Sequence[str]) -> None:
        self._write("chosen", choices=list(choices))
        self._others.chosen(choices)

    def note(self, text: str) -> None:
        self._write("note", message=text)
        self._others.note(text)

    def _write(self, event: str, **content: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, **content}, allow_nan=False)
        try:
            self._file.write(f"{line}\n".encode())
        except OSError as error:
            warnings.warn(f"--log {self._file.name}: a line is missing: {error.strerror}", stacklevel=2)


def _told(event: Event) -> dict[str, Any]:
    """What an event says of its trial, as JSON can hold it."""
    if event.progress is not None:
        return _progress(event.progress)
    if event.silence is not None:
        silence = event.silence
        return {
            "seconds": round(silence.seconds, 1),
            "answers": silence.answers,
            "preparing": silence.preparing,
        }
    return _ending(event.ending) if event.ending is not None else {}


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "steps": progress.steps,
        "epoch": progress.epoch,
        "loss": _finite(progress.losses[-1][1] if progress.losses else None),
        "validation_metric": _finite(progress.validation_metric),
        "validation_loss": _finite(progress.validation_loss),
    }


def _ending(ending: Record) -> dict[str, Any]:
    metrics = {name: _finite(value) for name, value in ending.metrics.items()}
    reason = ending.tag(Tag.FAILURE) or None
    return {"failure": reason, "message": ending.tag(Tag.FAILURE_MESSAGE), "metrics": metrics}


def _finite(value: float | None) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if value is not None and math.isfinite(value) else None
