"""Whether stored results are what they claim to be. Nothing is mended, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.sources.checking import check_cache
from bench.store.access import Access, is_foreign
from bench.store.connect import BROKEN_STORE, shown_uri
from bench.store.opening import is_pack
from bench.store.pack.reading import open_pack
from bench.store.source import Source
from bench.store.store import Store
from bench.verify.examples import Splits
from bench.verify.findings import Examined, Fault, Rerun, Unchecked, Verification
from bench.verify.labels import labels_of
from bench.verify.plans import examine_plan
from bench.verify.rerun import Candidate, chosen, run_again
from bench.verify.trials import examine
from bench.wire.words import Kind, Status
from methods import UserError

__all__ = ["Fault", "Rerun", "Unchecked", "Verification", "verify"]


def verify(
    uri: str,
    names: Sequence[str] = (),
    *,
    reruns: int = 0,
    sample_seed: int = 0,
    tolerance: float | None = None,
    caches: bool = False,
    opened: Sequence[str] = (),
    watching: Callable[[str], None] = lambda what: None,
) -> Verification:
    """Checks experiments of the store at `uri`, and packs, whose files stand among the names.

    Without names all of the store is checked. So many `reruns` are chosen among the finished trials by
    `sample_seed`. Their scores may be `tolerance` apart where the hardware is not that of the trial; None
    allows 0.02, or what five examples are worth where that is more. With `caches` every file of this
    machine's caches is read too. What came in packs opens no file and asks no hub for what it names, but in
    the folders of `opened`, and the hub where "hub" is among them. `watching` hears what is looked at. Raises
    UserError for what is not there, cannot be opened, or holds nothing to verify.
    """
    access, splits = Access(opened), Splits()
    sources = _sources(uri, names)
    plans: list[Examined] = []
    trials: list[Examined] = []
    candidates: list[Candidate] = []
    for source in sources:
        labels = labels_of(source)
        watching(f"reading the plan of {source.name}")
        if source.records(Kind.SUITE):
            plans.append(examine_plan(source, labels, access if _has_foreign(source) else None))
        finished = [run for run in source.records() if run.status in (Status.FINISHED, Status.DUPLICATE)]
        for number, record in enumerate(finished, 1):
            watching(f"{source.name}: trial {number:,} of {len(finished):,}")
            findings, trial = examine(source, record, labels, access, splits)
            trials.append(findings)
            if trial is not None and record.status == Status.FINISHED:
                candidates.append(Candidate(findings, source, record, trial))
    splits.compare()
    if not trials and not caches:
        places = ", ".join(shown_uri(source.where) for source in sources) or shown_uri(uri)
        raise UserError(f"{places} holds no finished trial: there is nothing to verify")
    reran = list(run_again(chosen(candidates, reruns, sample_seed), tolerance, access, watching))
    cache, cached_files = _check_caches(watching) if caches else (None, None)
    examined = [*plans, *trials, *([cache] if cache else [])]
    bare = sum(findings.without_adapter for findings in trials)
    return Verification(
        looked_at=len(trials),
        verified=sum(findings.ok for findings in trials),
        faults=[fault for findings in examined for fault in findings.faults],
        unchecked=[run for findings in examined for run in findings.unchecked],
        reruns=reran,
        cached_files=cached_files,
        notes=[f"{bare:,} trials were packed without their adapters, which were not checked"] if bare else [],
    )


def _has_foreign(source: Source) -> bool:
    """Whether anything of an experiment, whose plan is then of several, came in a pack."""
    return any(
        is_foreign(source, record) for kind in (Kind.SUITE, Kind.TRIAL) for record in source.records(kind)
    )


def _sources(uri: str, names: Sequence[str]) -> list[Source]:
    """Each experiment of the store, and each of every pack: what two packs hold of one is checked twice."""
    sources: list[Source] = []
    for name in dict.fromkeys(names):
        sources += open_pack(Path(name)) if is_pack(name) else [Store.existing(uri, name)]
    if names:
        return sources
    try:
        return [store for store in Store.every(uri) if store.records(Kind.SUITE) or store.records()]
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"{uri} cannot be read: {error}")) from error


def _check_caches(watching: Callable[[str], None]) -> tuple[Examined, int]:
    """What is found of the caches, and how many files were read."""
    watching("reading the caches")
    cache, findings = check_cache(), Examined("cache")
    for fault in cache.faults:
        findings.broken("a file", "as it was made", fault)
    for folder in cache.unhashed:
        findings.cannot(
            f"{folder}", "an earlier version wrote no hashes; they are taken when it is used next"
        )
    return findings, cache.files
