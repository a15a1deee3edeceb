"""Opens results as `Source` objects, whether they are experiments of a store or of packs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tensorbench.methods import UserError
from tensorbench.methods.errors import naming_extra
from tensorbench.records.pack_format import ENDING
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.addresses import shown_uri
from tensorbench.store.pack.reading import Packed, open_pack
from tensorbench.store.source import Source

# MLflow and torch take seconds to import, and reading packs needs neither.
if TYPE_CHECKING:
    from tensorbench.store.pack.unpacking import Listener, MergedExperiment
    from tensorbench.store.pack.writing import WrittenPack
    from tensorbench.store.store import Store


def is_pack(name: str) -> bool:
    """Whether a name is a pack's file name. Any other name is an experiment's."""
    return name.endswith(ENDING)


def lacks_file(uri: str) -> bool:
    """Whether a store is a database file that does not exist yet, as before a suite's first start."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def open_results(uri: str, names: Iterable[str]) -> list[Source]:
    """Opens experiments and packs for reading.

    Each name is that of an experiment in the store at `uri`, or a pack's file. A pack may contain several
    experiments. The store is opened only if needed.

    Raises UserError if an experiment is missing, if a pack is refused (see
    `tensorbench.store.pack.reading.open_pack`), or if two of them have results of the same experiment.
    """
    names, sources = list(dict.fromkeys(names)), list[Source]()
    for name in names:
        if is_pack(name):
            sources += open_pack(Path(name))
        else:
            with naming_extra():
                from tensorbench.store.store import Store
            sources.append(Store.existing(uri, name))
    by_name: dict[str, Source] = {}
    for source in sources:
        if (other := by_name.setdefault(source.name, source)) is not source:
            packs = " ".join(name for name in names if is_pack(name))
            store = shown_uri(uri) or DEFAULT_STORE
            raise UserError(
                f"{other.where} and {source.where} both have results of '{source.name}'; merge them first "
                f"with `tensorbench unpack {packs} --store {store}`, and then name '{source.name}', or its "
                f"pack, which `tensorbench pack {source.name} --store {store}` writes"
            )
    return sources


def stores_of(sources: Iterable[Source]) -> list[Store]:
    """Selects the sources that are experiments of a store. Packs and foreign results are left out."""
    unpacked = [source for source in sources if not (source.foreign or isinstance(source, Packed))]
    if not unpacked:
        return []
    from tensorbench.store.store import Store

    return [source for source in unpacked if isinstance(source, Store)]


def pack(
    *experiments: Path | str,
    out: Path | str,
    store: str = DEFAULT_STORE,
    adapters: bool = False,
    force: bool = False,
) -> WrittenPack:
    """Writes experiments of a store, or of packs given by their files, into one pack.

    `out` must end with `.tensorbench.zip`. `adapters` includes trained adapters. `force` replaces an existing
    file. The same results give the same bytes. Raises UserError and writes nothing if `out` exists, if an
    experiment is missing or empty, or if an artifact changed since it was stored.
    """
    from tensorbench.store.pack.writing import write_pack

    return write_pack(open_results(store, map(str, experiments)), Path(out), adapters=adapters, force=force)


def unpack(
    *files: Path | str, store: str = DEFAULT_STORE, listener: Listener = lambda done, of: None
) -> list[MergedExperiment]:
    """Merges packs into a store, which is created if missing.

    No other operation joins results of one experiment from several places. Finished trials in the store keep
    their results, and get a missing adapter from a pack. If the process is killed, the same call continues
    where it ended. `listener` is called with the number of trials written and their total.

    Raises UserError and writes nothing if a pack is refused, if a trial's score in the store or in another
    pack differs, or if the store or another pack has a different run of the same suite.
    """
    if other := next((file for file in files if not is_pack(str(file))), None):
        raise UserError(f"{other} is no pack: the name of one ends with {ENDING}")
    from tensorbench.store.pack.unpacking import merge

    sources = [source for file in dict.fromkeys(map(str, files)) for source in open_pack(Path(file))]
    return merge(sources, store, listener)
