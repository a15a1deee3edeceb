"""Runs suites, including their searches, allocations and pilots, for Python and the command line."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorbench.backbones import describe, load
from tensorbench.backbones.inputs import TextInput
from tensorbench.execution import make_executor
from tensorbench.execution.driver import execute, failures, patiently, pending
from tensorbench.execution.estimate import check_disk, check_memory, time_advice
from tensorbench.execution.executor import Executor
from tensorbench.execution.perform import Report
from tensorbench.execution.place import HERE, Place
from tensorbench.execution.session import Session, begin_suite, session, suite_run, turn
from tensorbench.machine.outputs import prepare_plot
from tensorbench.machine.table import ShowsOverview, Table
from tensorbench.methods import UserError
from tensorbench.methods.errors import check_kind
from tensorbench.methods.validation import validate
from tensorbench.plan.choosing import Search
from tensorbench.plan.make import make_plan
from tensorbench.plan.pairs import EVERYTHING, Part
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Limit, Suite, load_suite
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Record, latest
from tensorbench.records.text import message
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.run.references import (
    adds_trials,
    adopt,
    references_of,
    refuse_other_results,
    run_again,
    to_run_again,
)
from tensorbench.run.search.chooser import Batch, Choices
from tensorbench.run.search.ranks import choosers_of
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.changes import changed_trials
from tensorbench.store.commits import held
from tensorbench.store.store import Store
from tensorbench.tasks import prepare
from tensorbench.tasks.plain_text import plain_tokens

if TYPE_CHECKING:
    # Statistics take a second to import, and trials need none.
    from tensorbench.reports.analysis import Analysis
    from tensorbench.reports.summary import Summary


class Audience:
    """Receives the events of a run. The methods here do nothing. A subclass may print the events."""

    def opened(self, sent: int, closed: int) -> None:
        """Called when the store has been opened.

        Earlier processes may have left records that they could not store, and unfinished runs. `sent` is the
        number of such records that are now in the store, and `closed` the number of such runs closed.
        """

    def starting(self, plan: Plan, waiting: int, device: str, references: int) -> None:
        """Called before the trials of a plan run.

        `waiting` is the number of trials that remain to run, and `references` the number of trials that came
        from packs.
        """

    def watch(self, plan: Plan, count: int, slots: int) -> AbstractContextManager[Report]:
        """Makes a context in which `count` trials of a plan are prepared and run on `slots` workers.

        The context is entered before `starting` is called. It yields a function, which is called with every
        event.
        """
        return nullcontext(lambda event: None)

    def trying(self, title: str, trials: int, following: int) -> None:
        """Called before the trials of a search or a pilot, and before trials from packs that run again.

        `title` says what these trials are for, `trials` is their number, and `following` the number of trials
        that will depend on their results.
        """

    def chosen(self, choices: Choices) -> None:
        """Called with the choices of a search, an allocation or a pilot."""

    def note(self, text: str) -> None:
        """Called with a note that the user should read."""


@dataclass(frozen=True, repr=False)
class SuiteRun(ShowsOverview):
    """The plan that `run_suite` has run, and a summary of its results."""

    #: The selected part of the suite's plan.
    plan: Plan
    summary: Summary
    #: The sentences that sum up the comparison of a complete suite. Empty if only a part of it was selected.
    answers: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every trial of the selected part has finished, and no look waits for other trials."""
        return self.summary.complete

    def overview(self) -> Table:
        """The scores of all rows as a table, with the notes that the command line prints."""
        return self.summary.overview(self.plan.suite.name)


@dataclass(frozen=True)
class SearchRun:
    """The results of `search_suite`: the choices, and the suites that were written with them.

    A pilot or an allocation makes one suite. A search makes one for each task and backbone.
    """

    choices: tuple[Choices, ...]
    #: The files of the suites with complete choices.
    suites: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        """Whether all choices could be made."""
        return all(choices.complete for choices in self.choices)


