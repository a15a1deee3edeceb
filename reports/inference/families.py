"""Critical values for simultaneous intervals of differences of independent normal means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

from tensorbench.reports.inference.intervals import LEVEL, chi2_quantile, simultaneous, t_quantile

#: The values of the reference's noise, in standard deviations, at which the integral over it is evaluated.
_NOISE = np.linspace(-8, 8, 401)
_WEIGHTS = np.exp(-(_NOISE**2) / 2) / np.exp(-(_NOISE**2) / 2).sum()
#: The number of values of an estimated standard deviation over which coverage is averaged.
_SCALES = 50


def dunnett(variances: Sequence[float], reference: float, freedom: float = math.inf) -> float:
    """The critical value for the differences of several means from one reference (Dunnett, 1955; two-sided).

    With probability `LEVEL`, every estimated difference is within this number of standard errors of the true
    difference. `variances` are the variances of the means, and `reference` is that of the reference's mean.
    The reference must be fixed beforehand. `freedom` is the degrees of freedom of the estimated common scale
    of all variances.
    """
    if not len(variances) or not reference:
        return float(t_quantile((1 + simultaneous(len(variances))) / 2, freedom))
    share = reference / (np.asarray(variances, float) + reference)
    # Given the noise of the reference, the differences are independent. A mean without variance would divide
    # by zero.
    common, own = np.sqrt(share)[:, None] * _NOISE, np.sqrt(np.maximum(1 - share, 1e-12))[:, None]
    quantiles = (np.arange(_SCALES) + 0.5) / _SCALES
    scales = np.sqrt(chi2_quantile(quantiles, freedom) / freedom) if math.isfinite(freedom) else [1.0]

    def coverage(value: float) -> float:
        joint = 0.0
        for half in value * np.asarray(scales):
            inside = special.ndtr((half - common) / own) - special.ndtr((-half - common) / own)
            joint += float(inside.prod(0) @ _WEIGHTS) / len(scales)
        return joint

    return float(optimize.brentq(lambda value: coverage(value) - LEVEL, 0.0, 50.0))


def tukey(means: int, freedom: float = math.inf) -> float:
    """The critical value for all pairwise differences among this number of means (Tukey's range).

    It allows any pair to be selected after the fact, including pairs with the best mean. With unequal
    variances the intervals are conservative (Hayter, 1984). `freedom` is as in `dunnett`.
    """
    # It takes 0.7 s to import, and few reports compare all pairs.
    from scipy import stats

    return float(stats.studentized_range.ppf(LEVEL, means, freedom)) / math.sqrt(2)
