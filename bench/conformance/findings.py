"""What came of a check, and the surroundings in which one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from bench.conformance.subject import NotApplicable
from methods.errors import UserError

Status = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What came of a check. `message` says why it failed or does not apply, or remarks on a pass."""

    check: str
    status: Status
    message: str


def judge(check: str, run: Callable[[], str | None]) -> Finding:
    """Runs a check and says what came of it; raises nothing that what is checked raised."""
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
    """Inside, torch has one thread and a random state of its own; both are as before after it."""
    threads = torch.get_num_threads()
    # Tensors this small are many times slower on several threads when other processes run too.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
