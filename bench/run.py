"""Runs the trials, searches and allocations of a suite. Python and the command line both use this module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tensorbench.execution import make_executor
from tensorbench.execution.driver import execute, failures, patiently, pending
from tensorbench.execution.estimate import check_disk, check_memory, final_work, time_advice
from tensorbench.execution.executor import Executor
from tensorbench.execution.perform import Report
from tensorbench.execution.place import HERE, Place
from tensorbench.execution.session import Session, session, suite_run
from tensorbench.machine.overview import Overview, ShowsOverview
from tensorbench.methods import UserError
from tensorbench.methods.validation import validate
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.choosing import Allocation, Search
from tensorbench.plan.make import cells_of, make_plan
from tensorbench.plan.rows import EVERYTHING, Part, Plan, Row
from tensorbench.plan.suite import Limit, Suite
from tensorbench.plan.suite_file import load_suite
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Record, latest
from tensorbench.records.search_results import AllocationResult, SearchResult, Tried
from tensorbench.records.text import message
from tensorbench.records.words import Phase, RunKind, Status, Tag
from tensorbench.search.allocation import RankAllocation
from tensorbench.search.nested import Nested, study_name
from tensorbench.search.pilot import Choices, check_pilot, check_target, run_pilot, write_suite
from tensorbench.search.storage import default_storage, open_storage
from tensorbench.search.study import RankSearch
from tensorbench.search.tuning import with_choices
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.changes import changed_trials
from tensorbench.store.store import Store

if TYPE_CHECKING:
    # Statistics take a second to import, and trials need none.
    from tensorbench.reports.ablation import StoredAblation
    from tensorbench.reports.studies import StudyAnalysis
    from tensorbench.reports.summary import Summary


class Audience:
    """Is told what a run does. Its methods do nothing. A subclass may print, as the command line does."""

    def opened(self, sent: int, closed: int) -> None:
        """Called when the store has been opened.

        Earlier processes may have left records and open runs behind. `sent` is the number of these records
        that were sent, and `closed` the number of these runs that were closed.
        """

    def phase(self, plan: Plan, phase: Phase | None, waiting: int, device: str) -> None:
        """Called before the trials of one purpose run.

        `phase` is the purpose, such as "tuning". None: the final trials. `plan` has the trials of this
        purpose. `waiting` is the number of them that remain to run.
        """

    def following(self, trials: float) -> None:
        """Called before tuning, with the time that the final trials will take afterwards.

        The time is given in units of the mean time of a tuning trial.
        """

    def watch(self, plan: Plan, count: int, slots: int) -> AbstractContextManager[Report]:
        """Makes a context in which `count` trials of a plan are prepared and run on `slots` workers.

        The context is entered before `phase` is called. It yields a function, which is called with every
        event.
        """
        return nullcontext(lambda event: None)

    def searching(self, search: RankSearch) -> None:
        """Called before a search begins."""

    def allocating(self, name: str, allocation: RankAllocation) -> None:
        """Called before a sweep over allocations begins. `name` is its name."""

    def searched(self, result: SearchResult, stored: StoredAblation) -> None:
        """Called after a search. `stored` has the scores of its points, and compares its choice."""

    def allocated(self, result: AllocationResult, stored: StoredAblation) -> None:
        """Called after a sweep over allocations. `stored` has their scores, and compares the choice."""

    def chosen(self, choices: Sequence[str]) -> None:
        """Called after a pilot, with a line of text for each of its choices."""

    def note(self, text: str) -> None:
        """Called with a note that the user should read."""


@dataclass(frozen=True, repr=False)
class SuiteRun(ShowsOverview):
    """The plan that `run_suite` has run, and a summary of its results."""

    #: The selected part of the suite's plan, with the trials that tuning has chosen.
    plan: Plan
    summary: Summary
    #: The sentences that answer the question of a complete suite.
    answers: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every trial of the selected part has finished."""
        return self.summary.complete

    def overview(self) -> Overview:
        """The scores of all rows as a table, with the notes that the command line prints."""
        return self.summary.overview(self.plan.suite.name)


