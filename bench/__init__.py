"""Tensor PEFT Bench: tensor methods of parameter-efficient fine-tuning, compared under matched budgets.

What a notebook needs is here; each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.backbones.plain import wrap
    from bench.plan.make import make_plan
    from bench.run import run_suite, search_suite
    from bench.store.results import pack, unpack
    from bench.suite.load import load_suite
    from reports.report import write_report
    from reports.results import load_results

__version__: str

__all__ = [
    "load_results",
    "load_suite",
    "make_plan",
    "pack",
    "run_suite",
    "search_suite",
    "unpack",
    "wrap",
    "write_report",
]

_HOMES = {
    "load_suite": "bench.suite.load",
    "make_plan": "bench.plan.make",
    "run_suite": "bench.run",
    "search_suite": "bench.run",
    "pack": "bench.store.results",
    "unpack": "bench.store.results",
    "wrap": "bench.backbones.plain",
    "load_results": "reports.results",
    "write_report": "reports.report",
}


def __dir__() -> list[str]:
    # A notebook completes what this lists.
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Its import is most of this package's, and an interrupt is not yet caught while it lasts.
        from importlib.metadata import version

        return version("tensorpeft-bench")
    if name not in _HOMES:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