@dataclass(frozen=True)
class _Work:
    """Runs trials for one suite, with a driver, its executor and its audience."""

    driver: Session
    executor: Executor
    audience: Audience

    @property
    def store(self) -> Store:
        return self.driver.store

    def run(
        self, full_plan: Plan, plan: Plan, records: list[Record], *, retry_failed: bool, rerun: bool
    ) -> list[Record]:
        """Runs the trials of a plan, the selected part of `full_plan`. Returns the store's updated records.

        `records` are the store's records before the run. If `retry_failed` is set, only the failed trials in
        `records` run again. A failed trial that another driver has already retried is left out, even if it
        failed again. `rerun` says whether a sample of the trials from packs runs again first (see
        `tensorbench.run.references`).
        """
        store, executor = self.store, self.executor
        failed = failures(records) if retry_failed else {}
        references = len(references_of(plan, records))
        # The suite's own trials may have run before the pack was unpacked.
        if rerun and adds_trials(full_plan, plan, records):
            records = self._run_references(full_plan, plan, records)
        begun: set[str] = set()
        told = 0
        while True:
            due, looks = self.due(full_plan, plan, records)
            for look in looks[told:]:
                self.audience.note(look)
            told = len(looks)
            if full_plan.sequential and not retry_failed:
                adopted = adopt(self.driver, full_plan, due, records)
                if len(adopted) > len(records):
                    # They may complete a look.
                    records = adopted
                    continue
            trials = [t for t in due.trials if t.id in failed] if retry_failed else pending(due, records)
            trials = [trial for trial in trials if trial.id not in begun]
            if not trials or (begun and retry_failed):
                break
            starting = partial(self.audience.starting, plan, len(trials), executor.device, references)
            self._execute(full_plan, plan, trials, starting, retried=failed, records=records)
            records = patiently(store, store.records)
            begun |= {trial.id for trial in trials}
        if not begun:
            self.audience.starting(plan, 0, executor.device, references)
            store.end(begin_suite(self.driver, full_plan), Status.FINISHED)
        return records

    def due(self, full_plan: Plan, plan: Plan, records: list[Record]) -> tuple[Plan, Sequence[str]]:
        """Returns the plan with the trials that run by now, and the looks that were made, in words.

        They are all trials, or those that the looks of a sequential suite, `full_plan`, allow.
        """
        if not full_plan.sequential:
            return plan, ()
        from tensorbench.reports.summary import stored_experiment

        experiment = stored_experiment(self.store, full_plan.stored(), records)
        ids = {id_ for row in experiment.rows for id_ in row.trials.values()}
        trials = tuple(trial for trial in plan.trials if trial.id in ids)
        return replace(plan, trials=trials), [*map(str, experiment.looks)]

    def _execute(
        self, full_plan: Plan, plan: Plan, trials: list[Trial], announce: Callable[[], None], **options: Any
    ) -> None:
        with self._prepared(plan, trials, announce) as report:
            execute(full_plan, trials, self.driver, self.executor, report, **options)

    @contextmanager
    def _prepared(self, plan: Plan, trials: list[Trial], announce: Callable[[], None]) -> Iterator[Report]:
        """Makes a context in which trials of a plan can run. Yields the function to call with every event."""
        executor = self.executor
        check_disk(plan, trials, self.store)
        executor.fit(trials)
        # The nodes of a cluster check their own memory.
        if executor.on_this_machine:
            check_memory(trials, executor.slots)
        with self.audience.watch(plan, len(trials), executor.slots) as report:
            executor.prepare(trials, report, plan.suite.trial_timeout)
            # Announce the trials when nothing can prevent them any more.
            announce()
            yield report

    def _run_references(self, full_plan: Plan, plan: Plan, records: list[Record]) -> list[Record]:
        """Runs a sample of the trials from packs again. Raises UserError if they give other results here."""
        if to_run_again(full_plan, plan, records):
            with turn(self.driver, "reruns", "runs trials from packs again"):
                # Another driver may have run some meanwhile.
                records = self.store.records()
                if chosen := to_run_again(full_plan, plan, records):
                    trials = [trial for trial in full_plan.trials if trial.id in chosen]
                    title = "Trials from packs that run again before new ones"
                    announce = partial(self.audience.trying, title, len(chosen), 0)
                    with self._prepared(full_plan, trials, announce) as report:
                        run_again(full_plan, chosen, records, self.store, self.executor, report)
            records = self.store.records()
        refuse_other_results(full_plan, records, self.store.name)
        return records

    def keep_answer(self, plan: Plan, analysis: Analysis) -> tuple[str, ...]:
        """Stores the sentences that sum up a complete suite in the note of its run, and returns them.

        Also stores the differences between methods as metrics of the run. If there is no summary, tells the
        audience why and returns an empty tuple.
        """
        from tensorbench.reports.summary import suite_answer

        try:
            answer = suite_answer(analysis)
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

    def run_batch(self, batch: Batch, full_plan: Plan, run_id: str, *, retry_failed: bool) -> list[Record]:
        """Runs the trials of a chooser's batch that have no result, nested in the suite's run `run_id`.

        Returns all records of its trials, old to new. Raises UserError if a trial has no result, since a
        choice without it could differ from the choice with it.
        """
        trials = {trial.id: trial for trial in batch.trials}
        plan = Plan(full_plan.suite, tuple(batch.rows), tuple(trials.values()), tuple(batch.cells))
        stored = patiently(self.store, self.store.records)
        failed = failures(stored) if retry_failed else {}
        waiting = [*pending(plan, stored), *(trials[id_] for id_ in trials if id_ in failed)]
        self.driver.warn_of_changed_plugins(record for record in stored if record.trial_id in trials)
        if waiting:
            trying = partial(self.audience.trying, batch.title, len(waiting), batch.following)
            tags = {Tag.PHASE: "search"}
            self._execute(
                plan, plan, waiting, trying, parent=run_id, tags=tags, retried=failed, records=stored
            )
            stored = patiently(self.store, self.store.records)
        records = [record for record in stored if record.trial_id in trials]
        if lost := trials.keys() - {record.trial_id for record in records if record.settled}:
            raise UserError(
                f"trial {min(lost)} has no result: it was lost with its worker, or its record waits for the "
                "store; start the same command again"
            )
        return records