@dataclass(frozen=True)
class SearchRun:
    """The results of `search_suite`.

    There is one result for each method, task, backbone and budget. A pilot has none, since it writes its
    choices to a file.
    """

    results: tuple[SearchResult | AllocationResult, ...]
    #: Whether all final trials and all trials of allocations have finished. For a pilot: whether it has made
    #: all its choices.
    complete: bool


@dataclass(frozen=True)
class _Work:
    """A driver with its executor and its audience."""

    driver: Session
    executor: Executor
    audience: Audience

    @property
    def store(self) -> Store:
        return self.driver.store

    def run_phase(
        self,
        full_plan: Plan,
        plan: Plan,
        phase: Phase | None,
        records: Sequence[Record],
        *,
        retry_failed: bool,
    ) -> Plan:
        """Runs the trials of a plan that have one purpose.

        `phase` is the purpose, such as "tuning". None: the final trials. `plan` is the selected part of
        `full_plan`, and `records` are those of the store. If `retry_failed` is set, only the failures in
        `records` run again. A failure that another driver has already retried is left out, even if it failed
        again. Returns the full plan, with the choices that tuning has made by the time the trials start.
        """
        store, executor, part = self.store, self.executor, plan.of(phase)
        failed = failures(records) if retry_failed else {}
        trials = [t for t in part.trials if t.id in failed] if retry_failed else pending(part, records)
        if not trials:
            self.audience.phase(part, phase, 0, executor.device)
            if phase is None:
                store.end(store.begin_suite(full_plan, self.driver.claims.driver), Status.FINISHED)
            return full_plan
        check_disk(part, trials, store)
        _check_memory(trials, executor)
        if phase == "tuning" and not retry_failed:
            self.audience.following(final_work(plan, trials, records))
        with self.audience.watch(part, len(trials), executor.slots) as report:
            executor.prepare(trials, report, full_plan.suite.trial_timeout)
            # Announce the phase when nothing can prevent it any more.
            self.audience.phase(part, phase, len(trials), executor.device)
            # During preparation, another driver may have chosen.
            full_plan = with_choices(full_plan, store)
            tags = {Tag.PHASE: phase} if phase else {}
            execute(
                full_plan,
                trials,
                self.driver,
                executor,
                report,
                tags=tags,
                retried=failed,
                records=records,
            )
        return full_plan

    def keep_answer(
        self, plan: Plan, records: Iterable[Record], studies: StudyAnalysis | None
    ) -> tuple[str, ...]:
        """Stores the answer of a complete suite in the note and the metrics of its run, and returns it.

        `studies` is the analysis of the suite's studies, if it is known.
        """
        from tensorbench.reports.summary import suite_answer

        try:
            answer = suite_answer(self.store, plan.stored(), records, studies)
            run = self.store.records(RunKind.SUITE)[-1]
            note = "\n\n".join(filter(None, (plan.suite.description, *answer.sentences, plan.suite.closing)))
            self.store.tag(run.run_id, Tag.NOTE, message(note))
            # A repeated start would draw every point twice.
            if {point.key: point.value for point in answer.differences}.items() - run.metrics.items():
                self.store.log(run.run_id, answer.differences)
        except UserError as error:
            self.audience.note(f"The suite's run in MLflow has no answer: {error}")
            return ()
        return answer.sentences

    def nests(
        self,
        cells: Sequence[PlanCell],
        kind: Literal[RunKind.SEARCH, RunKind.ALLOCATION],
        retried: Mapping[str, str],
    ) -> list[Nested]:
        """Makes for each cell the MLflow run that encloses the trials of its search or allocation."""
        return [
            Nested(cell, kind, self.driver, self.executor, self.audience.watch, retried) for cell in cells
        ]

    def search(self, section: Search, nests: Sequence[Nested], storage: str) -> Iterator[SearchResult]:
        studies = open_storage(storage)
        # Build all searches, which checks them, before the first trial.
        searches = [RankSearch(nest.cell, section, studies, nest.name) for nest in nests]
        for search, nest in zip(searches, nests, strict=True):
            self.audience.searching(search)
            with nest:
                result = search.finish(nest)
            self.audience.searched(result, self._stored(nest, result))
            yield result

    def allocate(self, section: Allocation, nests: Sequence[Nested]) -> Iterator[AllocationResult]:
        # Build all allocations, which checks them, before the first trial.
        allocations = [RankAllocation(nest.cell, section) for nest in nests]
        for allocation, nest in zip(allocations, nests, strict=True):
            self.audience.allocating(nest.name, allocation)
            with nest:
                result = allocation.run(nest)
            self.audience.allocated(result, self._stored(nest, result))
            yield result

    def _stored(self, nest: Nested, result: SearchResult | AllocationResult) -> StoredAblation:
        from tensorbench.reports.ablation import of_result
        from tensorbench.reports.study import Experiment

        def read() -> StoredAblation:
            records = latest(self.store.records())
            experiment = Experiment(self.store, self.store.name, "", "", (), {}, records, 0)
            return of_result(experiment, nest.run_id, result)

        return patiently(self.store, read)


