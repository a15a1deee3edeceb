"""Moderated variances: what the methods of a block tell about each other's noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tensorbench.reports.inference.crossed import OnSetting

#: The degrees of freedom d0 of the prior. If fitted to the variances, they would be larger in most results.
#: With four, five seeds and many methods, the interval of a method with three times the others' noise still
#: covers; with three seeds of three methods it is too narrow.
PRIOR_FREEDOM = 4.0


def moderated(parts: Sequence[OnSetting]) -> list[OnSetting]:
    """The differences or scores of a block's methods on one setting, with moderated variances over seeds.

    With s² a method's own variance on d degrees of freedom, and s0² the mean of s² over the m methods,

        moderated s² = (d0 s0² + d s²) / (d0 + d)

    on d0 + d degrees of freedom (Smyth, 2004, section 4). That assumes many methods. With few, s0² is not
    known much better than s², so Satterthwaite's degrees of freedom of the weighted sum are the limit. One
    method alone gains nothing. Methods whose noise is unknown are left as they are.
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
    """The share of the mean in a moderated variance, and the degrees of freedom of that.

    `freedom` are those of every method's own variance. The mean holds the own variance, too.
    """
    share = PRIOR_FREEDOM / (PRIOR_FREEDOM + freedom)
    own, other = 1 - share + share / methods, share / methods
    limit = freedom / (own**2 + (methods - 1) * other**2)
    return share, min(PRIOR_FREEDOM + freedom, limit)
