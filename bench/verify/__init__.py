"""Whether stored results are what they claim to be. Nothing is mended, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.sources.checking import check_cache
from bench.store.connect import BROKEN_STORE, shown_uri
from bench.store.pack.reading import Packed, open_pack
from bench.store.results import is_pack
from bench.store.source import Source
from bench.store.store import Store
from bench.verify.findings import Examined, Fault, Rerun, Unchecked, Verification
from bench.verify.plans import examine_plan
from bench.verify.rerun import ELSEWHERE, Candidate, chosen, rerun
from bench.verify.trials import examine
from bench.wire.words import Artifact, Kind, Status
from methods import UserError

__all__ = ["ELSEWHERE", "Fault", "Rerun", "Unchecked", "Verification", "verify"]


def verify(
    uri: str,
    names: Sequence[str] = (),
    *,
    reruns: int = 0,
    sample_seed: int = 0,
    tolerance: float = ELSEWHERE,
    caches: bool = False,
    watching: Callable[[str], None] = lambda what: None,
) -> Verification:
    """Checks experiments of the store at `uri`, and packs, whose files stand among the names.

    Without names all of the store is checked. So many `reruns` are chosen among the finished trials by
    `sample_seed`. Their scores may be `tolerance` apart where the hardware is not that of the trial. With
    `caches` every file of this machine's caches is read too. `watching` hears what is looked at. Raises
    UserError for what is not there, cannot be opened, or holds nothing to verify.
    """
    sources = _opened(uri, names)
    examined, candidates, looked_at, verified = [], [], 0, 0
    for source in sources:
        watching(f"reading the plan of {source.name}")
        if source.records(Kind.SUITE):
            examined.append(examine_plan(source))
        finished = [one for one in source.records() if one.status in (Status.FINISHED, Status.DUPLICATE)]
        for number, record in enumerate(finished, 1):
            watching(f"{source.name}: trial {number:,} of {len(finished):,}")
            found, trial = examine(source, record, _left_out(source))
            examined.append(found)
            looked_at += 1
            verified += not (found.faults or found.unchecked)
            if trial is not None and record.status == Status.FINISHED:
                candidates.append(Candidate(source, record, trial))
    if not looked_at and not caches:
        told = ", ".join(shown_uri(source.where) for source in sources) or shown_uri(uri)
        raise UserError(f"{told} holds no finished trial: there is nothing to verify")
    again = list(rerun(chosen(candidates, reruns, sample_seed), tolerance, watching))
    examined += [found for found, _ in again]
    cached_files = _check_caches(examined, watching) if caches else None
    return Verification(
        looked_at=looked_at,
        verified=verified,
        faults=[fault for found in examined for fault in found.faults],
        unchecked=[one for found in examined for one in found.unchecked],
        reruns=[told for _, told in again if told is not None],
        cached_files=cached_files,
        notes=[
            f"{source.where} holds no adapters: their files were not compared, their sizes not counted"
            for source in sources
            if Artifact.ADAPTER in _left_out(source)
        ],
    )


def _opened(uri: str, names: Sequence[str]) -> list[Source]:
    """Each experiment of the store, and each of every pack: what two packs hold of one is checked twice."""
    found: list[Source] = []
    for name in dict.fromkeys(names):
        found += open_pack(Path(name)) if is_pack(name) else [Store.existing(uri, name)]
    if names:
        return found
    try:
        return [store for store in Store.every(uri) if store.records(Kind.SUITE) or store.records()]
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"{uri} cannot be read: {error}")) from error


def _left_out(source: Source) -> set[Artifact]:
    """What a pack does not carry."""
    packed = isinstance(source, Packed) and not source.archive.manifest.adapters
    return {Artifact.ADAPTER} if packed else set()


def _check_caches(examined: list[Examined], watching: Callable[[str], None]) -> int:
    watching("reading the caches")
    cache, found = check_cache(), Examined("cache")
    for fault in cache.faults:
        found.broken("a file", "as it was made", fault)
    for folder in cache.unhashed:
        found.cannot(f"{folder}", "an earlier version wrote no hashes; they are taken when it is used next")
    examined.append(found)
    return cache.files
