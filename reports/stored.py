"""Reads single trials and cells of a store with their provenance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic_core import to_jsonable_python

from tensorbench.machine.table import ShowsOverview, Table
from tensorbench.methods import UserError
from tensorbench.records.measures import Measure, SplitSizes
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import Row, StudyTrial, row_texts
from tensorbench.records.words import OWN_SIZE, Artifact, Status, Tag
from tensorbench.reports.provenance import UNKNOWN, Provenance, provenance_of
from tensorbench.reports.results import Cell, Seed
from tensorbench.reports.selection import Selection
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.addresses import shown_uri
from tensorbench.store.connect import BROKEN_STORE
from tensorbench.store.finding import find_trial

#: The prefixes of the keys of a trial's configuration that are shown.
PARTS = ("method", "task", "recipe")


@dataclass(frozen=True, repr=False)
class TrialContents(ShowsOverview):
    """Everything that a store contains about one trial."""

    experiment: str
    #: The run that counts for the trial.
    record: Record
    #: The trial's first row in the suite's latest plan. None if no row has the trial, which is usual for
    #: trials of searches.
    row: Row | None
    #: The trial's budgets, each as a mapping with `budget`, `asked`, `ratio` and `within` (see `Cell`).
    budgets: tuple[Mapping[str, Any], ...]
    #: The resolved configuration. Its keys are those in MLflow, such as `method.rank` and `recipe.lr`.
    configuration: Mapping[str, str]
    #: The sizes of the run's artifacts in bytes, by name. None if a size is unknown.
    artifacts: Mapping[str, int | None]
    #: The origin: suite, commit, packages, seeds and hardware.
    provenance: Provenance
    #: Python's traceback, if the trial failed and a traceback is stored. Otherwise empty.
    traceback: str
    #: The trial's other runs, oldest first, such as failures before a retry.
    others: tuple[Record, ...]

    def overview(self) -> Table:
        """The trial's identity, results, configuration and origin, with a line for each subject."""
        return _subjects(self.record.name, (*_identity(self), *_outcome(self.record), *_surroundings(self)))

    def as_dict(self) -> dict[str, Any]:
        """The contents as values that JSON can represent."""
        record = self.record
        return {
            "trial_id": record.trial_id,
            "run_id": record.run_id,
            "experiment": self.experiment,
            "status": str(record.status),
            "started": record.started,
            "tags": dict(record.tags),
            "metrics": dict(record.metrics),
            "row": self.row
            and self.row.model_dump(mode="json", exclude={"trials": True, "studies": {"trials"}}),
            "study": self.place and self.place.model_dump(),
            "budgets": list(self.budgets),
            "configuration": dict(self.configuration),
            "artifacts": dict(self.artifacts),
            "artifacts_at": record.artifacts,
            "provenance": to_jsonable_python(self.provenance),
            "traceback": self.traceback,
            "other_runs": {other.run_id: str(other.status) for other in self.others},
        }

    @property
    def place(self) -> StudyTrial | None:
        """The trial's study and point. None if the trial has no row, or a row without studies."""
        studies = self.row.studies if self.row else None
        return studies.trials.get(int(self.record.tag(Tag.SEED))) if studies else None


def load_trial(trial: str, *, store: str = DEFAULT_STORE) -> TrialContents:
    """Reads the trial whose trial id or run id begins with `trial`.

    Raises UserError if no trial or several trials match, and if the store cannot be read.
    """
    try:
        source, record = find_trial(store, trial)
        trace = source.artifact(record, Artifact.TRACEBACK) if record.status == Status.FAILED else None
        configuration, artifacts = source.details(record)
        plan = source.plan()
        rows = (row for row in plan.rows if record.trial_id in row.trials.values()) if plan else ()
        return TrialContents(
            experiment=source.name,
            record=record,
            row=next(iter(rows), None),
            budgets=tuple(json.loads(record.tag(Tag.BUDGETS, "[]"))),
            configuration=configuration,
            artifacts=artifacts,
            provenance=provenance_of(source, record),
            traceback=trace.read_text(encoding="utf-8") if trace else "",
            others=tuple(
                other for other in source.records(trial_id=record.trial_id) if other.run_id != record.run_id
            ),
        )
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"trial '{trial}' cannot be read from {store}: {error}")) from error


