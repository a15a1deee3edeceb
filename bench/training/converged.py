"""The converged head: a linear model of the frozen features, fitted by scikit-learn.

Features are standardised by mean and deviation of the training split. The model is fitted to this split with
ever weaker L2 penalties, until the validation loss stops falling. The fit with the lowest validation loss is
kept. The head gets weights for unstandardised features, so that evaluation, saving and export need no special
case.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tensorbench.backbones import LoadedBackbone
from tensorbench.methods import Adapter
from tensorbench.plan.recipe import Recipe
from tensorbench.tasks import Objective, PreparedData, Split
from tensorbench.training.loop import Diverged, Trained, autocast, batches, evaluate
from tensorbench.training.saving import Saving

#: Values of scikit-learn's C, the inverse strength of the penalty: 1e-5 to 1e3 in half decades. The strongest
#: penalty comes first. Ridge regression uses alpha = 1 / C.
GRID = tuple(10.0 ** (power / 2) for power in range(-10, 7))
#: The search ends after this number of consecutive values of C (two decades) without a lower validation loss.
PATIENCE = 4
#: Newton's method stops when no entry of the gradient of the mean objective exceeds TOLERANCE, or after
#: MOST_ITERATIONS. For N examples, the penalty gives the objective a curvature of at least 1 / (C N). So at a
#: gradient g the objective is at most C N |g|² / 2 above its minimum: here less than 1e-8 of the objective.
#: lbfgs does not reach this accuracy for a large C, since it stops once only rounding errors change the
#: objective.
TOLERANCE, MOST_ITERATIONS = 1e-10, 1_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A linear model of standardised features, fitted with one value of C (see `GRID`)."""

    c: float
    #: Weights (outputs, features) and biases (outputs,).
    weight: Floats
    bias: Floats
    converged: bool

    def outputs(self, features: Floats) -> Tensor:
        return torch.from_numpy(features @ self.weight.T + self.bias)


def scale(train: Floats) -> tuple[Floats, Floats]:
    """Returns mean and standard deviation (features,) of features (N, features).

    The deviation of a constant feature is set to 1.
    """
    mean, sd = train.mean(0), train.std(0)
    sd[sd == 0] = 1.0
    return mean, sd


def fit_head(
    backbone: LoadedBackbone, adapter: Adapter, data: PreparedData, recipe: Recipe, saving: Saving
) -> Trained:
    """Fits the head to the frozen features and leaves it on the backbone.

    Raises Diverged if a feature is not finite. Warns if the solver did not converge for the chosen C.
    """
    train, validation = (
        _features(backbone, split, recipe, saving) for split in (data.train, data.validation)
    )
    if not (np.isfinite(train).all() and np.isfinite(validation).all()):
        raise Diverged(0, math.nan)
    mean, sd = scale(train)
    train, validation = (train - mean) / sd, (validation - mean) / sd
    labels = data.train.labels.cpu(), data.validation.labels.cpu()
    best = choose(train, validation, *labels, data.objective)
    if not best.converged:
        warnings.warn(
            f"the head did not converge: Newton's method did not reach a gradient of {TOLERANCE:g} at C = "
            f"{best.c:g}, the best by validation loss",
            stacklevel=2,
        )
    weight = best.weight / sd
    with torch.no_grad():
        head = dict(backbone.head.named_parameters())
        head["weight"].copy_(torch.from_numpy(weight))
        head["bias"].copy_(torch.from_numpy(best.bias - weight @ mean))
    result = evaluate(backbone, adapter, data.validation, recipe, data.objective, saving)
    return Trained(0, 0, result.metric, result.loss, None, head_c=best.c, head_converged=best.converged)


