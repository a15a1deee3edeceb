"""Drives trials through an executor into the store: claims, starts, results, losses, outages.

Only the driver writes to the store; an executor runs trials and reports events. So all executors give the
same guarantees, and workers need neither the store nor its address.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

from bench.execution.estimate import longest_first
from bench.execution.executor import Executor
from bench.execution.perform import Event
from bench.execution.session import CLOSING, STRIKES, Session, put_aside, suite_run, within
from bench.execution.watch import Limits
from bench.metrics import METRICS
from bench.plan.rows import Plan, Row
from bench.plan.trial import Trial
from bench.records.origin import Start
from bench.records.record import Record, latest
from bench.records.words import Status, Tag
from bench.store.addresses import shown_uri
from bench.store.connect import StoreError, StoreFailedError, StoreRefusedError
from bench.store.outbox import Outbox
from bench.store.store import Store
from bench.store.writer import TrialRun, begin_trial
from bench.training.seeding import stream_seeds

Answer = TypeVar("Answer")

#: Seconds between two reads of other drivers' claims, and between two calls to an unreachable store.
LOOK = 2.0

#: Seconds by which clocks of machines may differ before a driver claims trials that another one settled.
SKEW = 10.0

#: Seconds that an idle driver waits for a server that does not answer, and for a SQLite file that cannot be
#: used, for instance because another process has locked it.
PATIENCE, FILE_PATIENCE = 15 * 60.0, 60.0

#: Automatic further attempts at a trial that was lost with its worker or node. Failures of the trial itself,
#: including `out of memory`, would recur and are retried on request only.
TIMES = 2
#: Seconds before the first further attempt, and the factor by which each delay exceeds the previous one.
WAIT, GROWTH = 2.0, 10.0


def patiently(store: Store, ask: Callable[[], Answer]) -> Answer:
    """Calls `ask`, which reads the store. Repeats it in an outage of the store until it succeeds.

    Raises StoreError if the outage lasts too long, and at once if the store refuses the request.
    """
    give_up = time.monotonic() + _patience(store)
    while True:
        try:
            return ask()
        except StoreError as error:
            if isinstance(error, StoreRefusedError) or time.monotonic() > give_up:
                raise
        time.sleep(LOOK)


def _patience(store: Store) -> float:
    return FILE_PATIENCE if store.local else PATIENCE


def failures(records: Iterable[Record]) -> dict[str, str]:
    """The run id of each failed trial, by trial id."""
    return {id_: record.run_id for id_, record in latest(records).items() if record.status == Status.FAILED}


def pending(plan: Plan, records: Iterable[Record]) -> list[Trial]:
    """The plan's trials without a result, in the plan's order. A failure counts as a result."""
    settled = {id_ for id_, record in latest(records).items() if record.decided}
    return [trial for trial in plan.trials if trial.id not in settled]


def execute(
    plan: Plan,
    trials: list[Trial],
    session: Session,
    executor: Executor,
    notify: Callable[[Event], None],
    *,
    parent: str | None = None,
    tags: Mapping[Tag, str] = {},
    retried: Mapping[str, str] = {},
    records: Iterable[Record] | None = None,
) -> None:
    """Runs and stores the trials. Returns when all are settled, by this driver or another.

    `plan` has the rows of the trials, and `records` are those of the store, read here if None. Runs are
    nested under the run `parent`, by default the suite's, and get `tags`. `retried` maps trial ids to runs
    whose results do not count, such as failures to retry. `notify` is called with every event, and may raise
    Pruned on a progress event. An interrupt ends the running trials and marks their runs as killed. Raises
    StoreError if an outage of the store does not end; records of trials that ended meanwhile are then in the
    outbox.
    """
    with nullcontext(parent) if parent else suite_run(session, plan) as run_id:
        records = session.store.records() if records is None else list(records)
        _Driving(plan, trials, session, executor, notify, run_id, tags, retried, records).run()


class Retries:
    """The lost trials that one driver retries, with the times of their next attempts."""

    def __init__(self) -> None:
        self._lost: Counter[str] = Counter()
        #: The earliest time of each trial's next attempt (monotonic).
        self._due: dict[str, float] = {}

    def another(self, trial: str) -> bool:
        """Counts a loss of the trial. Returns whether it is retried (once it is `due`)."""
        self._lost[trial] += 1
        if self._lost[trial] > TIMES:
            return False
        self._due[trial] = time.monotonic() + WAIT * GROWTH ** (self._lost[trial] - 1)
        return True

    def due(self, trial: str) -> bool:
        """Whether a trial may run now."""
        return time.monotonic() >= self._due.get(trial, 0.0)


class _Driving:
    def __init__(
        self,
        plan: Plan,
        trials: list[Trial],
        session: Session,
        executor: Executor,
        notify: Callable[[Event], None],
        parent: str,
        tags: Mapping[Tag, str],
        retried: Mapping[str, str],
        records: Sequence[Record],
    ) -> None:
        self.plan, self.store, self.claims = plan, session.store, session.claims
        self.executor, self.notify = executor, notify
        self.parent, self.tags = parent, {**tags, Tag.DRIVER: session.claims.driver}
        self.retried = retried
        #: The rows of each trial, in the plan's order.
        self.rows: dict[str, list[Row]] = {trial.id: [] for trial in trials}
        for row in plan.rows:
            for id_ in dict.fromkeys(row.trials.values()):
                if id_ in self.rows:
                    self.rows[id_].append(row)
        # A single worker keeps the plan's order (by seed), so that a stopped run has compared all methods.
        self.queue = longest_first(plan, trials, records) if executor.slots > 1 else list(trials)
        self.limits = Limits(plan.suite.trial_timeout, plan, records)
        self.running: dict[str, TrialRun] = {}
        #: Ended trials whose records are still in the outbox, or whose claims are not settled.
        self.unsent: dict[str, TrialRun] = {}
        self.retries = Retries()
        #: How often a reachable store has failed to take a run's record, by run id.
        self.strikes: Counter[str] = Counter()
        #: The monotonic time of the last read of other drivers' claims.
        self.looked = -LOOK
        #: The time of the last read of other drivers' results, in seconds since the epoch.
        self.refreshed = max((record.ended or 0 for record in records), default=0) / 1000
        #: The monotonic time at which the current outage began. None without an outage.
        self.away_since: float | None = None
        #: The error with which the outage began.
        self.why = ""

    def run(self) -> None:
        try:
            while self.queue or self.running or self.unsent:
                if self.store.online and self._caught_up():
                    self._fill()
                if self.running:
                    self.executor.step(self._receive)
                elif self.queue or self.unsent:
                    self._wait()
        except BaseException:
            self.executor.stop()
            if not within(CLOSING, self._close):
                self.store.online = False
            raise

    def _close(self) -> None:
        for run in self.running.values():
            # A record on disk will be sent, now or at the next start.
            self._write(run.flush if run.ended else run.kill)

    def _write(self, write: Callable[[], object]) -> bool:
        """Writes to the store unless it is unreachable. Returns whether the write succeeded."""
        if not self.store.online:
            return False
        try:
            write()
        except StoreRefusedError:
            raise
        except StoreError as error:
            self._away(error)
            return False
        return True

    def _away(self, error: StoreError) -> None:
        self.store.online, self.why = False, str(error)
        self.away_since = self.away_since or time.monotonic()

    def _caught_up(self) -> bool:
        """Sends the waiting records. Returns whether none is left."""
        for trial, run in list(self.unsent.items()):
            if not self._deliver(run, run.flush):
                return False
            # A lost trial keeps its claim until its next attempt.
            waits = any(waiting.id == trial for waiting in self.queue)
            if not waits and not self._write(partial(self.claims.settle, trial)):
                return False
            del self.unsent[trial]
        if not self.queue:
            # If there is nothing to claim, only this call shows that the store is reachable again.
            self.away_since = None
        return True

    def _tell(self, write: Callable[[], object]) -> None:
        """Calls `write`, which sends news of a running trial. Unsent news is kept for later.

        If the store refuses the write, for instance to a deleted run, it will also refuse the trial's record,
        where the error is handled.
        """
        try:
            write()
        except StoreError as error:
            if not isinstance(error, StoreRefusedError):
                self._away(error)

    def _deliver(self, run: TrialRun, send: Callable[[], bool]) -> bool:
        """Sends a record by `send`. Returns False if it has to wait.

        A record refused, or failing repeatedly, is put aside. Raises StoreError if a record could not even
        be kept on disk.
        """
        try:
            return send()
        except StoreError as error:
            if not run.ended:
                # The record could not be written to this machine's disk either.
                raise
            self.strikes[run.run_id] += isinstance(error, StoreFailedError)
            if isinstance(error, StoreRefusedError) or self.strikes[run.run_id] == STRIKES:
                put_aside(error, run.put_aside())
            else:
                self._away(error)
                return False
        return True

    def _fill(self) -> None:
        """Claims and submits trials while there are free slots."""
        if not (self.queue and self.executor.free) or time.monotonic() < self.looked + LOOK:
            return
        try:
            # Read claims first: a driver gives its first sign of life before it claims.
            taken, living = self.claims.taken(), self.claims.living()
            if len(living) > 1:
                self._drop_settled(taken)
            for trial in list(self.queue):
                if not self.executor.free:
                    return
                if self.retries.due(trial.id) and self.claims.take(trial.id, taken, living):
                    self._begin(trial)
                    if taken.get(trial.id, (0, self.claims.driver))[1] != self.claims.driver:
                        self.claims.close_stale()
            # The rest of the queue is run by other drivers, or not yet due.
            self.looked, self.away_since = time.monotonic(), None
        except StoreRefusedError:
            raise
        except StoreError as error:
            self._away(error)

    def _drop_settled(self, taken: Mapping[str, tuple[int, str]]) -> None:
        """Drops queued trials that other drivers have settled recently, without claiming each of them.

        If clocks differ, a settled trial may stay in the queue; claiming it shows that it is settled.
        """
        now = time.time()
        if now < self.refreshed + LOOK:
            return
        ended = self.store.ended_since(max(0, int(1000 * (self.refreshed - SKEW))))
        self.refreshed = now
        settled = {record.trial_id for record in ended if self._settles(record)}
        own = {trial for trial, (_, driver) in taken.items() if driver == self.claims.driver}
        dropped = [trial for trial in self.queue if trial.id in settled - own]
        self.queue = [trial for trial in self.queue if trial.id not in settled - own]
        for trial in dropped:
            self.notify(Event(trial, "elsewhere"))

    def _settles(self, record: Record) -> bool:
        """Whether a record is the result of its trial: finished or failed, and not to be retried."""
        return record.decided and record.run_id != self.retried.get(record.trial_id)

    def _begin(self, trial: Trial) -> None:
        record = latest(self.store.records(trial_id=trial.id)).get(trial.id)
        if record and self._settles(record):
            # Another driver settled it after this queue was made.
            self.claims.settle(trial.id)
            self.queue.remove(trial)
            self.notify(Event(trial, "elsewhere"))
            return
        task = self.rows[trial.id][0].definition
        tags = dict(self.tags)
        if task.unit and METRICS.get(task.metric).in_units:
            tags[Tag.UNIT] = task.unit
        run = begin_trial(self.store, trial, self.rows[trial.id], task.metric, self.parent, tags=tags)
        self.running[trial.id] = run
        self.queue.remove(trial)
        self.executor.submit(trial, self.limits.seconds(trial))

    def _receive(self, event: Event) -> None:
        """Stores what an event reports, and passes the event to `notify`."""
        trial, run = event.trial, self.running[event.trial.id]
        if event.provenance is not None:
            config = trial.model_dump(mode="json", exclude_none=True)
            self._tell(partial(run.start, config, event.provenance, self._start(event)))
        elif event.progress is not None:
            self._tell(partial(run.progress, event.progress))
        elif event.ending is not None:
            self._end(trial, run, event.ending)
        self.notify(event)

    def _start(self, event: Event) -> Start:
        """The origin of a starting trial: texts of suite and lock, library versions, seeds of streams."""
        suite, trial = self.plan.suite, event.trial
        split = trial.task.split_seed(trial.seed)
        return Start(
            suite=suite.source,
            lock=suite.lock_source,
            libraries=event.libraries or {},
            streams=stream_seeds(trial.seed) | ({} if split is None else {"split": split}),
        )

    def _end(self, trial: Trial, run: TrialRun, ending: Record) -> None:
        sent = self._deliver(run, partial(run.end, ending))
        del self.running[trial.id]
        self.limits.learn(trial, ending)
        if ending.status == Status.KILLED and self.retries.another(trial.id):
            # Keep its claim, so that no other driver takes the trial meanwhile.
            self.queue.insert(0, trial)
        else:
            sent = sent and self._write(partial(self.claims.settle, trial.id))
        if not sent:
            self.unsent[trial.id] = run
        # A slot is free: fill it without delay.
        self.looked = -LOOK

    def _wait(self) -> None:
        """Waits while nothing runs here, for the end of an outage or for trials of other drivers.

        Raises StoreError if an outage lasts too long.
        """
        if not self.store.online:
            self.away_since = self.away_since or time.monotonic()
        if self.away_since and time.monotonic() - self.away_since > _patience(self.store):
            waiting = len(Outbox(self.store.outbox).waiting())
            where = f"; {waiting} record(s) wait in {self.store.outbox} and are sent at the next start"
            why = self.why or f"the store at {shown_uri(self.store.uri)} is away"
            raise StoreError(why + where * bool(waiting))
        time.sleep(0.2)
