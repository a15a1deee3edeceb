"""References: those trials of a suite that came from packs. New trials are compared with them.

References are found by their ids, even if a pack brought them into another experiment of the store. Since
results depend on the processor, a sample of the references runs again before new trials run, on the same
machine as these.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from tensorbench.execution.driver import Retries, pending
from tensorbench.execution.executor import Executor
from tensorbench.execution.perform import Event, Report
from tensorbench.execution.session import Session, suite_run, turn
from tensorbench.execution.watch import Limits
from tensorbench.methods import UserError
from tensorbench.plan.rows import Plan
from tensorbench.records.origin import StoredRerun, stored_rerun
from tensorbench.records.record import Progress, Record, latest
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.store.merging import refuse_contradictions
from tensorbench.store.store import Store

#: One in EVERY references of each row runs again, and at least LEAST.
EVERY, LEAST = 10, 2

#: The largest number of faults that are stored for a trial, and of trials that an error lists.
MOST_FAULTS, MOST_LISTED = 3, 10


def find_references(uri: str, name: str, ids: Collection[str]) -> dict[str, tuple[Store, Record]]:
    """Finds results of trials that packs brought into experiments other than `name`.

    Maps trial ids to the experiment's store and the trial's record. Failures other than divergence are left
    out, since their cause may lie in the other machine. Raises UserError if two packs have different scores
    of a trial.
    """
    found: dict[str, tuple[Store, Record]] = {}
    for store in Store.every(uri) if ids else ():
        if store.name == name:
            continue
        runs = latest(run for run in store.unpacked() if run.trial_id in ids)
        refuse_contradictions(name, {id_: run for id_, (_, run) in found.items()}, runs.values())
        for id_, run in runs.items():
            finished = run.status == Status.FINISHED
            if finished or (run.tag(Tag.FAILURE) == "diverged" and id_ not in found):
                found[id_] = store, run
    return found


def adopt(driver: Session, full_plan: Plan, plan: Plan, records: list[Record]) -> list[Record]:
    """Copies the references of a plan into the suite's own experiment, and returns its updated records.

    `plan` is the selected part of `full_plan`, and `records` are the experiment's present records. With the
    references, the experiment can be reported and packed by itself.
    """
    store = driver.store
    if find_references(store.uri, store.name, {trial.id for trial in pending(plan, records)}):
        # Imported late, as verification is below: most suites have no references.
        from tensorbench.store.pack.unpacking import copied

        with turn(driver, "adoption", "copies trials from packs"), suite_run(driver, full_plan) as run_id:
            # Another driver may have copied some meanwhile.
            waiting = pending(plan, store.records())
            by_store = defaultdict[Store, list[Record]](list)
            for source, run in find_references(store.uri, store.name, {t.id for t in waiting}).values():
                # A rerun for another suite does not count for this one.
                tags = {key: text for key, text in run.tags.items() if key != Tag.RERUN}
                by_store[source].append(replace(run, tags=tags))
            for source, runs in by_store.items():
                driver.notify(f"{len(runs):,} trials are taken from '{source.name}', which a pack brought.")
                for _ in copied(source, runs, store, run_id):
                    pass
        records = store.records()
    if adds_trials(full_plan, plan, records):
        run, count = store.records(RunKind.SUITE)[-1], str(len(references_of(full_plan, records)))
        if run.tag(Tag.REFERENCES) != count:
            store.tag(run.run_id, Tag.REFERENCES, count)
    return records


def adds_trials(full_plan: Plan, plan: Plan, records: Sequence[Record]) -> bool:
    """Whether `full_plan` combines trials from packs with trials that ran here or that `plan` will run."""
    references = references_of(full_plan, records)
    ran = {run.trial_id for run in records if run.settled} & {trial.id for trial in full_plan.trials}
    return bool(references) and not ran.union(trial.id for trial in plan.trials) <= references.keys()


def references_of(plan: Plan, records: Sequence[Record]) -> dict[str, Record]:
    """Returns the records of those of a plan's trials that came from packs, by trial id."""
    planned, counting = {trial.id for trial in plan.trials}, latest(records)
    return {
        id_: run for id_, run in counting.items() if id_ in planned and run.settled and run.tag(Tag.ORIGIN)
    }


def reran(run: Record) -> StoredRerun | None:
    """Returns the result of running a reference again here. None if it has not run again here.

    A rerun on another machine, which the pack reports, does not count.
    """
    rerun = stored_rerun(run)
    return rerun if rerun and rerun.run_id == run.run_id else None


