"""Runs checks without effects on torch's state, and records their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from tensorbench.checks.conformance.subject import NotApplicable
from tensorbench.methods.errors import UserError

Status = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    `message` is the reason of a failure, the reason why the check does not apply, or a remark.
    """

    check: str
    status: Status
    message: str


def judge(check: str, run: Callable[[], str | None]) -> Finding:
    """Runs a check and returns its result: "not applicable" for NotApplicable, "failed" for other errors."""
    try:
        return Finding(check, "passed", run() or "")
    except NotApplicable as reason:
        return Finding(check, "not applicable", str(reason))
    except (AssertionError, UserError) as failure:
        return Finding(check, "failed", str(failure))
    except Exception as error:
        return Finding(check, "failed", f"{type(error).__name__}: {error}")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Context in which torch uses one thread and starts from random seed 0.

    The number of threads and the random state are restored at the end.
    """
    threads = torch.get_num_threads()
    # Several threads make such small tensors many times slower if other processes run.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
