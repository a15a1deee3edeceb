"""One door to results: experiments of a store, packs, and both at once, as `Source` has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from bench.store import DEFAULT_STORE
from bench.store.merging import Joined
from bench.store.pack.reading import open_pack
from bench.store.pack.unpacking import Listener, Merged, merge
from bench.store.pack.writing import Written, write_pack
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
    opened = (
        open_pack(Path(name)) if is_pack(name) else [Store.existing(uri, name)]
        for name in dict.fromkeys(names)
    )
    return as_one(chain.from_iterable(opened))


def as_one(sources: Iterable[Source]) -> list[Source]:
    """These, those of one experiment joined. Raises UserError for parts that contradict each other."""
    parts: defaultdict[str, list[Source]] = defaultdict(list)
    for source in sources:
        parts[source.name].append(source)
    return [same[0] if len(same) == 1 else Joined(same) for same in parts.values()]


def pack(
    *experiments: Path | str,
    out: Path | str,
    store: str = DEFAULT_STORE,
    adapters: bool = False,
    force: bool = False,
) -> Written:
    """Writes experiments of a store into one file, or joins packs, whose files stand among the names.

    The name of `out` ends with `.tensorbench.zip`; `force` replaces what is there. `adapters` takes what was
    trained along. The same results give the same bytes. Raises UserError, with nothing written, for an
    experiment that is not there or holds nothing, and for an artifact that is not as it was stored.
    """
    return write_pack(open_results(store, map(str, experiments)), Path(out), adapters=adapters, force=force)


def unpack(
    *files: Path | str, store: str = DEFAULT_STORE, listener: Listener = lambda done, of: None
) -> list[Merged]:
    """Merges packs into a store, which is made if it is not there; those of one experiment become one.

    Trials that the store has stay as they are. Killed halfway, the same call goes on. `listener` hears how many
    of how many trials are written. Raises UserError, with nothing written, for a pack that is refused, for
    other scores of a trial than the store's or another pack's, and for a suite that was run differently.
    """
    if other := next((file for file in files if not is_pack(str(file))), None):
        raise UserError(f"{other} is no pack: the name of one ends with {ENDING}")
    return merge(open_results(store, map(str, files)), store, listener)
