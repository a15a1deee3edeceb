"""A suite's trials, searches and allocations, as Python and the command line start them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from bench.execution import make_executor
from bench.execution.checks import check_disk, check_memory
from bench.execution.driver import execute, failures, pending
from bench.execution.estimate import final_work
from bench.execution.executor import Executor
from bench.execution.perform import Report
from bench.execution.place import HERE, Place
from bench.execution.session import Session, session, suite_run
from bench.plan.cells import Cell
from bench.plan.make import cells_of, make_plan
from bench.plan.rows import EVERYTHING, Part, Plan, Row
from bench.plan.trial import Trial
from bench.search.allocation import RankAllocation
from bench.search.nested import Nested, study_name
from bench.search.pilot import check_pilot, check_target, run_pilot, write_suite
from bench.search.storage import default_storage, open_storage
from bench.search.study import RankSearch
from bench.search.tuning import with_choices
from bench.store import DEFAULT_STORE
from bench.store.changed_trials import changed_trials
from bench.store.records import Record, latest
from bench.store.store import Store
from bench.suite.choosing import Allocation, Pilot, Search
from bench.suite.limit import Limit
from bench.suite.load import load_suite
from bench.suite.suite import Suite
from bench.wire.found import AllocationResult, SearchResult, Tried
from bench.wire.words import Kind, Phase, Status, Tag
from methods import UserError
from methods.validation import validate
from reports.summary import Summary, summarise


class Audience:
    """Hears of a run while it goes. This one does nothing; the terminal's prints all of it."""

    def opened(self, sent: int, closed: int) -> None:
        """Before the first trial: earlier starts had left `sent` records and `closed` open runs."""

    def phase(self, plan: Plan, phase: Phase | None, waiting: int, device: str) -> None:
        """As each phase of a suite begins: of its trials, those of `plan`, so many are to run."""

    def following(self, trials: float) -> None:
        """Before a phase that others follow, which take as long as so many trials of this one."""

    def watch(self, plan: Plan, count: int, slots: int) -> AbstractContextManager[Report]:
        """Around the preparation and the run of `count` trials of a plan, on `slots` workers.

        It comes before `phase`. The value hears of every event.
        """
        return nullcontext(lambda event: None)

    def searching(self, search: RankSearch) -> None:
        """Before a search."""

    def allocating(self, name: str, allocation: RankAllocation) -> None:
        """Before an allocation."""

    def searched(self, found: SearchResult, records: dict[str, Record]) -> None:
        """After a search, with the record that counts of every trial."""

    def allocated(self, found: AllocationResult, records: dict[str, Record]) -> None:
        """After an allocation, likewise."""

    def chosen(self, choices: Sequence[str]) -> None:
        """After a pilot, with a line for each of its choices."""

    def note(self, text: str) -> None:
        """Something to know before the work starts."""


@dataclass(frozen=True)
class SuiteRun:
    """What a run of a suite led to."""

    #: The part that was asked for, with what equal tuning has chosen.
    plan: Plan
    summary: Summary

    @property
    def complete(self) -> bool:
        """Whether every trial that was asked for has finished."""
        return self.summary.complete


@dataclass(frozen=True)
class SearchRun:
    """What a suite's searches, or its allocations, led to, one for each method, task, backbone and budget.

    A pilot leads to a file, and to nothing here.
    """

    found: tuple[SearchResult | AllocationResult, ...]
    #: Whether every final trial, and every trial of an allocation, has finished, or a pilot chose everything.
    complete: bool


