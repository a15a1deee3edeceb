"""Reads experiments into tables: the cells of their plans, the seeds behind each, and what else was stored.

A cell is one method under one budget on one task and backbone, over seeds. What is left out, to keep a
large report within time and memory, is told in `Study.notes`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pyarrow import ArrowException

from bench.store.connect import BROKEN_STORE, DEFAULT_STORE, shown_uri
from bench.store.records import Record, latest
from bench.store.store import Store
from bench.wire.found import AllocationResult, SearchResult
from bench.wire.plan import PlannedRow, PlannedTrial
from bench.wire.words import Artifact, Kind, Measure, Status, Tag
from methods import UserError

#: The budget of cells whose method has a size of its own.
OWN_SIZE = "own size"

#: The message of a seed whose trial is not known before its row's tuning has ended.
WAITING = "waits for its tuning"

#: How MLflow ends a run that gave a score: the one that counts of its trial, and others after it.
ENDED_WELL = ("FINISHED", "DUPLICATE")

#: Requests for artifacts and metric histories at once.
READERS = 8


def block_order(budget: str) -> int:
    """Isorank first, then isoparameters, then other budgets, then what has its own size."""
    for place, start in enumerate(("isorank", "isoparameters")):
        if budget.startswith(start):
            return place
    return 3 if budget == OWN_SIZE else 2


#: A pandas frame or a row of one. Pandas' stubs let a cell be anything, so that every use would be a cast.
Frame = Any

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Source:
    """An experiment that a report is made from."""

    store: Store
    name: str
    closing: str
    #: The run that holds its plan.
    run_id: str
    rows: tuple[PlannedRow, ...] = field(repr=False)
    #: Resolved trials by id, as the plan has them. A row that waits for its tuning has none yet.
    trials: dict[str, PlannedTrial] = field(repr=False)
    #: The run that counts of every stored trial, those of tuning and search included.
    records: dict[str, Record] = field(repr=False)
    #: Finished runs that do not count, because an earlier one of the same trial does.
    duplicates: int

    @property
    def uri(self) -> str:
        return self.store.uri

    @property
    def tuned(self) -> bool:
        return any(row.tuning for row in self.rows)


@dataclass
class Study:
    """What all figures and tables of a report are made from."""

    sources: list[Source]
    #: A row a cell; the index is its number.
    cells: Frame
    #: A row a planned seed of a cell, with the run behind it; without a run it never started.
    seeds: Frame
    #: What the reader of a report must know.
    notes: list[str]

    @property
    def title(self) -> str:
        return ", ".join(source.name for source in self.sources)

    def finished(self, cell: int) -> Frame:
        """The finished seeds of a cell."""
        seeds = self.seeds.loc[self._of_cell[cell]]
        return seeds[seeds["status"] == "FINISHED"]

    def source(self, name: str) -> Source:
        return next(source for source in self.sources if source.name == name)

    def __post_init__(self) -> None:
        self._of_cell = self.seeds.groupby("cell").groups


def load_results(*experiments: str, store: str = DEFAULT_STORE) -> Study:
    """The results of these experiments of a store: data frames of cells and of seeds, see `Study`.

    Raises UserError for one that is not there or has no result.
    """
    return read(store, experiments)


def read(uri: str, names: Sequence[str]) -> Study:
    """Reads experiments of one store. Raises UserError for one that is not there or has no result."""
    sources = [read_source(uri, name) for name in dict.fromkeys(names)]
    cells, seeds = tabulate(sources)
    return Study(sources, cells, seeds, [note for source in sources for note in _notes(source)])


def tabulate(sources: Sequence[Source]) -> tuple[Frame, Frame]:
    """The cells of these plans, and the seeds of each; trials that several of them plan stand once."""
    cells: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    known: defaultdict[tuple[str, ...], list[list[str | None]]] = defaultdict(list)
    for source in sources:
        own_first = sorted(sources, key=lambda other: other is not source)
        for row in source.rows:
            cell = _cell(source, row)
            key = (cell["task"], cell["backbone"], cell["budget"], cell["method"])
            ids = list(row.trials.values())
            if ids in known[key] and None not in ids:
                continue  # the same trials, planned by two experiments
            if known[key]:
                cell["method"] += f" · {source.name}"
            known[key].append(ids)
            found = [_seed(own_first, len(cells), seed, id_) for seed, id_ in row.trials.items()]
            cells.append(cell | _told(sources, found))
            seeds.extend(found)
    frame = pd.DataFrame(seeds)
    return _summed(pd.DataFrame(cells), frame), frame


def _notes(source: Source) -> Iterator[str]:
    """What the reader of a report must know of an experiment."""
    waiting = sum(None in row.trials.values() for row in source.rows)
    if waiting:
        yield (
            f"{source.name}: {waiting} of {len(source.rows)} rows wait for their tuning; their seeds are "
            "missing. Start the suite again to go on."
        )
    if not any(source.records[id_].status == "FINISHED" for id_ in source.trials if id_ in source.records):
        yield (
            f"{source.name}: no trial of the suite's own rows has finished; what its searches tried and "
            "chose stands under Ablations."
        )
    if source.duplicates:
        yield f"{source.name}: {source.duplicates} finished run(s) repeat a trial; the first one counts."


def read_source(uri: str, name: str) -> Source:
    """Reads one experiment. Raises UserError if it is not there, holds no suite or has nothing to report: no
    finished trial of its rows, and no search or allocation that ended.
    """
    store = Store.existing(uri, name)
    try:
        suites = store.records(Kind.SUITE)
        plan = store.plan()
        stored = store.records()
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"experiment '{name}' cannot be read from {uri}: {error}")) from error
    if plan is None:
        raise UserError(f"experiment '{name}' in {shown_uri(uri)} holds no suite of this harness")
    records = latest(stored)
    source = Source(
        store=store,
        name=name,
        closing=plan.closing,
        run_id=suites[-1].run_id,
        rows=plan.rows,
        trials=plan.by_id(),
        records=records,
        duplicates=sum(record.status in ENDED_WELL for record in stored)
        - sum(record.status in ENDED_WELL for record in records.values()),
    )
    states = Counter(records[id_].status if id_ in records else "missing" for id_ in source.trials)
    if not states["FINISHED"] and not any(ablation_artifacts(source)):
        counts = [f"{states[state]} {state.lower()}" for state in sorted(states)]
        waiting = sum(id_ is None for row in source.rows for id_ in row.trials.values())
        if waiting:
            counts.append(f"{waiting} wait for tuning")
        told = ", ".join(counts) or "no trial planned"
        raise UserError(f"experiment '{name}' has no finished trial ({told}): there is nothing to report")
    return source


def _cell(source: Source, row: PlannedRow) -> dict[str, Any]:
    ranks = ",".join(map(str, row.ranks))
    method = row.method
    if row.budget is None and ranks:
        method += f" r={ranks}"  # two sizes of one method may stand side by side
    return {
        "experiment": source.name,
        "task": row.task,
        "backbone": row.backbone,
        "budget": row.budget or OWN_SIZE,
        "method": method,
        "title": row.title,
        "family": _family(source, row),
        "ranks": ranks,
        "parameters": row.parameters,
        "asked": row.asked,
        "ratio": row.ratio,
        "within": row.within,
        "percent_of_lora": row.percent_of_lora,
        "tuning": row.tuning,
    }


def _family(source: Source, row: PlannedRow) -> str:
    """The registered name of a row's method. A row that waits for its tuning has no trial to tell it."""
    known = (source.trials[id_] for id_ in row.trials.values() if id_ is not None)
    return next((str(trial.method["method"]) for trial in known), None) or row.family


