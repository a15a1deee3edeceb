"""Tensor PEFT Bench: tensor methods of parameter-efficient fine-tuning, compared under matched budgets.

Each command of the program is a function of this package. The types of its arguments are here too. A name is
imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorbench import methods as methods
    from tensorbench.backbones.plain import wrap as wrap
    from tensorbench.checks.conformance import check as check
    from tensorbench.checks.submission import open_pull_request as open_pull_request
    from tensorbench.checks.submission import submit as submit
    from tensorbench.checks.verify import verify as verify
    from tensorbench.execution.perform import Event as Event
    from tensorbench.execution.place import Place as Place
    from tensorbench.execution.place import Saving as Saving
    from tensorbench.plan.make import make_plan as make_plan
    from tensorbench.plan.pairs import Part as Part
    from tensorbench.plan.rows import Plan as Plan
    from tensorbench.plan.suite import Suite as Suite
    from tensorbench.plan.suite import load_suite as load_suite
    from tensorbench.reports.advice import learning_rates as learning_rates
    from tensorbench.reports.foreign.names import TableOptions as TableOptions
    from tensorbench.reports.loading import load_results as load_results
    from tensorbench.reports.report import write_report as write_report
    from tensorbench.reports.selection import Selection as Selection
    from tensorbench.reports.site import write_site as write_site
    from tensorbench.reports.stored import load_cell as load_cell
    from tensorbench.reports.stored import load_trial as load_trial
    from tensorbench.run.first_suite import write_first_suite as write_first_suite
    from tensorbench.run.forecast import make_forecast as make_forecast
    from tensorbench.run.listings import list_backbones as list_backbones
    from tensorbench.run.listings import list_experiments as list_experiments
    from tensorbench.run.listings import list_methods as list_methods
    from tensorbench.run.listings import list_tasks as list_tasks
    from tensorbench.run.power import power as power
    from tensorbench.run.suites import Audience as Audience
    from tensorbench.run.suites import fetch as fetch
    from tensorbench.run.suites import run_suite as run_suite
    from tensorbench.run.suites import search_suite as search_suite
    from tensorbench.store.claims import find_leftovers as find_leftovers
    from tensorbench.store.opening import pack as pack
    from tensorbench.store.opening import unpack as unpack
    from tensorbench.tools.export import export_run as export_run
    from tensorbench.tools.perf import time_methods as time_methods
    from tensorbench.tools.recipe import write_recipe as write_recipe

__version__: str

#: The module of each name, in this package.
_HOMES = {
    "Audience": "run.suites",
    "Event": "execution.perform",
    "Part": "plan.pairs",
    "Place": "execution.place",
    "Plan": "plan.rows",
    "Saving": "execution.place",
    "Selection": "reports.selection",
    "Suite": "plan.suite",
    "TableOptions": "reports.foreign.names",
    "check": "checks.conformance",
    "export_run": "tools.export",
    "fetch": "run.suites",
    "find_leftovers": "store.claims",
    "learning_rates": "reports.advice",
    "list_backbones": "run.listings",
    "list_experiments": "run.listings",
    "list_methods": "run.listings",
    "list_tasks": "run.listings",
    "load_cell": "reports.stored",
    "load_results": "reports.loading",
    "load_suite": "plan.suite",
    "load_trial": "reports.stored",
    "make_forecast": "run.forecast",
    "make_plan": "plan.make",
    "open_pull_request": "checks.submission",
    "pack": "store.opening",
    "power": "run.power",
    "run_suite": "run.suites",
    "search_suite": "run.suites",
    "submit": "checks.submission",
    "time_methods": "tools.perf",
    "unpack": "store.opening",
    "verify": "checks.verify",
    "wrap": "backbones.plain",
    "write_first_suite": "run.first_suite",
    "write_recipe": "tools.recipe",
    "write_report": "reports.report",
    "write_site": "reports.site",
}

__all__ = [*_HOMES]


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
    from tensorbench.methods.errors import naming_extra

    with naming_extra():
        return getattr(import_module(f"tensorbench.{_HOMES[name]}"), name)
