"""The driver: claims trials in the store, hands them to an executor, and stores their results.

The driver also runs lost trials again, and goes on after outages of the store. Only the driver writes to the
store. Executors only run trials and report events. So results are stored in the same way with every executor,
and workers need neither the store nor its address.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypeVar, get_args

from tensorbench.execution import blaming
from tensorbench.execution.estimate import longest_first
from tensorbench.execution.executor import Executor
from tensorbench.execution.perform import Event
from tensorbench.execution.session import CLOSING, STRIKES, Session, put_aside, suite_run, within
from tensorbench.execution.watch import Limits
from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.metrics import METRICS
from tensorbench.records.origin import Start
from tensorbench.records.record import Record, latest
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import Status, Tag
from tensorbench.store.addresses import shown_uri
from tensorbench.store.connect import StoreError, StoreFailedError, StoreRefusedError
from tensorbench.store.outbox import Outbox
from tensorbench.store.store import Store
from tensorbench.store.writer import TrialRun, begin_trial
from tensorbench.training.seeding import Stream, stream_seed

Answer = TypeVar("Answer")

#: Seconds between two reads of other drivers' claims, and between two calls to an unreachable store.
LOOK = 2.0

#: The largest expected difference between the clocks of two machines, in seconds.
SKEW = 10.0

#: Seconds that an idle driver waits during an outage: PATIENCE if a server does not answer, FILE_PATIENCE if
#: a SQLite file cannot be used, for instance because another process has locked it.
PATIENCE, FILE_PATIENCE = 15 * 60.0, 60.0

#: The number of automatic further attempts at a trial that was lost with its worker or node. A trial that
#: failed by itself, for instance because memory ran out, would fail again. It is retried on request only.
TIMES = 2
#: WAIT is the number of seconds before the first further attempt. Each later delay is GROWTH times as long as
#: the delay before.
WAIT, GROWTH = 2.0, 10.0


def patiently(store: Store, ask: Callable[[], Answer]) -> Answer:
    """Calls `ask`, which reads the store, and returns its answer.

    During an outage of the store, `ask` is called again and again. Raises StoreError if the outage lasts too
    long, and at once if the store refuses the request.
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
    """Maps the id of each failed trial to the id of its failed run."""
    return {id_: record.run_id for id_, record in latest(records).items() if record.status == Status.FAILED}


def pending(plan: Plan, records: Iterable[Record]) -> list[Trial]:
    """Returns the plan's trials that have neither finished nor failed, in the plan's order."""
    settled = {id_ for id_, record in latest(records).items() if record.settled}
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
    """Runs trials of a plan and stores their results.

    Returns when each trial is settled, or has been lost more than `TIMES` times. Other drivers may run some
    of the trials. An interrupt ends the running trials and marks their runs as killed.

    Args:
        plan: The plan with the rows of the trials.
        notify: Called with every event.
        parent: The id of the MLflow run under which the trials' runs are nested. None: the suite's run.
        tags: Tags for every trial's run.
        retried: Maps trial ids to runs whose results do not count, such as failures to retry.
        records: The records of the store. None: they are read from the store.

    Raises:
        StoreError: if an outage of the store does not end. The records of trials that ended during the outage
            are then in the outbox.
    """
    with nullcontext(parent) if parent else suite_run(session, plan) as run_id:
        records = session.store.records() if records is None else list(records)
        _Driving(plan, trials, session, executor, notify, run_id, tags, retried, records).run()


