"""Metrics of classes. Most scores are computed by scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tensorbench.methods.errors import UserError
from tensorbench.records.metrics.metric import Array, Metric, about


class Accuracy(Metric):
    """The share of correct answers. A multi-label answer is correct if every label in it is correct."""

    name = "accuracy"
    kinds = ("single label", "multi-label")
    description = "share of right answers"
    bounds = (0.0, 1.0)

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        # scikit-learn takes a second to import, and trials of most suites need nothing else of it.
        return float(self.contributions(targets, predictions).mean())

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        right = targets == predictions
        return (right if right.ndim == 1 else right.all(1)).astype(float)

    def by_chance(self, targets: NDArray[Any]) -> float:
        shares = np.unique(targets, axis=0, return_counts=True)[1] / len(targets)
        return float(shares @ shares)


class BalancedAccuracy(Metric):
    """The mean recall of all classes with examples. A class's recall is its share of correct answers."""

    name = "balanced_accuracy"
    kinds = ("single label",)
    description = "mean over classes of the share of right answers"
    bounds = (0.0, 1.0)

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        # scikit-learn's function warns of answers that are not among the targets' classes.
        return float(
            np.mean([(predictions[targets == label] == label).mean() for label in np.unique(targets)])
        )

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        right = targets == predictions
        _, place, counts = np.unique(targets, return_inverse=True, return_counts=True)
        recall = np.bincount(place, right) / counts
        share = counts / len(targets)
        return about(float(recall.mean()), (right - recall[place]) / share[place] / len(counts))

    def by_chance(self, targets: NDArray[Any]) -> float:
        return 1 / len(np.unique(targets))