def _seed(sources: Sequence[Source], cell: int, seed: int, trial_id: str | None) -> dict[str, Any]:
    """A seed of a cell; its trial may have been run in any of the experiments, the cell's own first."""
    holders = [source for source in sources if trial_id in source.records] if trial_id else []
    finished = [s for s in holders if trial_id and s.records[trial_id].status == "FINISHED"]
    source = (finished or holders or sources)[0]
    record = source.records.get(trial_id) if trial_id else None
    line: dict[str, Any] = {
        "cell": cell,
        "experiment": source.name,
        "seed": seed,
        "trial_id": trial_id or "",
        "run_id": record.run_id if record else "",
        "status": str(record.status if record else Status.MISSING),
        "failure": record.tag(Tag.FAILURE) if record else "",
        "message": record.tag(Tag.FAILURE_MESSAGE) if record else "" if trial_id else WAITING,
    }
    for column, measure in (
        ("score", Measure.SCORE),
        ("loss", Measure.SCORE_LOSS),
        ("validation", Measure.SELECTED_VALIDATION),
        ("selected_epoch", Measure.SELECTED_EPOCH),
        ("steps", Measure.STEPS),
        ("step_ms", Measure.STEP_MS),
        ("peak_mib", Measure.PEAK_MIB),
        ("seconds", Measure.SECONDS),
    ):
        value = record.measure(measure) if record else None
        line[column] = math.nan if value is None else value
    if record and record.status == "FINISHED" and record.score is None:
        line |= {"status": "FAILED", "failure": "error", "message": "stored as finished, without a score"}
    if line["status"] != "FINISHED":
        line["score"] = math.nan
    return line


