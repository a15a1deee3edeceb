"""Tensor PEFT Bench: tensor methods of parameter-efficient fine-tuning, compared under matched budgets.

This module offers the names that notebooks need. Each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorbench import methods as methods
    from tensorbench.backbones.plain import wrap
    from tensorbench.execution.place import Place
    from tensorbench.plan.make import make_plan
    from tensorbench.plan.rows import Part
    from tensorbench.plan.suite import load_suite
    from tensorbench.reports.loading import load_results
    from tensorbench.reports.report import write_report
    from tensorbench.reports.selection import Selection
    from tensorbench.run.forecast import make_forecast
    from tensorbench.run.suites import run_suite, search_suite
    from tensorbench.store.opening import pack, unpack

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
    "Part": "tensorbench.plan.rows",
    "Place": "tensorbench.execution.place",
    "load_suite": "tensorbench.plan.suite",
    "make_forecast": "tensorbench.run.forecast",
    "make_plan": "tensorbench.plan.make",
    "run_suite": "tensorbench.run.suites",
    "search_suite": "tensorbench.run.suites",
    "pack": "tensorbench.store.opening",
    "unpack": "tensorbench.store.opening",
    "wrap": "tensorbench.backbones.plain",
    "load_results": "tensorbench.reports.loading",
    "write_report": "tensorbench.reports.report",
    "Selection": "tensorbench.reports.selection",
}


def __dir__() -> list[str]:
    # Notebooks complete the names in this list.
    return sorted([*__all__, "__version__", "methods"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # This import takes most of the time, during which interrupts are not caught yet.
        from importlib.metadata import version

        return version("tensorpeft-bench")
    if name == "methods":
        return import_module("tensorbench.methods")
    if name not in _HOMES:
        raise AttributeError(f"module 'tensorbench' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (why := missing_extra(error)) is None:
            raise
        raise ModuleNotFoundError(why, name=error.name) from None


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """What to install, if the packages that run trials are not. None if they are."""
    if find_spec("torch") is not None:
        return None
    return f"{error.name} is not installed, and this needs it: pip install 'tensorpeft-bench[run]'"