class FScore(Metric):
    """F1, averaged over classes in one of three ways.

    "binary" is F1 of the second of two classes. "macro" is the mean F1 of all classes. In a single-label task
    it leaves out classes that occur in neither targets nor answers. "micro" is F1 computed from the counts of
    all classes together.
    """

    bounds = (0.0, 1.0)

    def __init__(self, average: Literal["binary", "macro", "micro"]) -> None:
        self.average = average
        self.name = "f1" if average == "binary" else f"f1_{average}"
        self.kinds = ("single label",) if average == "binary" else ("single label", "multi-label")
        self.classes = 2 if average == "binary" else None
        self.description = {
            "binary": "F1 of the second class",
            "macro": "mean of the classes' F1",
            "micro": "F1 of all classes' counts together",
        }[average]

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(targets, predictions, average=self.average, zero_division=0.0))

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        labels = np.unique(np.concatenate([targets, predictions]))
        true, said = (self._columns(values, labels) for values in (targets, predictions))
        # F1 is a ratio of sums over examples: 2 · (true and predicted) over true plus predicted.
        above, below = 2.0 * (true & said), true.astype(float) + said
        if self.average == "micro":
            above, below = above.sum(1, keepdims=True), below.sum(1, keepdims=True)
        mean_below = below.mean(0)
        nonzero = np.where(mean_below > 0, mean_below, 1.0)
        ratio = above.mean(0) / nonzero
        return about(float(ratio.mean()), ((above - ratio * below) / nonzero).mean(1))

    def by_chance(self, targets: NDArray[Any]) -> float:
        # A class of share p is true and predicted in p² of the examples, and F1's denominator is 2 p.
        shares = self._columns(targets, np.unique(targets)).mean(0)
        return float(shares @ shares / (shares.sum() or 1.0) if self.average == "micro" else shares.mean())

    def _columns(self, values: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Returns whether each example has each class, bool (N, classes). "binary" gives one class only."""
        if values.ndim > 1:
            return values.astype(bool)
        return values[:, None] == (1 if self.average == "binary" else labels)


class Matthews(Metric):
    """Matthews' correlation. It suits unbalanced classes, since a constant answer scores 0."""

    name = "matthews"
    kinds = ("single label",)
    description = "Matthews' correlation"
    bounds = (-1.0, 1.0)
    #: For two balanced classes, the score is twice the accuracy minus one.
    point = 2.0

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        # torchmetrics' version rewards always answering the larger class, and sums in float32.
        from sklearn.metrics import matthews_corrcoef

        return float(matthews_corrcoef(targets, predictions))

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        classes = np.arange(-1, max(targets.max(), predictions.max()) + 1)
        label_shares = (targets[:, None] == classes).mean(0)
        said = (predictions[:, None] == classes).mean(0)
        right = targets == predictions
        above = right.mean() - label_shares @ said
        of_answers, of_labels = 1 - said @ said, 1 - label_shares @ label_shares
        if of_answers * of_labels <= 0:
            return np.zeros(len(targets))
        score = above / np.sqrt(of_answers * of_labels)
        # Derivatives of numerator and denominator along each example's cell of the confusion matrix.
        slope_above = right - said[targets + 1] - label_shares[predictions + 1]
        slope_below = said[predictions + 1] / of_answers + label_shares[targets + 1] / of_labels
        return about(score, slope_above / np.sqrt(of_answers * of_labels) + score * slope_below)

    def by_chance(self, targets: NDArray[Any]) -> float:
        return 0.0


class Auroc(Metric):
    """The area under the ROC curve.

    For one class, it is the chance that an example of the class gets a higher predicted probability of the
    class than an example of another class. If each example has one of two classes, the score is that of the
    second class. Otherwise it is the mean over all classes. Raises UserError if all examples have a class, or
    if none has it.
    """

    name = "auroc"
    kinds = ("single label", "multi-label")
    description = "area under the ROC curve, each class against the rest"
    bounds = (0.0, 1.0)
    every_class = True
    reads = "outputs"

    def score(self, targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        from sklearn.metrics import roc_auc_score

        return float(
            np.mean([roc_auc_score(true, output) for true, output in _against_rest(targets, predictions)])
        )

    def contributions(self, targets: NDArray[Any], predictions: NDArray[Any]) -> Array:
        from scipy.stats import rankdata

        scores, influences = [], []
        for true, output in _against_rest(targets, predictions):
            # Placements (DeLong et al., 1988): the share of the opposite examples that is ranked correctly.
            ranks, within = rankdata(output), np.empty(len(output))
            for side in (true, ~true):
                within[side] = rankdata(output[side])
            below = (ranks - within) / np.where(true, (~true).sum(), true.sum())
            placed = np.where(true, below, 1 - below)
            area = float(placed[true].mean())
            scores.append(area)
            influences.append((placed - area) / np.where(true, true.mean(), (~true).mean()))
        return about(float(np.mean(scores)), np.mean(influences, axis=0))

    def by_chance(self, targets: NDArray[Any]) -> float:
        return 0.5


def _against_rest(targets: NDArray[Any], outputs: NDArray[Any]) -> Iterator[tuple[NDArray[np.bool_], Array]]:
    """Yields two arrays (N,) for each class: whether an example has it, and how likely the model finds it.

    If each example has one of two classes, yields only those of the second class. Raises UserError if all
    examples have a class, or if none has it.
    """
    outputs = np.asarray(outputs, dtype=float)
    if targets.ndim > 1:
        pairs = [(targets[:, c].astype(bool), outputs[:, c]) for c in range(outputs.shape[1])]
    elif outputs.shape[1] == 2:
        pairs = [(targets == 1, outputs[:, 1] - outputs[:, 0])]
    else:
        shifted = np.exp(outputs - outputs.max(1, keepdims=True))
        chances = shifted / shifted.sum(1, keepdims=True)
        pairs = [(targets == c, chances[:, c]) for c in range(outputs.shape[1])]
    for number, (true, output) in enumerate(pairs):
        if true.all() or not true.any():
            raise UserError(
                f"metric 'auroc' needs examples with and without each class, and class {number} has only one "
                "of the two here: take larger subsets or another metric"
            )
        yield true, output


ACCURACY, BALANCED_ACCURACY, MATTHEWS, AUROC = Accuracy(), BalancedAccuracy(), Matthews(), Auroc()
F1, F1_MACRO, F1_MICRO = FScore("binary"), FScore("macro"), FScore("micro")