def run_suite(
    suite: Suite | Path | str,
    *,
    store: str = DEFAULT_STORE,
    place: Place = HERE,
    part: Part = EVERYTHING,
    retry_failed: bool = False,
    audience: Audience | None = None,
) -> SuiteRun:
    """Runs a suite's trials into MLflow: those of its tuning first, then the final ones.

    Trials that have finished are kept, so that a stopped run goes on where it was. `suite` is a suite or the
    path of its file. With `retry_failed` only trials that have failed run. Raises UserError, before any work,
    for what cannot be done. A trial that fails raises nothing: it is stored with its reason.
    """
    listener = audience or Audience()
    with make_executor(place) as executor:
        limited = _limited(_loaded(suite), place, executor, listener)
        full_plan = make_plan(limited, executor.device)
        plan = full_plan.select(part)
        opened = Store.create(store, limited.name)
        phases: tuple[Phase | None, ...] = ("tuning", None) if limited.equal_tuning else (None,)
        with session(opened) as driver:
            listener.opened(driver.sent, driver.closed)
            _note_searched(limited, suite, listener)
            full_plan = with_choices(full_plan, opened)
            plan = full_plan.select(part)
            records = opened.records()
            if not retry_failed:
                for note in changed_trials(plan, opened, records):
                    listener.note(note)
            counting = latest(records)
            driver.warn_of_changed_plugins(
                counting[trial.id] for trial in plan.trials if trial.id in counting
            )
            for phase in phases:
                full_plan = with_choices(full_plan, opened)
                plan = full_plan.select(part)
                full_plan = _run_phase(
                    full_plan, plan, phase, driver, executor, listener, retry_failed=retry_failed
                )
            return SuiteRun(plan, summarise(opened, plan.stored()))


def _note_searched(loaded: Suite, suite: Suite | Path | str, listener: Audience) -> None:
    """Says that a suite has more than its trials."""
    if loaded.searched:
        sections = " and ".join(loaded.searched)
        listener.note(
            f"'{loaded.name}' also has {sections}, which this does not run: {_search_command(suite)} does."
        )


def _run_phase(
    whole: Plan,
    plan: Plan,
    phase: Phase | None,
    driver: Session,
    executor: Executor,
    listener: Audience,
    *,
    retry_failed: bool,
) -> Plan:
    """Runs one phase of a plan; returns the whole plan with what other drivers chose meanwhile."""
    store, part = driver.store, plan.of(phase)
    # This comes first: a failure that is stored later is another driver's, and stands.
    again = failures(store) if retry_failed else {}
    trials = [t for t in part.trials if t.id in again] if retry_failed else pending(part, store)
    if not trials:
        listener.phase(part, phase, 0, executor.device)
        if phase is None:
            store.end(store.begin_suite(whole, driver.claims.driver), Status.FINISHED)
        return whole
    check_disk(part, trials, store)
    _check_memory(trials, executor)
    if phase == "tuning" and not retry_failed:
        listener.following(final_work(plan, trials, store.records()))
    with listener.watch(part, len(trials), executor.slots) as report:
        executor.prepare(trials, report, whole.suite.trial_timeout)
        # Said only now that nothing is in the way.
        listener.phase(part, phase, len(trials), executor.device)
        # Preparing takes some time, in which another driver may have chosen.
        whole = with_choices(whole, store)
        tags = {Tag.PHASE: phase} if phase else {}
        execute(whole, trials, driver, executor, report, tags=tags, again=again)
    return whole


