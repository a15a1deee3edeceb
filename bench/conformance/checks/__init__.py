"""The checks. Each takes a `Subject` and returns, or raises `CheckFailed` or `NotApplicable`.

What a check returns, if anything, is a remark that stands beside its result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.conformance.checks import counts, numerics, states, traces, updates
from bench.conformance.subject import Subject


@dataclass(frozen=True)
class Check:
    """One property, under the name of the function that checks it."""

    run: Callable[[Subject], str | None]
    #: Asked on every kind of backbone, because what it looks at goes through the backbone's own modules.
    #: What depends on the method alone is asked on the first kind.
    on_each: bool = True
    #: Asked on decoders too, whose projections are of unequal shapes.
    of_shapes: bool = False
    #: Asked unless told otherwise.
    default: bool = True
    #: Takes seconds, not milliseconds.
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
        Check(traces.detach),
        Check(traces.interruption),
        Check(traces.transients),
        Check(traces.hold, on_each=False),
        Check(states.state),
        Check(states.seeds, on_each=False),
        Check(updates.gradcheck, on_each=False),
        Check(numerics.bfloat16, on_each=False),
        Check(numerics.checkpointing, of_shapes=True),
        Check(numerics.dropout, on_each=False),
        Check(numerics.streams, on_each=False),
        Check(updates.scale, on_each=False),
        Check(numerics.compiled, on_each=False, slow=True),
        Check(numerics.inductor, on_each=False, default=False, slow=True),
    )
}
