"""How many examples of each split a trial used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.wire.words import Measure


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
        sizes = [metrics.get(key) for key in cls(0, 0, 0, 0).measures]
        if any(size is None for size in sizes[:3]):
            return None
        train, validation, test, repeated = (None if size is None else int(size) for size in sizes)
        return cls(train or 0, validation or 0, test or 0, repeated)