@dataclass(frozen=True, repr=False)
class CellContents(ShowsOverview):
    """A cell of a report's tables, with its seeds and the provenance of each seed's trial."""

    cell: Cell
    #: Each seed with its provenance. The provenance is None if the trial never started.
    seeds: Sequence[tuple[Seed, Provenance | None]]

    def overview(self) -> Table:
        """The cell's score, the trial of each seed, and the origin of these numbers."""
        cell, texts = self.cell, row_texts(self.cell, self.cell.ranks)
        mean = "–" if cell.mean is None else f"{cell.mean:.4f}"
        spread = "" if cell.sd is None else f" ± {cell.sd:.4f}"
        counted = f"{mean}{spread}, {cell.finished} of {cell.seeds} seeds"
        if cell.studies:
            counted = f"of {cell.finished} of {cell.seeds} trials"
        lines = [
            ("cell", f"{cell.number}, of experiment {cell.experiment}"),
            (cell.evaluated or "score", f"{cell.metric} {counted}".lstrip()),
            ("ranks", cell.ranks or "–"),
            ("parameters", texts["params"] + f", {texts['% LoRA']}% of LoRA r=4" * (texts["% LoRA"] != "–")),
        ]
        kept = [*cell.kept.values()]
        for seed, provenance in self.seeds:
            score = seed.status.lower() if seed.score is None else f"{seed.score:.4f}"
            when = f", {_span(provenance)}" if provenance and provenance.started else ""
            run = f", run {seed.run_id}" if seed.run_id else ""
            name = f"seed {seed.seed}"
            if seed.study is not None:
                name = f"study {seed.study:.0f}, point {seed.point:.0f}"
                score += f" at rate {seed.lr:.3g}" + ", kept" * (seed in kept)
            lines.append((name, f"{score}, trial {seed.trial_id}{run}{when}"))
        title = " · ".join((cell.method, cell.budget, cell.task, cell.backbone))
        return _subjects(title, (*lines, *self.lines()))

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields headings and texts on the trials' provenance, without their random streams.

        If seeds have different texts under a heading, the heading occurs once for each text, which ends with
        the number of seeds that have it.
        """
        started = [dict(provenance.lines()) for _, provenance in self.seeds if provenance]
        for head in dict.fromkeys(head for lines in started for head in lines if head != "streams"):
            for text, count in Counter(lines.get(head, UNKNOWN) for lines in started).items():
                yield head, text if count == len(started) else f"{text} ({count} of {len(started)} seeds)"

    def as_dict(self) -> dict[str, Any]:
        """The contents as values that JSON can represent, including the full texts of suites."""
        seeds = [seed.columns() | {"provenance": provenance} for seed, provenance in self.seeds]
        plain: dict[str, Any] = to_jsonable_python(
            {"cell": self.cell.columns(), "seeds": seeds},
            inf_nan_mode="null",
            fallback=lambda value: value.item(),
        )
        return plain


def load_cell(
    *experiments: str, number: int, store: str = DEFAULT_STORE, selection: Selection | None = None
) -> CellContents:
    """Reads the cell with this number, its seeds, and the provenance of their trials.

    `number` is the cell's number in the file `cells.csv` of a report on the same experiments with the same
    selection. Raises UserError if no cell has the number, and as `tensorbench.reports.reading.read` does.
    """
    # Imported late: it imports torch, which a list of experiments and a single trial need not wait for.
    from tensorbench.reports.reading import read

    results = read(store, experiments, selection)
    if not 0 <= number < len(results.all_cells):
        raise UserError(f"--cell {number}: {results.title} has cells 0 to {len(results.all_cells) - 1}")
    seeds = []
    for seed in results.all_cells[number].trials:
        source = results.experiment(seed.experiment).source
        seeds.append((seed, provenance_of(source, seed.record) if seed.run_id else None))
    return CellContents(results.all_cells[number], seeds)


def _subjects(title: str, lines: Iterable[tuple[str, str]]) -> Table:
    """A table without headings, with a line for each pair of a subject and its text."""
    return Table(title, [{"": subject, " ": text} for subject, text in lines], texts=("", " "))


def _identity(trial: TrialContents) -> Iterator[tuple[str, str]]:
    record, row = trial.record, trial.row
    yield "trial", record.trial_id
    yield "run", f"{record.run_id}, in experiment {trial.experiment}"
    yield "method", f"{record.tag(Tag.METHOD)} ({record.tag(Tag.FAMILY)})"
    yield "ranks", record.tag(Tag.RANKS) or "–"
    for budget in trial.budgets:
        ratio = "" if budget["ratio"] is None else f", {budget['ratio']:.3f} of {budget['asked']:,}"
        yield "budget", f"{budget['budget']}{ratio}" + ", missed" * (budget["within"] is False)
    if not trial.budgets:
        yield "budget", OWN_SIZE
    adapter, head = record.measure(Measure.ADAPTER_PARAMETERS), record.measure(Measure.HEAD_PARAMETERS)
    peak = record.measure(Measure.PEAK_PARAMETERS)
    count = adapter if row is None or peak is not None else row.parameters
    if count is not None:
        share = f", {row.percent_of_lora:.2f}% of LoRA r=4" if row else ""
        before = "" if peak is None else f" (peak {peak:,.0f})"
        yield "parameters", f"{count:,.0f}{before}{share}" + ("" if head is None else f"; head {head:,.0f}")
    # One line for all modes and bonds, and one line for each projection that has a rank per layer.
    ranks: Mapping[str, Sequence[int]] = json.loads(record.tag(Tag.FINAL_RANKS, "{}"))
    if single := [f"{name} {left[0]}" for name, left in ranks.items() if len(left) == 1]:
        yield "final ranks", ", ".join(single)
    for name, left in ranks.items():
        if len(left) > 1:
            yield f"final ranks, {name}", f"{' '.join(map(str, left))}, layer by layer"
    yield "backbone", record.tag(Tag.BACKBONE)
    yield "task", f"{record.tag(Tag.TASK)}, seed {record.tag(Tag.SEED)}"
    if (place := trial.place) is not None:
        where = f"{place.offset:+.2f} decades from the centre"
        yield "study", f"{place.study}, point {place.point}, at rate {place.lr:g}, {where}"
    if phase := record.tag(Tag.PHASE):
        yield "part of", phase


def _scored(record: Record, score: float) -> str:
    unit = record.tag(Tag.UNIT)
    return f"{record.tag(Tag.METRIC)} {score:.4f}" + (f" {unit}" if unit else "")


def _outcome(record: Record) -> Iterator[tuple[str, str]]:
    yield "status", "✗ " * (record.status == Status.FAILED) + record.status.lower()
    if record.status == Status.FAILED:
        yield "failure", f"{record.tag(Tag.FAILURE)}: {record.tag(Tag.FAILURE_MESSAGE)}"
    score, loss = record.measure(Measure.SCORE), record.measure(Measure.SCORE_LOSS)
    if score is not None:
        line = _scored(record, score) + ("" if loss is None else f", loss {loss:.4f}")
        yield record.tag(Tag.EVALUATED, "score"), line
    validation, epoch = record.measure(Measure.SELECTED_VALIDATION), record.measure(Measure.SELECTED_EPOCH)
    if validation is not None:
        at = "" if epoch is None else f", at epoch {epoch:.0f}"
        yield "selected", f"validation {_scored(record, validation)}{at}"
    if sizes := SplitSizes.of(record.metrics):
        yield "examples", str(sizes)
    if (c := record.measure(Measure.HEAD_C)) is not None:
        short = "" if record.measure(Measure.HEAD_CONVERGED) else ", ✗ not converged"
        yield "fitted head", f"C = {c:g}{short}"
    seconds, steps = record.measure(Measure.SECONDS), record.measure(Measure.STEPS)
    if seconds is not None:
        step = record.measure(Measure.STEP_MS)
        each = "" if step is None else f" of {step:.1f} ms"
        yield "time", f"{seconds:,.0f} s" + ("" if steps is None else f", {steps:.0f} steps{each}")
    peak = record.measure(Measure.PEAK_MIB)
    if peak is not None:
        yield "peak memory", f"{peak:,.0f} MiB"
    stored, loaded = record.measure(Measure.ADAPTER_BYTES), record.measure(Measure.LOADED_BYTES)
    if stored is not None:
        frozen = "" if loaded is None else f", {loaded:,.0f} in memory including frozen tensors"
        yield "adapter", f"{stored:,.0f} bytes on disk{frozen}"
    bare, examples = record.measure(Measure.BARE_MS), record.measure(Measure.TIMED_EXAMPLES)
    if bare is not None:
        merged = record.measure(Measure.MERGED_FORWARD)
        line = "it cannot be merged" if merged is None else f"merged {merged:.2f} times"
        yield (
            "inference",
            f"{record.measure(Measure.ADAPTED_FORWARD):.2f} times the bare backbone's {bare:.1f} ms for "
            f"{examples:.0f} examples; {line}",
        )
    cut, texts = record.measure(Measure.CUT_TEXTS), record.measure(Measure.TEXTS)
    if cut is not None:
        yield "texts cut", f"{cut:,.0f} of {texts:,.0f} in all splits"
    if record.status == Status.FINISHED:
        yield "forgetting", _forgetting(record)


def _forgetting(record: Record) -> str:
    change = record.measure(Measure.FORGETTING)
    if change is None:
        return "not measured"
    bare, adapted = record.measure(Measure.TEXT_LOSS_BARE), record.measure(Measure.TEXT_LOSS)
    tokens, text = record.measure(Measure.TEXT_TOKENS), record.tag(Tag.TEXT)
    line = f"{change:+.4f} nats a token, from {bare:.4f} to {adapted:.4f}"
    return f"{line}, on {tokens:,.0f} tokens of {text}"


def _surroundings(trial: TrialContents) -> Iterator[tuple[str, str]]:
    record = trial.record
    yield "ran", _span(trial.provenance)
    for part in PARTS:
        own = {
            key.removeprefix(f"{part}."): value
            for key, value in trial.configuration.items()
            if key.startswith(f"{part}.")
        }
        if own:
            yield f"{part} options", ", ".join(f"{key} {value}" for key, value in own.items())
    yield from trial.provenance.lines()
    for name, size in trial.artifacts.items():
        yield "artifact", name + ("" if size is None else f", {size:,} bytes")
    if trial.artifacts:
        yield "artifacts at", shown_uri(record.artifacts)
    for other in trial.others:
        yield "other run", f"{other.run_id}, {other.status.lower()}, {_when(other.started)}"


def _when(milliseconds: int) -> str:
    # In this machine's time zone.
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M")


def _span(provenance: Provenance) -> str:
    return _when(provenance.started) + ("" if provenance.ended is None else f" to {_when(provenance.ended)}")
