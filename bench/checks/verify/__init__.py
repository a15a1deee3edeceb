"""Verifies stored results: recomputes values wherever possible, and compares them. Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from tensorbench.checks.verify.examples import Splits
from tensorbench.checks.verify.findings import Examined, Fault, Rerun, Unchecked, Verification
from tensorbench.checks.verify.plans import examine_plan
from tensorbench.checks.verify.rerun import Candidate, chosen, run_again
from tensorbench.checks.verify.trials import check_failed, check_selected, examine
from tensorbench.machine.cache import check_cache
from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.records.record import latest
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.reports.units import many
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.access import Access, is_foreign
from tensorbench.store.addresses import shown_uri
from tensorbench.store.connect import BROKEN_STORE
from tensorbench.store.opening import open_results
from tensorbench.store.source import Source
from tensorbench.store.store import Store

__all__ = ["Fault", "Rerun", "Unchecked", "Verification", "verify"]


def verify(
    *experiments: str,
    store: str = DEFAULT_STORE,
    reruns: int = 0,
    sample_seed: int = 0,
    tolerance: float | None = None,
    caches: bool = False,
    opened: Sequence[str] = (),
    watching: Callable[[str], None] = lambda what: None,
) -> Verification:
    """Verifies experiments of a store, and packs given by their files.

    Args:
        experiments: Names of experiments and files of packs. Without any, the whole store is verified.
        store: The address of the store.
        reruns: The number of finished trials to run again. `sample_seed` decides which.
        tolerance: The largest accepted difference between the scores of a trial that is run again on other
            hardware, or on a GPU without a deterministic recipe. If None, it is 0.02 or the share of five
            examples, whichever is larger; for scores with a unit, this share of the stored score.
        caches: Whether to check every file of this machine's caches as well.
        opened: The folders that trials from packs may open, or "hub" for the Hugging Face hub.
        watching: Called with a description of each check.

    Raises UserError for a negative number of reruns, and if a name does not exist or cannot be opened. Also
    raises it if there is no finished trial at all and `caches` is False.
    """
    if reruns < 0:
        raise UserError(f"reruns should be at least 0 (got {reruns})")
    access, splits = Access(opened), Splits()
    try:
        stored = () if experiments else Store.every(store)
        every = [each for each in stored if each.records(RunKind.SUITE) or each.records()]
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"{store} cannot be read: {error}")) from error
    sources: Sequence[Source] = open_results(store, experiments) if experiments else every
    plans: list[Examined] = []
    trials: list[Examined] = []
    failures: list[Examined] = []
    candidates: list[Candidate] = []
    notes: list[str] = []
    # A plan's trials may have run in another of the experiments.
    settled = {run.trial_id for source in sources for run in source.records() if run.settled}
    for source in sources:
        watching(f"reading the plan of {source.name}")
        if suites := source.records(RunKind.SUITE):
            # Any run from a pack may have brought the plan.
            foreign = any(is_foreign(source, run) for run in (*suites, *source.records()))
            plans.append(examine_plan(source, access if foreign else None, settled))
        finished = [run for run in source.records() if run.status in (Status.FINISHED, Status.DUPLICATE)]
        #: Each run's validation losses by epoch.
        losses: dict[str, dict[float, float]] = {record.run_id: {} for record in finished}
        points = source.curves(Measure.VALIDATION_LOSS, losses)
        for run_id, epoch, loss in points[["run_id", "step", "value"]].itertuples(index=False):
            losses[run_id][epoch] = loss
        for number, record in enumerate(finished, 1):
            watching(f"{source.name}: trial {number:,} of {len(finished):,}")
            findings, trial = examine(source, record, access, splits)
            check_selected(findings, record, losses[record.run_id])
            trials.append(findings)
            if trial is not None and record.status == Status.FINISHED:
                candidates.append(Candidate(findings, source, record, trial))
        failed = [run for run in latest(source.records()).values() if run.status == Status.FAILED]
        for record in failed:
            failures.append(findings := Examined(source.name, record))
            check_failed(findings, source, record)
        if failed:
            counted = Counter(run.tag(Tag.FAILURE) or "no reason" for run in failed)
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counted.items())
            notes.append(f"{source.name}: {many(len(failed), 'trial')} failed: {reasons}")
    splits.compare()
    if not trials and not caches:
        places = ", ".join(source.where for source in sources) or shown_uri(store)
        raise UserError(f"{places} holds no finished trial: there is nothing to verify")
    reran = list(run_again(chosen(candidates, reruns, sample_seed), tolerance, access, watching))
    examined = [*plans, *trials, *failures]
    cached_files: int | None = None
    if caches:
        watching("reading the caches")
        (cached_files, faults), findings = check_cache(), Examined("cache")
        for fault in faults:
            findings.broken("a file", "as it was made", fault)
        examined = [*examined, findings]
    bare = sum(findings.without_adapter for findings in trials)
    return Verification(
        looked_at=len(trials),
        verified=sum(findings.ok for findings in trials),
        faults=[fault for findings in examined for fault in findings.faults],
        unchecked=[run for findings in examined for run in findings.unchecked],
        reruns=reran,
        cached_files=cached_files,
        notes=[note for findings in plans for note in findings.notes]
        + notes
        + [f"adapters of {many(bare, 'trial')} were not packed, so they were not checked"] * bool(bare),
    )
