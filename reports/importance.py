"""The importance of each mode's rank for the score, by several evaluators of Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

#: The smallest number of points from which importance is computed.
FEWEST = 5


def importances(
    names: Sequence[str], points: Sequence[tuple[Sequence[int], float]]
) -> dict[str, dict[str, float]]:
    """Returns the share of each mode in the variation of the score, for each evaluator.

    `points` are pairs of ranks, in the order of `names`, and a score of which larger values are better. A
    mode whose rank never varies is left out. Empty for fewer than `FEWEST` points, if no rank varies, and if
    all scores are equal. fANOVA (Hutter et al. 2014) and the mean decrease in impurity fit a forest on the
    log-ranks. PED-ANOVA (Watanabe et al. 2023) compares the distribution of the better half of the points
    with that of all points.
    """
    import optuna
    from optuna.importance import (
        FanovaImportanceEvaluator,
        MeanDecreaseImpurityImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    varied = {
        name: {ranks[i] for ranks, _ in points}
        for i, name in enumerate(names)
        if len({ranks[i] for ranks, _ in points}) > 1
    }
    if len(points) < FEWEST or not varied or len({value for _, value in points}) < 2:
        return {}
    space = {
        name: optuna.distributions.IntDistribution(min(ranks), max(ranks), log=True)
        for name, ranks in varied.items()
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for ranks, value in points:
        params = {name: rank for name, rank in zip(names, ranks, strict=True) if name in space}
        study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=dict(space)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluators = {
            "fanova": FanovaImportanceEvaluator(seed=0),
            "mean_decrease_impurity": MeanDecreaseImpurityImportanceEvaluator(seed=0),
            "ped_anova": PedAnovaImportanceEvaluator(target_quantile=0.5),
        }
        shares = {key: get_param_importances(study, evaluator=e) for key, e in evaluators.items()}
    return {key: {name: float(values.get(name, 0.0)) for name in varied} for key, values in shares.items()}
