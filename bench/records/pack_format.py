"""The format of packs: zip files that carry the results of experiments.

    manifest.json                             `Manifest`
    experiments/N/experiment.json             `PackedExperiment`
    experiments/N/runs.parquet                a row per run, `tensorbench.store.pack.parquet.RUNS`
    experiments/N/curves.parquet              a row per point, `tensorbench.store.pack.parquet.CURVES`
    experiments/N/configs.parquet             a row per trial, `tensorbench.store.pack.parquet.CONFIGS`
    experiments/N/splits.parquet              a row per split, `tensorbench.store.pack.parquet.SPLITS`
    experiments/N/predictions.parquet         a row per trial, `tensorbench.store.pack.parquet.PREDICTIONS`
    experiments/N/artifacts/RUN_ID/NAME       a run's other artifacts, by their names in `Artifact`

Experiments are numbered in the order of their names. A pack holds the suite's run with the plan, the runs of
searches and allocations, and the runs of trials that count.

In version 1 every configuration and every file of predictions was an artifact. Since version 2 they are in
tables. Only what fits no table is still an artifact, and so are all predictions in packs with adapters.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tensorbench.records import Wired
from tensorbench.records.words import Artifact

#: The ending of a pack's file name. It distinguishes the name of a pack from that of an experiment.
ENDING = ".tensorbench.zip"

#: The version of the format, increased whenever an earlier version would misread a pack.
SCHEMA = 2

MANIFEST = "manifest.json"
EXPERIMENT = "experiment.json"
RUNS_TABLE, CURVES_TABLE = "runs.parquet", "curves.parquet"
CONFIGS_TABLE, SPLITS_TABLE, PREDICTIONS_TABLE = "configs.parquet", "splits.parquet", "predictions.parquet"
TABLES = (RUNS_TABLE, CURVES_TABLE, CONFIGS_TABLE, SPLITS_TABLE, PREDICTIONS_TABLE)

#: The artifacts that packs may contain. Tracebacks are left out, because they name local folders.
TRAVELS = (
    Artifact.PLAN,
    Artifact.SUITE,
    Artifact.CONFIG,
    Artifact.PREDICTIONS,
    Artifact.REDUNDANCY,
    Artifact.ADAPTER,
)

#: The prefixes of the keys of curves. Of all other metrics, packs contain the last value only.
CURVES_BEGIN = ("train/", "validation/")


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

    #: Whether the pack contains trained adapters.
    adapters: bool = False
    #: Every other file, by its name in the zip file.
    members: dict[str, Member]


class PackedExperiment(Wired):
    """The content of `experiment.json`."""

    #: The name of the experiment, and of its suite.
    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