def run_suite(
    suite: Suite | Path | str,
    *,
    store: str = DEFAULT_STORE,
    place: Place = HERE,
    part: Part = EVERYTHING,
    retry_failed: bool = False,
    audience: Audience | None = None,
) -> SuiteRun:
    """Runs the trials of a suite and stores their results in MLflow.

    Tuning trials run first, and then the final trials. Trials with a result do not run again, so a run that
    was stopped continues where it was.

    Args:
        suite: A suite, or the path of its file.
        store: The address of the MLflow store.
        place: Where trials run.
        part: Which part of the suite runs. By default everything.
        retry_failed: Whether to run the failed trials again, and only these.
        audience: Is told what happens. None: nobody.

    Raises:
        UserError: before any trial runs, if the suite cannot run as requested. A trial that fails raises
            nothing. The reason is stored.
    """
    audience = audience or Audience()
    with make_executor(place) as executor:
        loaded = _limited(_loaded(suite), place, executor, audience)
        full_plan = _planned(loaded, executor.device, part, audience)
        full_plan.select(part)  # refuses a part that the suite lacks before a store is made
        opened = Store.create(store, loaded.name)
        with session(opened) as driver:
            audience.opened(driver.sent, driver.closed)
            if loaded.searched:
                audience.note(
                    f"'{loaded.name}' also has {' and '.join(loaded.searched)}, which this does not run: "
                    "`tensorbench search` (`tensorbench.search_suite`) does."
                )
            records = opened.records()
            full_plan = with_choices(full_plan, opened, records)
            plan = full_plan.select(part)
            if not retry_failed:
                for note in changed_trials(plan, opened, records):
                    audience.note(note)
                if long := time_advice(plan, records, executor.device):
                    audience.note(long)
            stored = latest(records)
            driver.warn_of_changed_plugins(stored[t.id] for t in plan.trials if t.id in stored)
            work = _Work(driver, executor, audience)
            phases: tuple[Phase | None, ...] = ("tuning", None) if loaded.equal_tuning else (None,)
            for phase in phases:
                full_plan = work.run_phase(full_plan, plan, phase, records, retry_failed=retry_failed)
                records = patiently(opened, opened.records)
                full_plan = with_choices(full_plan, opened, records)
                plan = full_plan.select(part)
            from tensorbench.reports.summary import summarise

            summary = summarise(opened, plan.stored(), records)
            answers: tuple[str, ...] = ()
            if not (full_plan.partial or pending(full_plan, records)):
                answers = work.keep_answer(full_plan, records, None if part.choices else summary.studies)
            return SuiteRun(plan, summary, answers)


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
    """Runs the sections `search` and `allocation` of a suite, or its section `pilot`.

    A search or an allocation runs for each method, task, backbone and budget. Points that were tried are
    kept, so a search that was stopped continues where it was. A search tries one point at a time. Therefore
    it uses one worker, unless the place sets `workers` or `slots_per_device`.

    Args:
        suite: A suite, or the path of its file.
        store: The address of the MLflow store.
        place: Where trials run.
        part: Which part of the suite is searched. By default everything.
        storage: The address of Optuna's database. None: a file beside the store if the store is a file,
            otherwise a file in the working folder.
        trials: Replaces `trials` of the section `search`.
        sampler_seed: Replaces `seed` of the section `search`.
        out: Where a pilot writes the suite with its choices.
        retry_failed: Whether to run failed trials again.
        audience: Is told what happens. None: nobody.

    Raises:
        UserError: before any trial runs, if the suite cannot run as requested.
    """
    if part.seeds or part.studies:
        raise UserError("seeds, studies: a search has its own seeds; leave them out of the part")
    audience = audience or Audience()
    loaded = _with_search(_loaded(suite), trials, sampler_seed, storage, out)
    if loaded.search and not place.slots_per_device:
        # Idle workers would occupy threads or GPUs that the busy one could use.
        place = replace(place, workers=place.workers or 1)
    with make_executor(place) as executor:
        limited = _limited(loaded, place, executor, audience)
        full_plan = _planned(limited, executor.device, part, audience)
        plan = full_plan.select(part)
        cells = cells_of(plan, executor.device)
        if loaded.pilot is not None:
            check_pilot(loaded.pilot, cells)
            with session(Store.create(store, loaded.name)) as driver:
                audience.opened(driver.sent, driver.closed)
                work = _Work(driver, executor, audience)
                choices = run_pilot(loaded.pilot, cells, partial(_run_step, work, full_plan, retry_failed))
            return _write_choices(full_plan.suite, choices, audience, Path(str(out)))
        _check_distinct(cells)
        opened = Store.create(store, loaded.name)
        _check_memory(list(plan.trials), executor)
        if loaded.search and storage is None and not opened.local:
            audience.note(
                f"The study is in {default_storage(store)}, which only this machine sees: to search on "
                "several, name a database that all reach."
            )
        with session(opened) as driver, suite_run(driver, full_plan):
            audience.opened(driver.sent, driver.closed)
            retried = failures(opened.records()) if retry_failed else {}
            work = _Work(driver, executor, audience)
            database = default_storage(store) if storage is None else storage
            results: list[SearchResult | AllocationResult] = []
            if loaded.search:
                results += work.search(loaded.search, work.nests(cells, RunKind.SEARCH, retried), database)
            if loaded.allocation:
                results += work.allocate(loaded.allocation, work.nests(cells, RunKind.ALLOCATION, retried))
            records = latest(patiently(opened, opened.records))
            return SearchRun(tuple(results), all(_complete(result, records) for result in results))