def search_suite(
    suite: Suite | Path | str,
    *,
    store: str = DEFAULT_STORE,
    place: Place = HERE,
    part: Part = EVERYTHING,
    storage: str | None = None,
    trials: int | None = None,
    sampler_seed: int | None = None,
    out: Path | str | None = None,
    retry_failed: bool = False,
    audience: Audience | None = None,
) -> SearchRun:
    """Runs a suite's `search` and `allocation` for each method, task, backbone and budget, or its `pilot`.

    A pilot writes the suite with its choices to `out`. Tried points are kept, so that a stopped search goes
    on where it was. `storage` is Optuna's database, by default beside the store. `trials` and `sampler_seed`
    replace those of the suite's search. A search tries one point at a time: without `workers` or
    `slots_per_device` it takes one worker. Raises UserError, before any work, for what cannot be done.
    """
    if part.seeds or part.studies:
        raise UserError("seeds, studies: a search has its own seeds; leave them out of the part")
    listener = audience or Audience()
    loaded = _with_search(_loaded(suite), trials, sampler_seed, storage, out)
    if loaded.search and not place.slots_per_device:
        # Idle workers would hold threads or GPUs that the busy one lacks.
        place = replace(place, workers=place.workers or 1)
    with make_executor(place) as executor:
        full_plan = make_plan(_limited(loaded, place, executor, listener), executor.device)
        plan = full_plan.select(part)
        chosen = cells_of(plan, executor.device)
        if loaded.pilot is not None:
            check_pilot(loaded.pilot, chosen)
            opened = Store.create(store, loaded.name)
            steps = partial(_run_step, full_plan, executor, listener, retry_failed)
            return _run_pilot(loaded.pilot, chosen, opened, steps, listener, Path(str(out)))
        _check_apart(chosen)
        opened = Store.create(store, loaded.name)
        _check_memory(list(plan.trials), executor)
        if loaded.search and storage is None and not opened.local:
            listener.note(
                f"The study is in {default_storage(store)}, which only this machine sees: to search on "
                "several, name a database that all reach."
            )
        with session(opened) as driver, suite_run(driver, full_plan):
            listener.opened(driver.sent, driver.closed)
            retried = failures(opened) if retry_failed else {}

            def nests(kind: Literal[Kind.SEARCH, Kind.ALLOCATION]) -> list[Nested]:
                return [Nested(cell, kind, driver, executor, listener.watch, retried) for cell in chosen]

            database = default_storage(store) if storage is None else storage
            return _run_sections(loaded, nests, database, opened, listener)


def _run_pilot(
    pilot: Pilot,
    cells: Sequence[Cell],
    store: Store,
    run: Callable[[Session, Sequence[Row], Sequence[Trial]], dict[str, Record]],
    listener: Audience,
    out: Path,
) -> SearchRun:
    """Runs a pilot and writes the suite with its choices, unless something could not be chosen."""
    with session(store) as driver:
        listener.opened(driver.sent, driver.closed)
        choices = run_pilot(pilot, cells, partial(run, driver))
    listener.chosen(choices.lines)
    for missing in choices.missing:
        listener.note(missing)
    if choices.complete:
        write_suite(cells[0].suite, choices, out)
        listener.note(f"The suite with these choices is in {out}.")
    return SearchRun((), choices.complete)


def _run_step(
    whole: Plan,
    executor: Executor,
    listener: Audience,
    retry_failed: bool,
    driver: Session,
    rows: Sequence[Row],
    trials: Sequence[Trial],
) -> dict[str, Record]:
    """Runs the trials of a step of a pilot that have no result yet; returns the records that count."""
    part = Plan(suite=whole.suite, rows=tuple(rows), trials=tuple({t.id: t for t in trials}.values()))
    both = Plan(suite=whole.suite, rows=whole.rows + part.rows, trials=whole.trials + part.trials)
    for again in (True, False) if retry_failed else (False,):
        _run_phase(both, part, "search", driver, executor, listener, retry_failed=again)
    return latest(driver.store.records())


def _check_apart(chosen: Sequence[Cell]) -> None:
    """Raises UserError for rows of their own sizes that only their ranks tell apart."""
    for name, rows in Counter(map(study_name, chosen)).items():
        if rows > 1:
            raise UserError(
                f"'{name}' is {rows} rows that only their ranks tell apart, and can be one search or "
                "allocation: give budgets in place of the ranks"
            )


def _run_sections(
    suite: Suite,
    nests: Callable[[Literal[Kind.SEARCH, Kind.ALLOCATION]], list[Nested]],
    storage: str,
    store: Store,
    listener: Audience,
) -> SearchRun:
    """Searches first, then allocates, each where the suite says so."""
    found: list[SearchResult | AllocationResult] = []
    if suite.search:
        found += _search(suite.search, nests(Kind.SEARCH), storage, listener)
    if suite.allocation:
        found += _allocate(suite.allocation, nests(Kind.ALLOCATION), listener)
    records = latest(store.records())
    return SearchRun(tuple(found), all(_complete(one, records) for one in found))


