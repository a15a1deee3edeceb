"""A suite's trials, searches and allocations, as Python and the command line start them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from bench.execution import make_executor
from bench.execution.checks import check_disk, check_memory
from bench.execution.driver import execute, failures, pending
from bench.execution.estimate import final_work
from bench.execution.executor import Executor
from bench.execution.perform import Report
from bench.execution.session import Session, session, suite_run
from bench.plan.cells import Cell
from bench.plan.make import cells_of, make_plan
from bench.plan.rows import Plan, Row
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
from bench.training.saving import PLAIN, Saving
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
    device: str = "auto",
    tasks: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    backbones: Sequence[str] = (),
    budgets: Sequence[str] = (),
    studies: Sequence[int] = (),
    executor: str = "inline",
    workers: int | None = None,
    slots_per_device: int | None = None,
    ray_address: str | None = None,
    worker_memory: int | None = None,
    saving: Saving = PLAIN,
    trial_timeout: float | str | None = None,
    retry_failed: bool = False,
    audience: Audience | None = None,
) -> SuiteRun:
    """Runs a suite's trials into MLflow: those of its tuning first, then the final ones.

    Trials that have finished are kept, so that a run that was stopped goes on where it was. `suite` is a
    suite or the path of its file. `tasks`, `methods`, `seeds`, `backbones`, `budgets` and `studies` select a
    part of it, as `Plan.select` says; each selects all if empty. `executor` is inline, local or ray.
    `worker_memory` is what a worker of `local` may take, in MiB. `saving` says how trials are run in less
    memory, with the same results. `trial_timeout` replaces the suite's: seconds, or a multiple as `5x`. With
    `retry_failed` only trials run that have failed. Raises UserError for what cannot be done,
    before any work. A trial that fails raises nothing: it is stored with its reason.
    """
    told = audience or Audience()
    placed = partial(make_executor, executor, device, workers=workers, slots_per_device=slots_per_device)
    with placed(ray_address=ray_address, worker_memory=worker_memory, saving=saving) as place:
        whole = make_plan(_limited(_loaded(suite), trial_timeout, place, told), place.device)

        def wanted(whole: Plan) -> Plan:
            return whole.select(tasks, methods, seeds, backbones, budgets, studies)

        plan = wanted(whole)
        opened = Store.create(store, whole.suite.name)
        phases: tuple[Phase | None, ...] = ("tuning", None) if whole.suite.equal_tuning else (None,)
        with session(opened) as at_work:
            told.opened(at_work.sent, at_work.closed)
            _note_searched(whole.suite, suite, told)
            whole = with_choices(whole, opened)
            records = opened.records()
            known = latest(records)
            if not retry_failed:
                for note in changed_trials(wanted(whole), opened, records):
                    told.note(note)
            at_work.warn_of_changed_plugins(
                known[trial.id] for trial in wanted(whole).trials if trial.id in known
            )
            for phase in phases:
                whole = with_choices(whole, opened)
                plan = wanted(whole)
                whole = _run_phase(whole, plan, phase, at_work, place, told, retry_failed=retry_failed)
            return SuiteRun(plan, summarise(opened, plan.stored()))


def _note_searched(loaded: Suite, suite: Suite | Path | str, told: Audience) -> None:
    """Says that a suite has more than its trials."""
    if loaded.searched:
        sections = " and ".join(loaded.searched)
        told.note(
            f"'{loaded.name}' also has {sections}, which this does not run: {_search_command(suite)} does."
        )


def _run_phase(
    whole: Plan,
    plan: Plan,
    phase: Phase | None,
    at_work: Session,
    place: Executor,
    told: Audience,
    *,
    retry_failed: bool,
) -> Plan:
    """Runs one phase of a plan; returns the whole plan with what other drivers chose meanwhile."""
    store, part = at_work.store, plan.of(phase)
    # This comes first: a failure that is stored later is another driver's, and stands.
    again = failures(store) if retry_failed else {}
    trials = [t for t in part.trials if t.id in again] if retry_failed else pending(part, store)
    if not trials:
        told.phase(part, phase, 0, place.device)
        if phase is None:
            store.end(store.begin_suite(whole, at_work.claims.driver), Status.FINISHED)
        return whole
    check_disk(part, trials, store)
    _check_memory(trials, place)
    if phase == "tuning" and not retry_failed:
        told.following(final_work(plan, trials, store.records()))
    with told.watch(part, len(trials), place.slots) as report:
        place.prepare(trials, report, whole.suite.trial_timeout)
        # Said only now that nothing is in the way.
        told.phase(part, phase, len(trials), place.device)
        # Preparing takes some time, in which another driver may have chosen.
        whole = with_choices(whole, store)
        tags = {Tag.PHASE: phase} if phase else {}
        execute(whole, trials, at_work, place, report, tags=tags, again=again)
    return whole


def search_suite(
    suite: Suite | Path | str,
    *,
    store: str = DEFAULT_STORE,
    storage: str | None = None,
    device: str = "auto",
    trials: int | None = None,
    sampler_seed: int | None = None,
    out: Path | str | None = None,
    tasks: Sequence[str] = (),
    methods: Sequence[str] = (),
    backbones: Sequence[str] = (),
    budgets: Sequence[str] = (),
    executor: str = "inline",
    workers: int | None = None,
    slots_per_device: int | None = None,
    ray_address: str | None = None,
    worker_memory: int | None = None,
    saving: Saving = PLAIN,
    trial_timeout: float | str | None = None,
    retry_failed: bool = False,
    audience: Audience | None = None,
) -> SearchRun:
    """Runs what a suite's `search` and `allocation` say, for each method, task, backbone and budget; or its
    `pilot`, which writes the suite with what it chose to `out`.

    What was tried already is kept, so that a search that was stopped goes on where it was. `storage` is
    Optuna's database, by default beside the store. `trials` and `sampler_seed` replace those of the suite's
    search. A search tries one point at a time: without `workers` or `slots_per_device` it takes one worker.
    Raises UserError for what cannot be done, before any work.
    """
    told = audience or Audience()
    loaded = _with_search(_loaded(suite), trials, sampler_seed, storage, out)
    if loaded.search and not slots_per_device:
        # Idle workers would hold threads or GPUs that the one at work lacks.
        workers = workers or 1
    placed = partial(make_executor, executor, device, workers=workers, slots_per_device=slots_per_device)
    with placed(ray_address=ray_address, worker_memory=worker_memory, saving=saving) as place:
        whole = make_plan(_limited(loaded, trial_timeout, place, told), place.device)
        wanted = whole.select(tasks, methods, (), backbones, budgets)
        chosen = cells_of(wanted, place.device)
        if loaded.pilot is not None:
            check_pilot(loaded.pilot, chosen)
            opened = Store.create(store, loaded.name)
            steps = partial(_run_step, whole, place, told, retry_failed)
            return _run_pilot(loaded.pilot, chosen, opened, steps, told, Path(str(out)))
        _check_apart(chosen)
        opened = Store.create(store, loaded.name)
        _check_memory(list(wanted.trials), place)
        if loaded.search and storage is None and not opened.local:
            told.note(
                f"The study is in {default_storage(store)}, which only this machine sees: to search on "
                "several, name a database that all reach."
            )
        with session(opened) as at_work, suite_run(at_work, whole):
            told.opened(at_work.sent, at_work.closed)
            again = failures(opened) if retry_failed else {}

            def nests(kind: Literal[Kind.SEARCH, Kind.ALLOCATION]) -> list[Nested]:
                return [Nested(cell, kind, at_work, place, told.watch, again) for cell in chosen]

            where = default_storage(store) if storage is None else storage
            return _run_sections(loaded, nests, where, opened, told)


def _run_pilot(
    pilot: Pilot,
    cells: Sequence[Cell],
    store: Store,
    run: Callable[[Session, Sequence[Row], Sequence[Trial]], dict[str, Record]],
    told: Audience,
    out: Path,
) -> SearchRun:
    """Runs a pilot and writes the suite with its choices, unless something could not be chosen."""
    with session(store) as at_work:
        told.opened(at_work.sent, at_work.closed)
        choices = run_pilot(pilot, cells, partial(run, at_work))
    told.chosen(choices.lines)
    for missing in choices.missing:
        told.note(missing)
    if choices.complete:
        write_suite(cells[0].suite, choices, out)
        told.note(f"The suite with these choices is in {out}.")
    return SearchRun((), choices.complete)


def _run_step(
    whole: Plan,
    place: Executor,
    told: Audience,
    retry_failed: bool,
    at_work: Session,
    rows: Sequence[Row],
    trials: Sequence[Trial],
) -> dict[str, Record]:
    """Runs the trials of a step of a pilot that have no result yet; returns the records that count."""
    part = Plan(suite=whole.suite, rows=tuple(rows), trials=tuple({t.id: t for t in trials}.values()))
    both = Plan(suite=whole.suite, rows=whole.rows + part.rows, trials=whole.trials + part.trials)
    for again in (True, False) if retry_failed else (False,):
        _run_phase(both, part, "search", at_work, place, told, retry_failed=again)
    return latest(at_work.store.records())


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
    told: Audience,
) -> SearchRun:
    """Searches first, then allocates, each where the suite says so."""
    found: list[SearchResult | AllocationResult] = []
    if suite.search:
        found += _search(suite.search, nests(Kind.SEARCH), storage, told)
    if suite.allocation:
        found += _allocate(suite.allocation, nests(Kind.ALLOCATION), told)
    records = latest(store.records())
    return SearchRun(tuple(found), all(_complete(one, records) for one in found))


def _search(section: Search, nests: Sequence[Nested], storage: str, told: Audience) -> Iterator[SearchResult]:
    studies = open_storage(storage)
    # All of them are made, and so checked, before the first trial.
    searches = [RankSearch(nest.cell, section, studies, nest.name) for nest in nests]
    for search, nest in zip(searches, nests, strict=True):
        told.searching(search)
        with nest:
            found = search.finish(nest)
        told.searched(found, latest(nest.store.records()))
        yield found


def _allocate(section: Allocation, nests: Sequence[Nested], told: Audience) -> Iterator[AllocationResult]:
    # All of them are made, and so checked, before the first trial.
    allocations = [RankAllocation(nest.cell, section) for nest in nests]
    for allocation, nest in zip(allocations, nests, strict=True):
        told.allocating(nest.name, allocation)
        with nest:
            found = allocation.run(nest)
        told.allocated(found, latest(nest.store.records()))
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


def _limited(suite: Suite, timeout: float | str | None, place: Executor, told: Audience) -> Suite:
    """The suite with this limit, if one is given. Raises UserError for one that is none."""
    if timeout is not None:
        given = validate(Limit, {"trial_timeout": timeout}, "this run")
        suite = suite.model_copy(update={"trial_timeout": given.trial_timeout})
    if suite.trial_timeout is not None and not place.ends_trials:
        told.note("trial_timeout has no effect with --executor inline: no other process could end a trial.")
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


def _check_memory(trials: list[Trial], place: Executor) -> None:
    # A cluster's nodes check their own memory.
    if place.on_this_machine:
        check_memory(trials, place.slots)
