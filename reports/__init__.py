"""Makes statistics, figures, pages and a site from stored records."""

from importlib.util import find_spec
from pathlib import Path

# If another project's folder hides `bench`, only this package can report it.
_bench = find_spec("bench")
if _bench is not None:
    _place = Path(next(iter(_bench.submodule_search_locations or ()), _bench.origin) or "").resolve()
    if _place.parent != Path(__file__).resolve().parents[1]:
        raise ImportError(
            f"{_place} hides the package 'bench' of tensorpeft-bench: rename it, or start Python in another "
            "folder"
        )
