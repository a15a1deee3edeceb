"""One door to results: experiments of a store, packs, and both at once, as `Source` has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from bench.store import DEFAULT_STORE
from bench.store.joined import Joined
from bench.store.pack.reading import open_pack
from bench.store.source import Source
from bench.store.store import Store
from bench.wire.pack import ENDING
from methods import UserError


def is_pack(name: str) -> bool:
    """Whether what a user named is the file of a pack. Everything else is an experiment."""
    return name.endswith(ENDING)


def open_results(uri: str, names: Iterable[str]) -> list[Source]:
    """The experiments that these names stand for: names in the store at `uri`, or files of packs.

    A pack may hold several. What several of the names hold of one experiment is read as one. The store is
    opened only where a name is no pack's. Raises UserError for an experiment that is not there, a pack that
    is refused (`bench.store.pack.reading.open_pack`), and parts that contradict each other.
    """
    parts: defaultdict[str, list[Source]] = defaultdict(list)
    for name in dict.fromkeys(names):
        found = open_pack(Path(name)) if is_pack(name) else [Store.existing(uri, name)]
        for source in found:
            parts[source.name].append(source)
    return [some[0] if len(some) == 1 else Joined(some) for some in parts.values()]


def open_packs(files: Iterable[Path]) -> list[Source]:
    """The same for packs alone. Raises UserError for a name that is no pack's too."""
    names = [str(file) for file in files]
    if other := next((name for name in names if not is_pack(name)), None):
        raise UserError(f"{other} is no pack: the name of one ends with {ENDING}")
    return open_results(DEFAULT_STORE, names)
