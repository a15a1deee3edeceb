"""Executors of trials: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from numbers import Integral
from typing import TYPE_CHECKING, Any

# `--help` imports this module, so it must import quickly.
if TYPE_CHECKING:
    from tensorbench.execution.executor import Executor
    from tensorbench.execution.place import Place
    from tensorbench.methods.registry import Registry

#: Maps the name of each built-in executor to its class. Plug-ins register a class in the entry-point group
#: `tensorbench.executors`.
EXECUTORS = {
    "inline": "tensorbench.execution.inline:Inline",
    "local": "tensorbench.execution.local:Local",
    "ray": "tensorbench.execution.ray:RayCluster",
}

#: The fields of `Place` that only some executors support.
OPTIONS = ("workers", "slots_per_device", "ray_address", "worker_memory", "trial_timeout")


@cache
def executors() -> Registry:
    """Returns the registry of executor classes, including plug-ins."""
    from tensorbench.execution.executor import Executor
    from tensorbench.methods.errors import UserError
    from tensorbench.methods.registry import Registry

    def check(name: str, target: Any) -> None:
        if not (isinstance(target, type) and issubclass(target, Executor)):
            raise UserError(f"executor '{name}' is not a subclass of tensorbench.execution.executor.Executor")
        if lacking := sorted(target.__abstractmethods__):
            raise UserError(f"executor '{name}': {target.__name__} does not define {', '.join(lacking)}")

    return Registry("executor", EXECUTORS, check)


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Context in which an error becomes a UserError that names the plug-in of the executor `name`.

    A UserError passes unchanged, as does any error of a built-in executor.
    """
    from tensorbench.methods.errors import UserError

    try:
        yield
    except UserError:
        raise
    except Exception:
        with executors().blaming(name):
            raise


def make_executor(place: Place) -> Executor:
    """Makes the executor that a place names. The caller must use it in a `with` statement.

    Raises UserError if `place` is no `Place`, for an unknown executor, for an option that the executor does
    not support, and for a plug-in's incomplete executor. Also raises the errors of `Executor.open`.
    """
    from tensorbench.execution.executor import Executor
    from tensorbench.execution.place import Place
    from tensorbench.methods.errors import UserError, check_kind, shown

    check_kind("place", place, Place, "a Place, such as Place(executor='local')")
    kind: type[Executor] = executors().get(place.executor)
    for option in OPTIONS:
        if getattr(place, option) is not None and option not in kind.options:
            accepted = ", ".join(_flag(name) for name in OPTIONS if name in kind.options) or "none"
            others = ", ".join(name for name, other in executors().available() if option in other.options)
            raise UserError(
                f"{_flag(option)} is not an option of --executor {place.executor}, but of {others}; "
                f"accepted: {accepted}"
            )
    with blaming(place.executor):
        executor = kind.open(place)
    with executors().blaming(place.executor):
        if not isinstance(executor, Executor):
            raise UserError(f"open should return an Executor, got {shown(executor)}")
        if not hasattr(executor, "device"):
            raise UserError("its __init__ should call super().__init__(device, saving)")
        if not isinstance(slots := getattr(executor, "slots", None), Integral) or slots < 1:
            raise UserError(f"slots should be the number of trials that run at once, got {shown(slots)}")
        executor.name = place.executor
    return executor


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