class Retries:
    """Decides whether and when a driver runs lost trials again."""

    def __init__(self) -> None:
        self._lost: Counter[str] = Counter()
        #: The earliest time of each trial's next attempt (monotonic).
        self._due: dict[str, float] = {}

    def another(self, trial: str) -> bool:
        """Records that the trial was lost. Returns whether to run it again once it is `due`."""
        self._lost[trial] += 1
        if self._lost[trial] > TIMES:
            return False
        self._due[trial] = time.monotonic() + WAIT * GROWTH ** (self._lost[trial] - 1)
        return True

    def due(self, trial: str) -> bool:
        """Whether the delay before the trial's next attempt is over. True for trials that were never lost."""
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
        #: Ended trials whose records still wait in the outbox, or whose claims have not been released.
        self.unsent: dict[str, TrialRun] = {}
        self.retries = Retries()
        #: By run id: how many times the store could be reached but failed to store the run's record.
        self.strikes: Counter[str] = Counter()
        #: The monotonic time of the last read of other drivers' claims.
        self.looked = -LOOK
        #: The time when other drivers' results were last read, in seconds since the epoch.
        self.refreshed = max((record.ended or 0 for record in records), default=0) / 1000
        #: The monotonic time since which the driver has been idle in an outage. None at other times.
        self.away_since: float | None = None
        #: The error with which the outage began.
        self.why = ""

    def run(self) -> None:
        try:
            while self.queue or self.running or self.unsent:
                if self.store.online and self._caught_up():
                    self._fill()
                if self.running:
                    self.away_since = None
                    self._step()
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
        """Calls `write` unless the store is unreachable. Returns whether the write succeeded."""
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

    def _caught_up(self) -> bool:
        """Sends the waiting records. Returns whether all could be sent."""
        for trial, run in list(self.unsent.items()):
            if not self._deliver(run, run.flush):
                return False
            # A lost trial keeps its claim until its next attempt.
            waits = any(waiting.id == trial for waiting in self.queue)
            if not waits and not self._write(partial(self.claims.settle, trial)):
                return False
            del self.unsent[trial]
        return True

    def _tell(self, write: Callable[[], object]) -> None:
        try:
            write()
        except StoreError as error:
            # A store that refuses, for instance because the run was deleted, will also refuse the trial's
            # record, where the error is handled.
            if not isinstance(error, StoreRefusedError):
                self._away(error)

    def _deliver(self, run: TrialRun, send: Callable[[], bool]) -> bool:
        """Calls `send`, which sends a run's record. Returns False if the record has to wait.

        A record that the store refuses, or repeatedly fails to store, is put aside. Raises StoreError if the
        record could not be written to disk either.
        """
        try:
            return send()
        except StoreError as error:
            if not run.ended:
                raise
            self.strikes[run.run_id] += isinstance(error, StoreFailedError)
            if isinstance(error, StoreRefusedError) or self.strikes[run.run_id] == STRIKES:
                put_aside(error, run.put_aside())
            else:
                self._away(error)
                return False
        return True

    def _fill(self) -> None:
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
        # This only saves claims. A settled trial may stay in the queue, for instance because clocks differ by
        # more than SKEW. Then its settlement shows when the trial is claimed.
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
        return record.settled and record.run_id != self.retried.get(record.trial_id)

    def _begin(self, trial: Trial) -> None:
        record = latest(self.store.records(trial_id=trial.id)).get(trial.id)
        if record and self._settles(record):
            # Another driver settled it after this queue was made.
            self.claims.settle(trial.id)
            self.queue.remove(trial)
            self.notify(Event(trial, "elsewhere"))
            return
        task = self.plan.tasks[self.rows[trial.id][0].task]
        tags = dict(self.tags)
        if task.unit and METRICS.get(task.metric).in_units:
            tags[Tag.UNIT] = task.unit
        run = begin_trial(self.store, trial, self.rows[trial.id], task.metric, self.parent, tags=tags)
        self.running[trial.id] = run
        self.queue.remove(trial)
        with blaming(self.executor.name):
            self.executor.submit(trial)

    def _step(self) -> None:
        """Lets the executor work. Its errors name its plug-in, but not those of receiving what it reports."""
        own: list[Exception] = []

        def receive(event: Event) -> None:
            try:
                self._receive(event)
            except Exception as error:
                own.append(error)
                raise

        try:
            with blaming(self.executor.name):
                self.executor.step(receive)
        except UserError:
            if own:
                raise own[0] from None
            raise

    def _receive(self, event: Event) -> None:
        trial, run = event.trial, self.running.get(event.trial.id)
        if run is None:
            raise UserError(
                f"executor '{self.executor.name}' reports that trial {trial.id} is {event.kind}, but it does "
                "not run: report its end once, and nothing after it"
            )
        if event.provenance is not None:
            self.executor.limit(trial, self.limits.begin(trial, event.provenance))
            split = trial.task.split_seed(trial.seed)
            streams: dict[str, int] = {name: stream_seed(trial.seed, name) for name in get_args(Stream)}
            streams |= {} if split is None else {"split": split}
            start = Start(suite=self.plan.suite.file, libraries=event.libraries or {}, streams=streams)
            self._tell(partial(run.start, trial.model_dump(mode="json"), event.provenance, start))
        elif event.progress is not None:
            self._tell(partial(run.progress, event.progress))
        elif event.ending is not None:
            self._end(trial, run, event.ending)
        self.notify(event)

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
        """Waits for the end of an outage, or for trials of other drivers. Called while no own trial runs.

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