def choose(
    train: Floats, validation: Floats, train_labels: Tensor, validation_labels: Tensor, objective: Objective
) -> Fit:
    """Fits the head for each C in `GRID`, and returns the fit with the lowest validation loss.

    `train` and `validation` are the standardised features (N, features). On a tie, the strongest penalty is
    chosen. The search stops early after `PATIENCE` consecutive fits without a lower loss.
    """
    fits: Iterator[Fit]
    if objective.kind == "regression":
        from sklearn.linear_model import Ridge

        targets = ((train_labels.double() - objective.centre) / objective.spread).numpy()
        models = ((c, Ridge(alpha=1 / c).fit(train, targets)) for c in GRID)
        fits = (Fit(c, model.coef_[None], np.array([model.intercept_]), True) for c, model in models)
    elif objective.kind == "multi-label":
        fits = _several(train, train_labels.long().numpy())
    else:
        fits = _logistic(train, train_labels.numpy(), objective.outputs)
    best: Fit | None = None
    least, worse = math.inf, 0
    for fit in fits:
        loss = objective.loss(fit.outputs(validation), validation_labels).item()
        if best is None or loss < least:
            best, least, worse = fit, loss, 0
        elif (worse := worse + 1) == PATIENCE:
            break
    assert best is not None
    return best


def _features(backbone: LoadedBackbone, split: Split, recipe: Recipe, saving: Saving) -> Floats:
    """Computes the head's inputs (N, features) in evaluation mode. Rows are in the split's order."""
    module = backbone.module.eval()
    parts, order = [], []
    with torch.inference_mode(), autocast(recipe, next(module.parameters()).device):
        for indices in batches(split, 2 * saving.size(recipe.batch_size), None):
            parts.append(module.pool(module.encoder, **split.batch(indices)).double().cpu())
            order.append(indices)
    features = torch.empty(len(split), parts[0].shape[1], dtype=torch.float64)
    features[torch.cat(order)] = torch.cat(parts)
    return features.numpy()


def _logistic(features: Floats, labels: NDArray[np.int64], outputs: int) -> Iterator[Fit]:
    """Yields a multinomial fit for every C, or a single fit if all training examples have the same class.

    For two classes, scikit-learn gives a single row of weights. The first output gets minus half of it, the
    second plus half. A class without training examples gets zero weights, and a bias as if it had half an
    example.
    """
    present = np.unique(labels)
    if len(present) == 1:
        weight, bias = np.zeros((outputs, features.shape[1])), np.full(outputs, -math.log(2 * len(labels)))
        bias[present] = 0.0
        yield Fit(GRID[0], weight, bias, converged=True)
        return
    for c, weights, biases, converged in _path(features, labels):
        if len(present) == 2:
            weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
        weight = np.zeros((outputs, features.shape[1]))
        bias = np.full(outputs, np.logaddexp.reduce(biases) - math.log(2 * len(labels)))
        weight[present], bias[present] = weights, biases
        yield Fit(c, weight, bias, converged)


def _several(features: Floats, flags: NDArray[np.int64]) -> Iterator[Fit]:
    """Yields a fit for every C, which combines one logistic regression per class (column of `flags`).

    A class that all examples have, or none, gets zero weights. Its bias is the log odds after adding half an
    example with the class and half an example without it.
    """
    count = flags.sum(0)
    constant = (count == 0) | (count == len(flags))
    paths = [_path(features, flags[:, label]) for label in np.flatnonzero(~constant)]
    for c in GRID:
        weight = np.zeros((flags.shape[1], features.shape[1]))
        bias = np.log((count + 0.5) / (len(flags) - count + 0.5))
        converged = True
        for label, path in zip(np.flatnonzero(~constant), paths, strict=True):
            _, (weight[label],), (bias[label],), ended = next(path)
            converged &= ended
        yield Fit(c, weight, bias, converged)


def _path(features: Floats, labels: NDArray[np.int64]) -> Iterator[tuple[float, Floats, Floats, bool]]:
    """Yields for every C: C, weights (classes, features), biases (classes,), and whether the fit converged.

    For two classes, weights and biases have a single row. The solver starts from the solution for the
    previous C.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="newton-cg", tol=TOLERANCE, max_iter=MOST_ITERATIONS, warm_start=True)
    for c in GRID:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model.set_params(C=c).fit(features, labels)
        # The solver warns of the last iteration, and of a line search that finds no lower objective.
        converged = not any(issubclass(warning.category, UserWarning) for warning in warned)
        yield c, model.coef_.copy(), model.intercept_.copy(), converged