def _told(sources: Sequence[Source], seeds: list[dict[str, Any]]) -> dict[str, str]:
    """Metric and evaluated split, which the runs tell."""
    by_name = {source.name: source for source in sources}
    for line in seeds:
        if line["status"] == "FINISHED":
            record = by_name[line["experiment"]].records[line["trial_id"]]
            return {"metric": record.tag(Tag.METRIC), "evaluated": record.tag(Tag.EVALUATED)}
    return {"metric": "", "evaluated": ""}


def _summed(cells: Frame, seeds: Frame) -> Frame:
    by_cell = seeds.groupby("cell")
    cells["seeds"] = by_cell.size()
    for state in ("FINISHED", "FAILED"):
        cells[state.lower()] = (seeds["status"] == state).groupby(seeds["cell"]).sum()
    failed = seeds[seeds["status"] == "FAILED"].groupby("cell")["failure"]
    cells["failures"] = failed.agg(lambda some: ", ".join(sorted(set(some))))
    cells["failures"] = cells["failures"].fillna("")
    cells["missing"] = cells["seeds"] - cells["finished"] - cells["failed"]
    cells["complete"] = cells["finished"] == cells["seeds"]
    # Scores of what is not finished are not there, so that no mean counts them.
    cells["mean"], cells["sd"] = by_cell["score"].mean(), by_cell["score"].std(ddof=1)
    done = seeds[seeds["status"] == "FINISHED"].groupby("cell")
    cells["validation"] = done["validation"].mean()
    cells["step_ms"], cells["peak_mib"] = done["step_ms"].median(), done["peak_mib"].max()
    cells["seconds"] = done["seconds"].sum()
    return cells


# --- artifacts and histories ---


def ablation_artifacts(source: Source) -> Iterator[tuple[Record, SearchResult | AllocationResult]]:
    """The parent run and the result of every search and allocation that has one."""
    for record in source.store.records(Kind.SEARCH):
        if (search := source.store.content(record, Artifact.SEARCH, SearchResult)) is not None:
            yield record, search
    for record in source.store.records(Kind.ALLOCATION):
        if (allocation := source.store.content(record, Artifact.ALLOCATION, AllocationResult)) is not None:
            yield record, allocation


@dataclass(frozen=True)
class Predictions:
    """What one run answered: integer arrays (examples,), sorted by example."""

    examples: np.ndarray
    labels: np.ndarray
    answers: np.ndarray


def predictions(source: Source, trial_ids: Iterable[str]) -> dict[str, Predictions]:
    """Stored predictions by trial id, of those that have readable ones."""

    def one(trial_id: str) -> Predictions | None:
        path = source.store.artifact(source.records[trial_id], Artifact.PREDICTIONS)
        try:
            if path is None:
                return None
            table = pq.read_table(path, columns=["example", "label", "prediction"])
        except (OSError, ArrowException):
            return None
        example, label, answer = (table.column(name).to_numpy() for name in table.column_names)
        order = np.argsort(example, kind="stable")
        return Predictions(example[order], label[order], answer[order])

    return _in_parallel(one, trial_ids)


def history(source: Source, trial_ids: Iterable[str], key: str) -> dict[str, np.ndarray]:
    """A metric's history by trial id: (points, 2) with step and value, by step."""

    def one(trial_id: str) -> np.ndarray | None:
        points = source.store.history(source.records[trial_id], key)
        return np.array(points, dtype=float) if points else None

    return _in_parallel(one, trial_ids)


def _in_parallel(one: Callable[[Key], Value | None], keys: Iterable[Key]) -> dict[Key, Value]:
    keys = list(keys)
    with ThreadPoolExecutor(READERS) as pool:
        found = zip(keys, pool.map(one, keys), strict=True)
        return {key: value for key, value in found if value is not None}