def _run_step(
    work: _Work, full_plan: Plan, retry_failed: bool, rows: Sequence[Row], trials: Sequence[Trial]
) -> dict[str, Record]:
    """Runs those trials of a pilot's step that have no result.

    Returns a map from the id of each stored trial to the record that counts. Raises UserError if a trial has
    no result, since a choice without it could differ from the choice with it.
    """
    unique = tuple({trial.id: trial for trial in trials}.values())
    part = Plan(suite=full_plan.suite, rows=tuple(rows), trials=unique)
    both = Plan(suite=part.suite, rows=full_plan.rows + part.rows, trials=full_plan.trials + part.trials)
    for failed in (True, False) if retry_failed else (False,):
        stored = patiently(work.store, work.store.records)
        work.run_phase(both, part, "search", stored, retry_failed=failed)
    records = latest(patiently(work.store, work.store.records))
    for trial in unique:
        if trial.id not in records or not records[trial.id].settled:
            raise UserError(
                f"trial {trial.id} has no result: its worker was lost, or its record waits for the store; "
                "start the same command again"
            )
    return records


def _write_choices(suite: Suite, choices: Choices, audience: Audience, out: Path) -> SearchRun:
    audience.chosen(choices.lines)
    for missing in choices.missing:
        audience.note(missing)
    if choices.complete:
        write_suite(suite, choices, out)
        audience.note(f"The suite with these choices is in {out}.")
    return SearchRun((), choices.complete)


