"""The variation of a score when the same configuration runs again.

Rows run in waves: a wave is one round of runs. A shift that all rows of a wave have in common does not count
as variation. The score of row i in wave w is modelled as g(mean) = row_i + shift_w. If scores are shares of
questions, g is the logit and the variance is binomial. Otherwise g is the identity. The dispersion is
estimated by Pearson's statistic (McCullagh and Nelder, Generalized Linear Models, section 4.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

Array = NDArray[np.float64]

#: The number of iterations of reweighted least squares. About a dozen are enough to converge.
ITERATIONS = 50

#: The smallest and largest fitted share, so that weights stay finite.
LEAST, MOST = 1e-6, 1 - 1e-6


@dataclass(frozen=True)
class RunNoise:
    """The variance of a score over reruns of one configuration.

    If the score is a share p of questions, the variance is `dispersion` · p(1 − p) / questions. Otherwise it
    is `dispersion` itself.
    """

    dispersion: float
    #: The degrees of freedom of the estimate.
    freedom: int

    def variance(self, score: float, questions: int | None) -> float:
        """The variance of one run's score.

        `questions` is the number of questions if the score is a share of questions, and otherwise None.
        """
        return self.dispersion * (score * (1 - score) / questions if questions else 1.0)


def run_noise(
    rows: Sequence[int], waves: Sequence[int], scores: Sequence[float], questions: int | None
) -> RunNoise | None:
    """Estimates the run-to-run noise from rows that ran in several waves.

    `rows`, `waves` and `scores` have one entry per run. For scores that are shares, `questions` is the number
    of questions, and rows that score 0 or 1 in any wave are left out, since they have no logit and no
    variance. For other scores `questions` is None. Returns None if too few rows ran again to separate the
    noise from the shifts of waves.
    """
    row, wave, score = np.asarray(rows), np.asarray(waves), np.asarray(scores, float)
    if questions:
        extreme = np.unique(row[(score <= 0) | (score >= 1)])
        inside = ~np.isin(row, extreme)
        row, wave, score = row[inside], wave[inside], score[inside]
    if not len(score):
        return None
    design = np.hstack([_indicators(row), _indicators(wave)[:, 1:]])
    freedom = len(score) - int(np.linalg.matrix_rank(design))
    if freedom <= 0:
        return None
    fitted, weight = _fit(design, score, questions)
    return RunNoise(float((weight * (score - fitted) ** 2).sum() / freedom), freedom)


def _fit(design: Array, score: Array, questions: int | None) -> tuple[Array, Array]:
    """The fitted score of each run, and its weight: the inverse of the score's variance at dispersion 1."""
    if not questions:
        coefficients, *_ = np.linalg.lstsq(design, score, rcond=None)
        return design @ coefficients, np.ones_like(score)
    linear = logit(score)
    for _ in range(ITERATIONS):
        share = np.clip(expit(linear), LEAST, MOST)
        slope = share * (1 - share)
        root = np.sqrt(slope)
        response = linear + (score - share) / slope
        coefficients, *_ = np.linalg.lstsq(design * root[:, None], response * root, rcond=None)
        linear = design @ coefficients
    share = np.clip(expit(linear), LEAST, MOST)
    return share, questions / (share * (1 - share))


def _indicators(labels: NDArray[np.int64]) -> Array:
    """One column per distinct label, with ones in the rows of that label."""
    return (labels[:, None] == np.unique(labels)[None, :]).astype(float)