def run_suite(
    suite: Suite | Path | str,
    *,
    store: str = DEFAULT_STORE,
    place: Place = HERE,
    part: Part = EVERYTHING,
    retry_failed: bool = False,
    rerun: bool = True,
    audience: Audience | None = None,
) -> SuiteRun:
    """Runs the trials of a suite and stores their results in MLflow.

    A sequential suite goes on from look to look, and stops methods that have their verdict.

    Trials with a result do not run again, so a run that was stopped continues where it was. That includes
    trials from packs in any experiment of the store. Before new trials are compared with trials from packs, a
    sample of the latter runs again: one in ten, and at least two for each method and task.

    Args:
        suite: A suite, or the path of its file.
        store: The address of the MLflow store.
        place: Where trials run.
        part: Which part of the suite runs. By default everything.
        retry_failed: Whether to run the failed trials again, and no others.
        rerun: Whether a sample of the trials from packs runs again. If it does not, the report says so.
        audience: Receives the events of the run. None: events are not reported.

    Raises:
        UserError: before any new trial runs, if the suite cannot run as requested, or if trials from packs
            give other results here. A trial that fails raises no error: the reason is stored.
    """
    audience = audience or Audience()
    with make_executor(place) as executor:
        loaded = _limited(_loaded(suite, store, audience.note), place, executor, audience)
        full_plan = _planned(loaded, executor.device, part, audience)
        plan = full_plan.select(part)  # refuses a part that the suite lacks before a store is made
        if full_plan.sequential and full_plan.partial:
            raise UserError(
                "tuning.looks: a look compares methods on all tasks and backbones of the suite, and some "
                "cannot be planned here: fetch them, or leave looks out"
            )
        opened = Store.create(store, loaded.name)
        if full_plan.sequential and pending(full_plan, opened.records()):
            from tensorbench.run.operating import without_verdict
            from tensorbench.run.power import powers

            if warning := without_verdict(full_plan, powers(full_plan, store)):
                audience.note(warning)
        with session(opened, audience.note) as driver:
            audience.opened(driver.sent, driver.closed)
            if loaded.searched:
                audience.note(
                    f"'{loaded.name}' also has {' and '.join(loaded.searched)}, which this does not run: "
                    "`tensorbench search` (`tensorbench.search_suite`) does."
                )
            work = _Work(driver, executor, audience)
            records = opened.records()
            if not retry_failed:
                due, _ = work.due(full_plan, plan, records)
                records = adopt(driver, full_plan, due, records)
                for note in changed_trials(full_plan, plan, opened, records):
                    audience.note(note)
                if executor.on_this_machine and (long := time_advice(plan, records, executor.device)):
                    audience.note(long)
            stored = latest(records)
            driver.warn_of_changed_plugins(stored[t.id] for t in plan.trials if t.id in stored)
            records = work.run(full_plan, plan, records, retry_failed=retry_failed, rerun=rerun)
            from tensorbench.reports.summary import summarise

            stored_plan = full_plan.stored()
            summary = summarise(opened, plan.stored(), records, full_plan=stored_plan)
            answers: tuple[str, ...] = ()
            due, _ = work.due(full_plan, full_plan, records)
            if not (full_plan.partial or pending(due, records)):
                whole = summarise(opened, stored_plan, records) if part.choices else summary
                answers = work.keep_answer(full_plan, whole.analysis)
            # Readers would take the answers of the whole suite for those of the part in the table.
            return SuiteRun(plan, summary, () if part.choices else answers)


