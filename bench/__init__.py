"""Tensor PEFT Bench: tensor methods of parameter-efficient fine-tuning, compared under matched budgets.

This module offers the names that notebooks need. Each is imported when it is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.backbones.plain import wrap
    from bench.execution.place import Place
    from bench.forecast import make_forecast
    from bench.plan.make import make_plan
    from bench.plan.rows import Part
    from bench.plan.suite_file import load_suite
    from bench.run import run_suite, search_suite
    from bench.store.opening import pack, unpack
    from reports.report import write_report
    from reports.results import load_results
    from reports.selection import Selection

__version__: str

__all__ = [
    "Part",
    "Place",
    "Selection",
    "load_results",
    "load_suite",
    "make_forecast",
    "make_plan",
    "pack",
    "run_suite",
    "search_suite",
    "unpack",
    "wrap",
    "write_report",
]

_HOMES = {
    "Part": "bench.plan.rows",
    "Place": "bench.execution.place",
    "load_suite": "bench.plan.suite_file",
    "make_forecast": "bench.forecast",
    "make_plan": "bench.plan.make",
    "run_suite": "bench.run",
    "search_suite": "bench.run",
    "pack": "bench.store.opening",
    "unpack": "bench.store.opening",
    "wrap": "bench.backbones.plain",
    "load_results": "reports.results",
    "write_report": "reports.report",
    "Selection": "reports.selection",
}


def _refuse_hidden(*packages: str) -> None:
    """Raises ImportError if a file or folder of the user hides one of our packages.

    Python looks for packages beside a notebook or script first.
    """
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in packages:
        spec = find_spec(name)
        if spec is None:
            continue
        place = next(iter(spec.submodule_search_locations or ()), spec.origin) or ""
        if os.path.dirname(os.path.realpath(place)) != home:
            # With this name `python -m bench` shows only the message.
            raise ImportError(
                f"{place} hides the package '{name}' of tensorpeft-bench: rename it, or start Python in "
                "another folder",
                name=__name__,
            )


_refuse_hidden("methods", "baselines", "reports")


def __dir__() -> list[str]:
    # Notebooks complete the names in this list.
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # This import takes most of the time, during which interrupts are not caught yet.
        from importlib.metadata import version

        return version("tensorpeft-bench")
    if name not in _HOMES:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