def to_run_again(full_plan: Plan, plan: Plan, records: Sequence[Record]) -> dict[str, Record]:
    """Returns the references that must run again before new trials of `plan`, by trial id.

    `plan` is a part of `full_plan`. The sample comes from all rows of `full_plan` on the tasks and backbones
    of `plan`. References that already ran again count towards the sample. The sample takes the lowest run ids
    of each row. The store draws these ids at random, so every start takes the same sample, and the author of
    a pack could not foresee it.
    """
    references, chosen = references_of(full_plan, records), dict[str, Record]()
    settings = {(row.task, row.backbone) for row in plan.rows}
    for row in full_plan.rows:
        if (row.task, row.backbone) not in settings:
            continue
        own = [references[id_] for id_ in {*row.trials.values()} & references.keys()]
        own.sort(key=lambda run: (reran(run) is None, run.run_id))
        count = max(LEAST, -(-len(own) // EVERY))
        chosen |= {run.trial_id: run for run in own[:count] if not reran(run)}
    return chosen


def run_again(
    plan: Plan,
    references: Mapping[str, Record],
    records: Sequence[Record],
    store: Store,
    executor: Executor,
    report: Report,
) -> None:
    """Runs references again, and stores each new result in the tag `rerun` of the reference's run.

    `records` are the store's records. Lost trials run again, as the driver runs them. Raises UserError if a
    reference cannot run here, for instance because memory runs out.
    """
    from tensorbench.checks.verify.findings import Examined
    from tensorbench.checks.verify.rerun import Candidate, compared

    waiting = [trial for trial in plan.trials if trial.id in references]
    limits, retries = Limits(plan.suite.trial_timeout, plan, records), Retries()
    left = len(waiting)
    provenance: dict[str, dict[str, str]] = {}
    progress: defaultdict[str, list[Progress]] = defaultdict(list)
    ended: list[Event] = []

    def receive(event: Event) -> None:
        if event.provenance is not None:
            provenance[event.trial.id] = event.provenance
            executor.limit(event.trial, limits.begin(event.trial, event.provenance))
        elif event.progress is not None:
            progress[event.trial.id].append(event.progress)
        elif event.ending is not None:
            ended.append(event)
        report(event)

    while left:
        for trial in [each for each in waiting if retries.due(each.id)]:
            if executor.free:
                waiting.remove(trial)
                executor.submit(trial)
        if len(waiting) == left:
            # Nothing runs, and a step might return at once.
            time.sleep(0.2)
            continue
        executor.step(receive)
        while ended:
            event = ended.pop()
            trial, ending, run = event.trial, event.ending, references[event.trial.id]
            assert ending is not None
            limits.learn(trial, ending)
            if ending.status == Status.KILLED and retries.another(trial.id):
                progress.pop(trial.id, None)
                waiting.append(trial)
                continue
            left -= 1
            if ending.failure and ending.tag(Tag.FAILURE) != "diverged":
                raise UserError(
                    f"trial {trial.id} ({run.name}) came from a pack and cannot run again here: "
                    f"{ending.failure}; --no-rerun leaves this out, and the report says so"
                )
            findings, now = Examined(store.name, run), provenance[trial.id]
            result = compared(Candidate(findings, store, run, trial), ending, progress[trial.id], now)
            faults = [f"{each.what}: stored {each.stored}, now {each.recomputed}" for each in findings.faults]
            stored = StoredRerun(
                run_id=run.run_id,
                score=result.score,
                allowed=result.allowed,
                device=now["gpu"] or now["cpu"],
                incomparable=result.incomparable,
                faults=tuple(faults[:MOST_FAULTS]),
            )
            store.tag(run.run_id, Tag.RERUN, stored.model_dump_json())


def refuse_other_results(plan: Plan, records: Sequence[Record], name: str) -> None:
    """Raises UserError if references gave other results when they ran again. The error lists remedies."""
    runs = references_of(plan, records).values()
    reruns = [(run, rerun) for run in runs if (rerun := reran(run))]
    apart = [
        f"  trial {run.trial_id} ({run.name}): {_score(run.score)} on "
        f"{run.provenance.get('gpu') or run.provenance.get('cpu', 'unknown hardware')}, now "
        f"{_score(rerun.score)} on {rerun.device}; {'; '.join(rerun.faults)}"
        for run, rerun in reruns
        if rerun.faults
    ]
    if not apart:
        return
    more = f"\n  and {len(apart) - MOST_LISTED} more" if len(apart) > MOST_LISTED else ""
    raise UserError(
        f"{len(apart)} of {len(reruns)} trials from packs gave other results when they ran again here, so "
        "that new trials cannot be compared with them; none was started:\n"
        + "\n".join(apart[:MOST_LISTED])
        + f"{more}\nRun all trials here, in a store without the pack (--store sqlite:///own.db), or the new "
        f"ones on hardware like that of the pack. `tensorbench verify {name} --rerun 10` compares more. "
        "--no-rerun goes on in spite of this, and the report says so."
    )


def _score(score: float | None) -> str:
    return "failed" if score is None else f"{score:.4f}"
