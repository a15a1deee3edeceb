"""The format of packs: zip files that carry the results of experiments.

    manifest.json                             `Manifest`
    experiments/N/experiment.json             `PackedExperiment`
    experiments/N/runs.jsonl                  a line per run, `PackedRun`, sorted by run id
    experiments/N/arrays.safetensors          the numbers of all runs, `ARRAYS`
    experiments/N/artifacts/RUN_ID/NAME       a run's other artifacts, by their names in `Artifact`

Experiments are numbered in the order of their names. A pack holds the suite's run with the plan, and the runs
of trials that count. Trials share the lines of configurations, and the examples and labels of splits.
Predictions that have no compact form are artifacts, and so are all predictions in packs with adapters.

The memory for decoding JSON and arrays is limited by their size in bytes (see
`tensorbench.store.pack.archive`).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from tensorbench.records import Wired
from tensorbench.records.words import Artifact, Status

#: The ending of a pack's file name. It distinguishes the name of a pack from that of an experiment.
ENDING = ".tensorbench.zip"

#: The version of the format. A pack of another version is refused.
SCHEMA = 3

MANIFEST = "manifest.json"
EXPERIMENT, RUNS, NUMBERS = "experiment.json", "runs.jsonl", "arrays.safetensors"

#: The dtypes of the arrays, in numpy's notation. Each array concatenates the values of all runs or splits.
#: `runs.jsonl` or `experiment.json` gives their order and the number of values of each. The file stores an
#: array as bytes (itemsize, values): the first byte of all values, then the second, and so on. This
#: compresses better.
ARRAYS = {
    #: For each run: the indices of its configuration's lines in `PackedExperiment.lines`.
    "config": "<u4",
    #: For each run: the steps and values of its curves' points.
    "step": "<i8",
    "value": "<f8",
    #: For each split: the ids and labels of its examples.
    "example": "<i8",
    "label": "<u2",
    #: For each run: the predicted classes, and the log-probabilities of labels (see `Predictions.steps`).
    "prediction": "<u2",
    "log_probability": "<u4",
}

#: The artifacts that packs may contain. Tracebacks are left out, because they name local folders.
TRAVELS = (
    Artifact.PLAN,
    Artifact.SUITE,
    Artifact.CONFIG,
    Artifact.PREDICTIONS,
    Artifact.ADAPTER,
)

#: The largest number of classes for which predictions have a compact form.
MOST_CLASSES = 2**15

#: The prefixes of the keys of curves. Of all other metrics, packs contain the last value only.
CURVES_BEGIN = ("train/", "validation/")

#: The end of the year 9999, the last year that Python knows, in milliseconds since the epoch.
LATEST = 253_402_300_800_000

#: The largest finite number in a pack, just above that of float32. Squares and sums are finite.
LARGEST_VALUE = 3.5e38


def _moderate(value: float) -> float:
    if LARGEST_VALUE < abs(value) < math.inf:
        raise ValueError(f"{value:g} is beyond {LARGEST_VALUE:g}")
    return value


RunId = Annotated[str, Field(pattern="^[0-9A-Za-z_-]{1,64}$")]
Milliseconds = Annotated[int, Field(ge=0, lt=LATEST)]
#: MLflow's limits for the length of keys and tags.
Key = Annotated[str, StringConstraints(max_length=250)]
TagText = Annotated[str, StringConstraints(max_length=8000)]
#: The key of a curve. Its limit is lower, since frames of curves repeat the key for each point.
CurveKey = Annotated[str, StringConstraints(max_length=100)]
Count = Annotated[int, Field(ge=0, lt=2**40)]


class Member(Wired):
    """The size and hash of a file in a pack."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Layout(Wired):
    """The fields of `manifest.json` that all versions of the format have. They are read first."""

    format: Literal["tensorbench pack"] = "tensorbench pack"
    #: The version of the format, `SCHEMA`, in which the pack was written.
    schema_: int = Field(alias="schema", ge=1)


class Manifest(Layout):
    """The content of `manifest.json`: a list of everything else in the pack."""

    #: Every other file, by its name in the zip file.
    members: dict[str, Member]


class PackedSplit(Wired):
    """A split on which trials were scored."""

    classes: int = Field(ge=2, le=MOST_CLASSES)
    examples: int = Field(ge=1, lt=2**40)


class PackedExperiment(Wired):
    """The content of `experiment.json`."""

    #: The name of the experiment, and of its suite.
    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    splits: tuple[PackedSplit, ...] = ()
    #: Every distinct line of the runs' configurations.
    lines: tuple[str, ...] = ()


class PackedRun(Wired):
    """A line of `runs.jsonl`. Its constraints are those of a store."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    #: The run's `Record.origin`.
    run_id: RunId
    status: Literal[Status.FINISHED, Status.FAILED, Status.KILLED]
    started: Milliseconds
    ended: Milliseconds
    tags: dict[Key, TagText]
    metrics: dict[Key, Annotated[float, AfterValidator(_moderate)]]
    #: The number of lines of the configuration.
    config: Count = 0
    #: The number of points of each curve.
    curves: dict[CurveKey, Count] = {}
    #: The number of the split of the compact predictions, from 0. None if there are none.
    split: Count | None = None