def _check_distinct(cells: Sequence[PlanCell]) -> None:
    """Raises UserError if rows differ in their ranks alone, since they would share one search."""
    for name, rows in Counter(map(study_name, cells)).items():
        if rows > 1:
            raise UserError(
                f"'{name}' names {rows} rows that differ in their ranks alone, and can be one search or "
                "allocation: give budgets in place of the ranks"
            )


def _complete(result: SearchResult | AllocationResult, records: dict[str, Record]) -> bool:
    """Whether there are final trials, and every trial of the result has a score."""
    points: list[Tried] = [*result.final]
    if isinstance(result, AllocationResult):
        points += [*result.points, *result.path]
    ids = [id_ for point in points for id_ in point.trials.values()]
    return bool(result.final) and all(id_ in records and records[id_].score is not None for id_ in ids)


def _planned(suite: Suite, device: str, part: Part, audience: Audience) -> Plan:
    """Returns the plan of the whole suite.

    If tasks or backbones outside the part are not available, returns the plan without them. Raises UserError
    as `make_plan` does for the part.
    """
    try:
        return make_plan(suite, device)
    except UserError as error:
        plan = make_plan(suite, device, part)
        audience.note(f"Only what is selected can be planned here: {error}")
        return plan


def _loaded(suite: Suite | Path | str) -> Suite:
    return suite if isinstance(suite, Suite) else load_suite(suite)


def _limited(suite: Suite, place: Place, executor: Executor, audience: Audience) -> Suite:
    """The suite with the place's `trial_timeout`, if it has one. Raises UserError if that is invalid."""
    if place.trial_timeout is not None:
        limit = validate(Limit, {"trial_timeout": place.trial_timeout}, "this run")
        suite = suite.model_copy(update={"trial_timeout": limit.trial_timeout})
    if suite.trial_timeout is not None and "trial_timeout" not in executor.options:
        audience.note(
            f"trial_timeout has no effect with --executor {place.executor}, which cannot end a trial."
        )
    return suite


def _with_search(
    suite: Suite, trials: int | None, seed: int | None, storage: str | None, out: Path | str | None
) -> Suite:
    """The suite with these values of `trials` and `seed` in its section `search`.

    Raises UserError if the suite has no search, allocation or pilot, and if a value is invalid or no section
    uses it. Also if a pilot cannot write to `out`.
    """
    if not suite.searched:
        raise UserError(f"suite '{suite.name}' has no section 'search', 'allocation' or 'pilot'")
    if suite.pilot is None and out is not None:
        raise UserError(f"--out: suite '{suite.name}' has no pilot; leave it out")
    if suite.pilot is not None:
        if out is None:
            raise UserError(
                f"--out: suite '{suite.name}' has a pilot; give the file for the suite that it chooses"
            )
        check_target(suite, Path(out))
    options = {"--trials": trials, "--sampler-seed": seed, "--storage": storage}
    if suite.search is None:
        if unused := [option for option, value in options.items() if value is not None]:
            raise UserError(
                f"{', '.join(unused)}: suite '{suite.name}' has no section 'search'; leave it out"
            )
        return suite
    values = {"trials": trials, "seed": seed}
    update = {field: value for field, value in values.items() if value is not None}
    search = validate(Search, suite.search.model_dump() | update, "--trials, --sampler-seed")
    return suite.model_copy(update={"search": search})


def _check_memory(trials: list[Trial], executor: Executor) -> None:
    # The nodes of a cluster check their own memory.
    if executor.on_this_machine:
        check_memory(trials, executor.slots)
