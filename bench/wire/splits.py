"""How many examples of each split a trial used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.wire.measures import Measure


@dataclass(frozen=True)
class SplitSizes:
    """Examples of each split, as they are used."""

    train: int
    validation: int
    test: int
    #: Test examples that are equal to one of train; None where the cache does not tell.
    repeated: int | None

    def __str__(self) -> str:
        sizes = f"{self.train:,} train / {self.validation:,} validation / {self.test:,} test"
        if not self.repeated:
            return sizes
        return f"{sizes} ({self.repeated:,} test example{'s' * (self.repeated != 1)} also in train)"

    @property
    def measures(self) -> dict[Measure, float | None]:
        return {
            Measure.TRAIN_EXAMPLES: self.train,
            Measure.VALIDATION_EXAMPLES: self.validation,
            Measure.TEST_EXAMPLES: self.test,
            Measure.REPEATED_EXAMPLES: self.repeated,
        }

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> SplitSizes | None:
        """Those that a trial stored; None of a trial of an earlier version."""
        sizes = (Measure.TRAIN_EXAMPLES, Measure.VALIDATION_EXAMPLES, Measure.TEST_EXAMPLES)
        if not all(key in metrics for key in sizes):
            return None
        repeated = metrics.get(Measure.REPEATED_EXAMPLES)
        train, validation, test = (int(metrics[key]) for key in sizes)
        return cls(train, validation, test, None if repeated is None else int(repeated))