def search_suite(
    suite: Suite | Path | str,
    *,
    out: Path | str | None = None,
    plot: Path | None = None,
    store: str = DEFAULT_STORE,
    place: Place = HERE,
    part: Part = EVERYTHING,
    trials: int | None = None,
    sampler_seed: int | None = None,
    retry_failed: bool = False,
    audience: Audience | None = None,
) -> SearchRun:
    """Runs a suite's `search`, `allocation` or `pilot`, and writes a suite with the choices.

    `run_suite` runs the written suite. A search adds rows with the chosen ranks to those with the heuristic's
    ranks, an allocation adds a row for each allocation, and a pilot fills in rates and epochs. An allocation
    runs no trials. A search derives its proposals from stored trials, so a search that was stopped continues
    where it was, and several processes can share its trials.

    Args:
        suite: A suite, or the path of its file.
        out: The file for the suite with the choices. None: NAME_chosen.yaml beside the suite's file, or in
            the working folder if the suite has none. If a search has several tasks or backbones, the name of
            each file ends with the names of its task and backbone.
        plot: A .png, .svg or .pdf file in which a search draws scores by rank and the importance of modes.
        store: The address of the MLflow store.
        place: Where trials run.
        part: Which part of the suite is used. By default everything.
        trials: Replaces `trials` of the section `search`.
        sampler_seed: Replaces `seed` of the section `search`.
        retry_failed: Whether to run failed trials again.
        audience: Receives the events of the run. None: events are not reported.

    Raises:
        UserError: before any trial runs, if the suite cannot run as requested.
    """
    check_kind("part", part, Part, "a Part, such as Part(methods=['lora'])")
    if part.seeds or part.studies:
        raise UserError("seeds, studies: a search has its own seeds; leave them out of the part")
    audience = audience or Audience()
    loaded = _with_search(_loaded(suite, store, audience.note), trials, sampler_seed, plot)
    if loaded.pilot is not None and part.choices:
        raise UserError(
            f"a pilot chooses for the whole suite, else its other rows have no centre; leave out {part}"
        )
    if plot is not None:
        prepare_plot(plot)
    if out is None:
        folder = Path() if isinstance(suite, Suite) else Path(suite).parent
        out = folder / f"{loaded.name}_chosen.yaml"
    with make_executor(place) as executor:
        limited = _limited(loaded, place, executor, audience)
        full_plan = _planned(limited, executor.device, part, audience)
        plan = full_plan.select(part)
        choosers = choosers_of(plan)
        targets = {name: _target(Path(out), name) for name in choosers}
        for name, chooser in choosers.items():
            chooser.check_target(targets[name])
        choices, written = [], []
        with ExitStack() as opened:
            results: Callable[[Batch], list[Record]] | None = None
            if loaded.pilot or loaded.search:
                driver = opened.enter_context(session(Store.create(store, loaded.name), audience.note))
                run_id = opened.enter_context(suite_run(driver, full_plan))
                audience.opened(driver.sent, driver.closed)
                work = _Work(driver, executor, audience)
                results = partial(
                    work.run_batch, full_plan=full_plan, run_id=run_id, retry_failed=retry_failed
                )
            for name, chooser in choosers.items():
                made = chooser.run(results)
                choices.append(made)
                audience.chosen(made)
                for missing in made.missing:
                    audience.note(missing)
                if made.complete:
                    chooser.write(made, targets[name])
                    written.append(targets[name])
                    audience.note(f"The suite is in {targets[name]}.")
    if plot is not None:
        # Imported after the trials, since it takes a second.
        from tensorbench.reports.figures.choice import draw

        draw([choice for made in choices for choice in made.ranks], plot)
        audience.note(f"Drawn in {plot}.")
    return SearchRun(tuple(choices), tuple(written))


