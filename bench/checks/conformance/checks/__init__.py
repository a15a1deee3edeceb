"""The conformance checks of methods, as functions of a `Subject`.

A check raises `CheckFailed` if the method fails it, and `NotApplicable` if it does not apply to the method.
Otherwise the check may return a text, which is shown with the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tensorbench.checks.conformance.checks import counts, numerics, states, updates
from tensorbench.checks.conformance.subject import Subject


@dataclass(frozen=True)
class Check:
    """A check, with the cases for which it runs. Its name is that of its function."""

    run: Callable[[Subject], str | None]
    #: Whether the check runs on every kind of backbone, because it involves the backbone's modules. Otherwise
    #: it depends on the method alone, and runs on the first kind.
    on_each: bool = True
    #: Whether the check also runs on decoders, whose projections have unequal shapes.
    of_shapes: bool = False
    #: Whether the check runs by default.
    default: bool = True
    #: Whether the check takes seconds instead of milliseconds.
    slow: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__


CHECKS = {
    check.name: check
    for check in (
        Check(counts.identity, on_each=False),
        Check(counts.count, on_each=False),
        Check(counts.isorank, on_each=False),
        Check(counts.fit, on_each=False),
        Check(counts.sites, of_shapes=True),
        Check(updates.start),
        Check(updates.training),
        Check(updates.factors, of_shapes=True),
        Check(updates.merge, of_shapes=True),
        Check(states.detach),
        Check(states.interruption),
        Check(states.transients),
        Check(states.hold, on_each=False),
        Check(states.state),
        Check(states.seeds, on_each=False),
        Check(updates.gradcheck, on_each=False),
        Check(numerics.bfloat16, on_each=False),
        Check(numerics.alone, on_each=False),
        Check(numerics.checkpointing, of_shapes=True),
        Check(numerics.dropout, on_each=False),
        Check(numerics.streams, on_each=False),
        Check(updates.scale, on_each=False),
        Check(numerics.compiled, on_each=False, slow=True),
        Check(numerics.inductor, on_each=False, default=False, slow=True),
    )
}
