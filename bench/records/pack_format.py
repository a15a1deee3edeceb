"""The format of packs: zip files in which the results of experiments travel.

    manifest.json                                 `Manifest`
    experiments/N/experiment.json                 `PackedExperiment`
    experiments/N/runs.parquet                    a row a run, `bench.store.pack.parquet.RUNS`
    experiments/N/curves.parquet                  a row a point, `bench.store.pack.parquet.CURVES`
    experiments/N/artifacts/RUN_ID/NAME           the artifacts of a run, as `Artifact` names them

Experiments are numbered by name. A run is one that counts: a trial's, a search's, an allocation's, or the
suite's, which holds the plan.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.records import Wired
from bench.records.words import Artifact

#: The ending of a pack's name, which tells it from an experiment's.
ENDING = ".tensorbench.zip"

#: Grows whenever an earlier version would misread a pack.
SCHEMA = 1

MANIFEST = "manifest.json"
EXPERIMENT = "experiment.json"
RUNS_TABLE, CURVES_TABLE = "runs.parquet", "curves.parquet"

#: Artifacts that travel. A traceback does not: it names local folders.
TRAVELS = (
    Artifact.PLAN,
    Artifact.SUITE,
    Artifact.SEARCH,
    Artifact.ALLOCATION,
    Artifact.CONFIG,
    Artifact.PREDICTIONS,
    Artifact.REDUNDANCY,
    Artifact.ADAPTER,
)

#: Prefixes of the keys of curves. Other metrics travel with their last value only.
CURVES_BEGIN = ("train/", "validation/")


class Member(Wired):
    """A file of a pack."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Layout(Wired):
    """The header that every version writes, and reads before anything else."""

    format: Literal["tensorbench pack"] = "tensorbench pack"
    #: `SCHEMA` of the version that wrote it.
    schema_: int = Field(alias="schema", ge=1)


class Manifest(Layout):
    """`manifest.json`: what else is in a pack."""

    #: Whether the trained adapters are in it.
    adapters: bool = False
    #: Every other file, by its name in the zip.
    members: dict[str, Member]


class PackedExperiment(Wired):
    """`experiment.json`."""

    #: Also the name of its suite.
    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
