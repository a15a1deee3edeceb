"""Moderated variances: each method's variance is shrunk towards the mean over the methods of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tensorbench.reports.inference.crossed import OnSetting

#: The degrees of freedom d0 of the prior. Fitted to the variances of most results, d0 would be larger. With
#: d0 = 4, the interval of a method with three times the noise of the others still covers for five seeds and
#: many methods. For three seeds of three methods it is too narrow.
PRIOR_FREEDOM = 4.0


def moderated(parts: Sequence[OnSetting]) -> list[OnSetting]:
    """The differences or scores of a block's methods on one setting, with moderated variances over seeds.

    With s² a method's own variance on d degrees of freedom, and s0² the mean of s² over the m methods,

        moderated s² = (d0 s0² + d s²) / (d0 + d)

    on d0 + d degrees of freedom (Smyth, 2004, section 4). That assumes many methods. With few methods, s0² is
    hardly more precise than s², so the degrees of freedom are at most Satterthwaite's for the weighted sum. A
    single method keeps its variance. So do methods whose noise is unknown.
    """
    known = [part for part in parts if part.error is not None and not part.error.none]
    # Per seed, since methods may differ in their number of seeds.
    prior = np.mean([(part.seeds or 0.0) * part.pairs for part in known]) if known else 0.0

    def shrunk(part: OnSetting) -> OnSetting:
        share, freedom = share_and_freedom(part.pairs - 1, len(known))
        seeds = share * prior / part.pairs + (1 - share) * (part.seeds or 0.0)
        return replace(part, seeds=float(seeds), freedom=freedom)

    return [shrunk(part) if any(part is each for each in known) else part for part in parts]


def share_and_freedom(freedom: int, methods: int) -> tuple[float, float]:
    """The weight of the mean variance in a moderated variance, and the moderated degrees of freedom.

    `freedom` is the degrees of freedom of each method's own variance, and `methods` their number. The mean
    variance includes the method's own.
    """
    share = PRIOR_FREEDOM / (PRIOR_FREEDOM + freedom)
    own, other = 1 - share + share / methods, share / methods
    limit = freedom / (own**2 + (methods - 1) * other**2)
    return share, min(PRIOR_FREEDOM + freedom, limit)