def fetch(
    suite: Suite | Path | str,
    *,
    store: str = DEFAULT_STORE,
    notify: Callable[[str], None] = lambda step: None,
) -> Mapping[str, str]:
    """Downloads everything that a suite needs, so that it can run on machines without a network.

    If the suite has an experiment in the store, the hub commits stored there are used. Every backbone is
    loaded and every data set is prepared, so that errors show now. `notify` is called with each step and
    note. Returns the commits of the suite's hub repositories, as in `Suite.commits`. Raises UserError if a
    backbone or a data set is not available.
    """
    loaded = _loaded(suite, store, notify)
    notify("its plan …")
    try:
        plan = make_plan(loaded)
    except UserError:
        # For a precision that this machine lacks, such as tf32.
        plan = make_plan(loaded, "cuda")
    infos = {}
    for spec in dict.fromkeys(trial.backbone for trial in plan.trials):
        infos[spec] = describe(spec)
        notify(f"weights of {infos[spec].name} …")
        load(spec)
        gc.collect()
    for trial in {(trial.task.task, trial.backbone): trial for trial in plan.trials}.values():
        row, info = trial.task, infos[trial.backbone]
        notify(f"data of {row.task} for {info.name} …")
        task = row.lookup()
        model_input = row.input(info.input, task)
        if trial.forgetting is not None and isinstance(model_input, TextInput):
            plain_tokens(trial.forgetting, model_input)
        prepare(task, model_input, row.max_tokens, *row.sizes, split_seed=row.split_seed(trial.seed))
        gc.collect()
    return loaded.commits


def _target(out: Path, name: str) -> Path:
    """Returns the file for the suite of a chooser. `name` is the chooser's key in `choosers_of`."""
    return out.with_stem(out.stem + re.sub(r"[^A-Za-z0-9_.-]+", "-", f"_{name}")) if name else out


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


def _loaded(suite: Suite | Path | str, store: str, notify: Callable[[str], None]) -> Suite:
    """Loads a suite. If it has an experiment in the store, the hub commits stored there are used."""
    loaded, notes = held(suite if isinstance(suite, Suite) else load_suite(suite), store)
    for note in notes:
        notify(note)
    return loaded


def _limited(suite: Suite, place: Place, executor: Executor, audience: Audience) -> Suite:
    """Returns the suite with the `trial_timeout` of `place`, or with its own if `place` has none.

    Raises UserError for an invalid timeout. Notes if the executor cannot end a trial, so that no timeout
    applies.
    """
    if place.trial_timeout is not None:
        limit = validate(Limit, {"trial_timeout": place.trial_timeout}, "this run")
        suite = suite.model_copy(update={"trial_timeout": limit.trial_timeout})
    if suite.trial_timeout is not None and "trial_timeout" not in executor.options:
        audience.note(
            f"trial_timeout has no effect with --executor {place.executor}, which cannot end a trial."
        )
    return suite


def _with_search(suite: Suite, trials: int | None, seed: int | None, plot: Path | None) -> Suite:
    """Returns the suite with these values of `trials` and `seed` in its section `search`.

    None keeps the suite's value. Raises UserError if the suite has no search, allocation or pilot, if a value
    is invalid, and if a value or `plot` is given although no search runs now.
    """
    if not suite.searched:
        raise UserError(f"suite '{suite.name}' has no section 'search', 'allocation' or 'pilot'")
    options = {"--trials": trials, "--sampler-seed": seed, "--plot": plot}
    if suite.search is None or suite.pilot is not None:
        if unused := [option for option, value in options.items() if value is not None]:
            why = "a pilot before its search" if suite.search else "no section 'search'"
            raise UserError(f"{', '.join(unused)}: suite '{suite.name}' has {why}; leave it out")
        return suite
    values = {"trials": trials, "seed": seed}
    update = {field: value for field, value in values.items() if value is not None}
    search = validate(Search, suite.search.model_dump() | update, "--trials, --sampler-seed")
    return suite.model_copy(update={"search": search})
