"""The table of measures: every number stored for a trial, with key, column, unit, meaning and summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from enum import StrEnum
from operator import sub
from typing import Literal, Self

#: The dtypes of numbers in data frames.
INTEGER: Literal["Int64"] = "Int64"
NUMBER: Literal["float64"] = "float64"

#: The ways to summarise a measure over a cell's finished seeds.
Summary = Literal["mean", "median", "max", "sum"]

#: The value of `less` for a measure that is better if it is smaller.
LESS = True

#: Bytes of a number in float32, the precision of trained parameters.
FLOAT32 = 4


def _ratio(value: float, bare: float) -> float | None:
    return value / bare if bare else None


class Measure(StrEnum):
    """The measures of a trial. The value of a member is its key in the store. Its attributes describe it.

    Measures with `parts` are not stored, but computed from other measures. `Record.measure` returns stored
    and computed measures. The tags `metric` and `evaluated` of a run name the metric and the split of its
    score.
    """

    #: The measure's column in the frame of trials. Empty if it has none.
    column: str
    unit: str
    meaning: str
    dtype: Literal["Int64", "float64"]
    #: None for a measure that cells do not summarise.
    summary: Summary | None
    #: Whether smaller values are better. None if no value is better, or if it depends on the metric.
    less: bool | None
    #: The keys of the measures that are arguments of `formula`. Empty for a measure that is stored.
    parts: tuple[str, ...]
    formula: Callable[..., float | None]

    def __new__(
        cls,
        key: str,
        column: str,
        unit: str,
        meaning: str,
        dtype: Literal["Int64", "float64"] = NUMBER,
        summary: Summary | None = None,
        less: bool | None = None,
        parts: tuple[str, ...] = (),
        formula: Callable[..., float | None] = sub,
    ) -> Self:
        """Makes a member with the value `key`. The other arguments become attributes."""
        member = str.__new__(cls, key)
        member._value_ = key
        member.column, member.unit, member.meaning, member.dtype = column, unit, meaning, dtype
        member.summary, member.less, member.parts, member.formula = summary, less, parts, formula
        return member

    # fmt: off
    # key, column, unit, meaning, dtype, summary, less
    SCORE = "score", "score", "the metric's", "an accuracy is in [0, 1]; of finished trials only"
    SCORE_LOSS = ("score_loss", "loss", "nats",
                  "mean cross-entropy; of a regression, standardised squared error", NUMBER, None, LESS)
    SELECTED_VALIDATION = ("selected/validation", "validation", "the metric's",
                           "on the validation split, at the selected epoch", NUMBER, "mean")
    SELECTED_EPOCH = "selected/epoch", "selected_epoch", "epochs", "that epoch; the first is 1", INTEGER
    SELECTED_LOSS = ("selected/validation_loss", "validation_loss", "nats",
                     "the validation loss of that epoch", NUMBER, None, LESS)
    GUESSING_LOSS = ("guessing/validation_loss", "", "nats",
                     "validation loss of the best constant answer: entropy of labels, variance of targets")
    GUESSING_SCORE = "guessing/score", "", "the metric's", "a run of another program: the score by chance"
    EFFORT = "tuning/effort", "", "", "a run of another program: how much its method was tuned, as stated"
    ADAPTER_EFFECT = ("adapter/effect", "", "",
                      "RMS change of the outputs by the adapter, over their spread between examples")
    ADAPTER_PARAMETERS = ("parameters/adapter", "parameters", "parameters",
                          "of the adapter, head excluded", INTEGER, None, LESS)
    PEAK_PARAMETERS = ("parameters/adapter_peak", "peak_parameters", "parameters",
                       "of the adapter at the start, if training prunes some", INTEGER, None, LESS)
    HEAD_PARAMETERS = "parameters/head", "head_parameters", "parameters", "of the head", INTEGER
    HEAD_C = "head/C", "", "", "scikit-learn's C of a head that was fitted, not trained"
    HEAD_CONVERGED = "head/converged", "", "", "1 if that head's solver converged, else 0", INTEGER
    STEPS = "cost/steps", "steps", "steps", "training steps", INTEGER
    STEP_MS = "cost/step_ms", "step_ms", "ms", "median time of a training step", NUMBER, "median", LESS
    PEAK_MIB = ("cost/peak_mib", "peak_mib", "MiB",
                "peak memory: a GPU's, or the process's", NUMBER, "max", LESS)
    ADAPTER_BYTES = ("cost/adapter_bytes", "adapter_bytes", "bytes",
                     "the adapter on disk, with the frozen tensors that it keeps", INTEGER, "max", LESS)
    FROZEN_BYTES = ("cost/frozen_bytes", "frozen_bytes", "bytes",
                    "the adapter's frozen tensors, kept or made again from a seed", INTEGER, None, LESS)
    SECONDS = "cost/seconds", "seconds", "s", "the whole trial", NUMBER, "sum", LESS
    BARE_MS = "inference/bare_ms", "bare_ms", "ms", "a forward of the backbone without adapter"
    ADAPTED_MS = ("inference/adapted_ms", "adapted_ms", "ms", "the same with the adapter", NUMBER, None, LESS)
    MERGED_MS = ("inference/merged_ms", "merged_ms", "ms",
                 "the same with the update merged; missing if it cannot be", NUMBER, None, LESS)
    TIMED_EXAMPLES = ("inference/examples", "timed_examples", "examples",
                      "in the batch of these forwards", INTEGER)
    FILLED_BARE_MS = ("inference/filled/bare_ms", "", "ms",
                      "on a GPU, a forward of a batch that fills it: without adapter")
    FILLED_ADAPTED_MS = "inference/filled/adapted_ms", "", "ms", "the same with the adapter"
    FILLED_MERGED_MS = "inference/filled/merged_ms", "", "ms", "the same with the update merged"
    FILLED_EXAMPLES = "inference/filled/examples", "", "examples", "in that batch", INTEGER
    # These keys are from a version that counted prompts alone.
    CUT_TEXTS = ("prompts/cut", "cut_texts", "texts",
                 "those of all splits that were cut to max_tokens; missing if unknown", INTEGER, "max", LESS)
    TEXTS = "prompts/all", "texts", "texts", "all of all splits", INTEGER, "max"
    TRAIN_EXAMPLES = "examples/train", "", "examples", "of the training split as it is used", INTEGER
    VALIDATION_EXAMPLES = "examples/validation", "", "examples", "of the validation split", INTEGER
    TEST_EXAMPLES = "examples/test", "", "examples", "of the test split", INTEGER
    REPEATED_EXAMPLES = "examples/test_in_train", "", "examples", "of the test split, also in train", INTEGER
    LEFT_OUT = "examples/left_out", "", "examples", "in no split: duplicates with other labels", INTEGER
    TARGET_MEAN = "target/mean", "", "the targets'", "mean of a regression's training targets"
    TARGET_SD = "target/sd", "", "the targets'", "their standard deviation; both standardise its outputs"
    TEXT_LOSS_BARE = ("forgetting/bare", "text_loss_bare", "nats",
                      "mean loss per token of the forgetting text, bare backbone")
    TEXT_LOSS = "forgetting/adapted", "text_loss", "nats", "the same with the adapter", NUMBER, None, LESS
    TEXT_TOKENS = "forgetting/tokens", "text_tokens", "tokens", "predicted tokens of it", INTEGER
    # Curves. The validation metric's curve has another key, see `validation_key`.
    TRAIN_LOSS = "train/loss", "", "nats", "training loss by step", NUMBER, None, LESS
    VALIDATION_LOSS = "validation/loss", "", "nats", "validation loss by epoch", NUMBER, None, LESS
    # Computed measures, with parts and formula.
    FORGETTING = ("forgetting", "forgetting", "nats",
                  "rise of the loss per token on text that no task trains on", NUMBER, "mean", LESS,
                  ("forgetting/adapted", "forgetting/bare"), sub)
    LOADED_BYTES = ("loaded_bytes", "loaded_bytes", "bytes",
                    "the adapter in memory, frozen tensors included", NUMBER, "max", LESS,
                    ("parameters/adapter", "cost/frozen_bytes"),
                    lambda trained, frozen: FLOAT32 * trained + frozen)
    ADAPTED_FORWARD = ("adapted_forward", "adapted_forward", "",
                       "time of a forward with the adapter over the bare backbone's", NUMBER, "median", LESS,
                       ("inference/adapted_ms", "inference/bare_ms"), _ratio)
    MERGED_FORWARD = ("merged_forward", "merged_forward", "",
                      "the same of the merged backbone; missing if it cannot be",
                      NUMBER, "median", LESS, ("inference/merged_ms", "inference/bare_ms"), _ratio)
    # fmt: on


#: A trial's numbers. The value is None if a measure could not be taken.
Measures = dict[Measure, float | None]


def validation_key(metric: str) -> str:
    """Returns the key of the curve of validation scores by epoch."""
    return f"validation/{metric}"


@dataclass(frozen=True)
class SplitSizes:
    """The number of examples of each split that a trial uses."""

    train: int
    validation: int
    test: int
    #: The number of test examples equal to a training example. None if unknown.
    repeated: int | None
    #: The number of examples in no split, since they are duplicates with other labels. None if unknown.
    left_out: int | None = None
    #: The number of validation examples equal to a training example, and of test examples equal to a
    #: validation example. Plans say them. No trial stores them, so they are None for stored trials.
    validation_repeated: int | None = field(default=None, compare=False)
    test_in_validation: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        sizes = f"{self.train:,} train / {self.validation:,} validation / {self.test:,} test"
        notes = []
        for count, split, other in (
            (self.repeated, "test", "train"),
            (self.validation_repeated, "validation", "train"),
            (self.test_in_validation, "test", "validation"),
        ):
            if count:
                notes.append(f"{count:,} {split} example{'s' * (count != 1)} also in {other}")
        if self.left_out:
            notes.append(f"{self.left_out:,} duplicates with other labels left out")
        return f"{sizes} ({'; '.join(notes)})" if notes else sizes

    @property
    def all(self) -> int:
        """The number of examples of all splits."""
        return self.train + self.validation + self.test

    def lacks_counts_of(self, other: SplitSizes) -> bool:
        """Whether `other` has the same counts and at least one that is unknown here."""
        counts = zip(astuple(self), astuple(other), strict=True)
        return self != other and all(own is None or own == known for own, known in counts)

    @property
    def measures(self) -> Measures:
        return {
            Measure.TRAIN_EXAMPLES: self.train,
            Measure.VALIDATION_EXAMPLES: self.validation,
            Measure.TEST_EXAMPLES: self.test,
            Measure.REPEATED_EXAMPLES: self.repeated,
            Measure.LEFT_OUT: self.left_out,
        }

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> SplitSizes | None:
        """Reads the sizes from a trial's metrics. Returns None if one is missing."""
        sizes = (Measure.TRAIN_EXAMPLES, Measure.VALIDATION_EXAMPLES, Measure.TEST_EXAMPLES)
        if not all(key in metrics for key in sizes):
            return None
        train, validation, test = (int(metrics[key]) for key in sizes)
        repeated, left_out = (
            None if (count := metrics.get(key)) is None else int(count)
            for key in (Measure.REPEATED_EXAMPLES, Measure.LEFT_OUT)
        )
        return cls(train, validation, test, repeated, left_out)