def _search(
    section: Search, nests: Sequence[Nested], storage: str, listener: Audience
) -> Iterator[SearchResult]:
    studies = open_storage(storage)
    # All of them are made, and so checked, before the first trial.
    searches = [RankSearch(nest.cell, section, studies, nest.name) for nest in nests]
    for search, nest in zip(searches, nests, strict=True):
        listener.searching(search)
        with nest:
            found = search.finish(nest)
        listener.searched(found, latest(nest.store.records()))
        yield found


def _allocate(section: Allocation, nests: Sequence[Nested], listener: Audience) -> Iterator[AllocationResult]:
    # All of them are made, and so checked, before the first trial.
    allocations = [RankAllocation(nest.cell, section) for nest in nests]
    for allocation, nest in zip(allocations, nests, strict=True):
        listener.allocating(nest.name, allocation)
        with nest:
            found = allocation.run(nest)
        listener.allocated(found, latest(nest.store.records()))
        yield found


def _complete(found: SearchResult | AllocationResult, records: dict[str, Record]) -> bool:
    """Whether something was chosen, and every trial that the result stands on has a score."""
    stands_on: list[Tried] = [*found.final]
    if isinstance(found, AllocationResult):
        stands_on += [*found.points, *found.path]
    ids = [id_ for tried in stands_on for id_ in tried.trials.values()]
    return bool(found.final) and all(id_ in records and records[id_].score is not None for id_ in ids)


def _search_command(suite: Suite | Path | str) -> str:
    return "`bench.search_suite`" if isinstance(suite, Suite) else f"`tensorbench search {suite}`"


def _loaded(suite: Suite | Path | str) -> Suite:
    return suite if isinstance(suite, Suite) else load_suite(suite)


def _limited(suite: Suite, place: Place, executor: Executor, listener: Audience) -> Suite:
    """The suite with the place's limit for trials, if there is one. Raises UserError for an invalid limit."""
    if place.trial_timeout is not None:
        limit = validate(Limit, {"trial_timeout": place.trial_timeout}, "this run")
        suite = suite.model_copy(update={"trial_timeout": limit.trial_timeout})
    if suite.trial_timeout is not None and not executor.ends_trials:
        listener.note(
            f"trial_timeout has no effect with --executor {place.executor}, which cannot end a trial."
        )
    return suite


def _with_search(
    suite: Suite, trials: int | None, seed: int | None, storage: str | None, out: Path | str | None
) -> Suite:
    """The suite with these values in its search.

    Raises UserError where it has no search that they could be for, or none of search, allocation and pilot,
    and for a file that goes without a pilot, or a pilot without one.
    """
    if not suite.searched:
        raise UserError(f"suite '{suite.name}' has no section 'search', 'allocation' or 'pilot'")
    if (suite.pilot is None) != (out is None):
        has = (
            "no pilot that it could be for" if out else "a pilot: give the file for the suite that it chooses"
        )
        raise UserError(f"--out: suite '{suite.name}' has {has}")
    if out is not None:
        check_target(suite, Path(out))
    given = {"trials": trials, "seed": seed}
    update = {field: value for field, value in given.items() if value is not None}
    if suite.search is None:
        options = {"--trials": trials, "--sampler-seed": seed, "--storage": storage}
        if unused := [option for option, value in options.items() if value is not None]:
            raise UserError(
                f"{', '.join(unused)}: suite '{suite.name}' has no section 'search' that this could be for"
            )
        return suite
    changed = validate(Search, suite.search.model_dump() | update, "--trials, --sampler-seed")
    return suite.model_copy(update={"search": changed})


def _check_memory(trials: list[Trial], executor: Executor) -> None:
    # A cluster's nodes check their own memory.
    if executor.on_this_machine:
        check_memory(trials, executor.slots)
