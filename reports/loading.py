"""Results as data frames, with the type, unit and meaning of every column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import pandas as pd

from tensorbench.machine.table import ShowsOverview, Table
from tensorbench.methods import UnknownNameError, UserError
from tensorbench.records.predictions import compact, read_predictions
from tensorbench.records.record import Record, latest
from tensorbench.records.words import OWN_SIZE, Artifact, Tag
from tensorbench.reports import reading
from tensorbench.reports.foreign.names import TableOptions
from tensorbench.reports.overview import overview
from tensorbench.reports.recipes import find_mixtures, refuse_mixtures
from tensorbench.reports.results import COLUMNS, Experiment, Results, grouped
from tensorbench.reports.selection import Selection
from tensorbench.store import DEFAULT_STORE

if TYPE_CHECKING:
    # Statistics and drawing take seconds to import, and frames need neither.
    from tensorbench.reports.analysis import Analysis
    from tensorbench.reports.drawing import Drawn, Figures


class Column(NamedTuple):
    """A column of a frame. `unit` is empty if the values have no unit."""

    dtype: str
    unit: str
    meaning: str


#: The dtypes of columns. pandas 3 calls its own text dtype `str`.
TEXT, INTEGER, NUMBER, MOMENT = "str", "Int64", "float64", "datetime64[ms, UTC]"

#: The columns that identify the trial of a line, in all frames.
WHICH = {
    "experiment": Column(TEXT, "", "the experiment that has the run"),
    "trial_id": Column(TEXT, "", "hash of all that can change the result"),
    "run_id": Column(TEXT, "", "MLflow's id of the run, where it ran"),
    "task": Column(TEXT, "", "the task's name"),
    "backbone": Column(TEXT, "", "the backbone's name"),
    "budget": Column(TEXT, "", "the trial's budgets, joined by '; ', or 'fixed size'"),
    "method": Column(TEXT, "", "the method as tables call it"),
    "seed": Column("int64", "", "the seed of the trial's random streams"),
}

#: The columns of `LoadedResults.trials`.
TRIALS = WHICH | {
    "family": Column(TEXT, "", "the method's registered name"),
    "ranks": Column(TEXT, "", "in the order of the method's modes, joined by commas"),
    "phase": Column(TEXT, "", "final or search"),
    "status": Column(TEXT, "", "FINISHED, FAILED, KILLED or RUNNING"),
    "failure": Column(TEXT, "", "why it failed, in a word or two"),
    "message": Column(TEXT, "", "the same in full"),
    "metric": Column(TEXT, "", "the metric of `score` and `validation`"),
    "evaluated": Column(TEXT, "", "the split that `score` and `loss` are of"),
    **{column: Column(measure.dtype, measure.unit, measure.meaning) for column, measure in COLUMNS.items()},
    "text": Column(TEXT, "", "newspapers or finewiki; empty where forgetting was not measured"),
    "started": Column(MOMENT, "", "when it began"),
    "ended": Column(MOMENT, "", "when it ended; NaT while it runs"),
    "suite_sha256": Column(TEXT, "", "of the suite that it was started from"),
    "harness": Column(TEXT, "", "the version of this harness"),
    "git_commit": Column(TEXT, "", "of the harness, or 'unknown'"),
    "git_dirty": Column(TEXT, "", "whether its tree was changed: yes, no or unknown"),
    "version_torch": Column(TEXT, "", "torch's version"),
    "cpu": Column(TEXT, "", "the processor"),
    "gpu": Column(TEXT, "", "the GPU; empty where it ran on the processor"),
    "threads": Column(INTEGER, "threads", "of torch"),
}

#: The columns of `LoadedResults.curves`.
CURVES = WHICH | {
    "measure": Column(TEXT, "", "train/loss, validation/loss, or validation/ and the metric"),
    "step": Column("int64", "steps or epochs", "a step for train/loss, else an epoch; the first is 1"),
    "value": Column(NUMBER, "nats or the metric's", "the loss, or the score"),
}

#: The columns of `LoadedResults.predictions`, without the numbered columns that follow them (see `NUMBERED`).
PREDICTIONS = WHICH | {
    "example": Column("int64", "", "the example's id in its source"),
    "label": Column(NUMBER, "the target's", "the index of the right class; of a regression, the target"),
    "prediction": Column(NUMBER, "the target's", "the index of the answered class, or the value"),
    "correct": Column("boolean", "", "whether the two are the same; <NA> of a regression"),
    "log_probability": Column(
        NUMBER, "nats", "of the label, to thousandths; NaN unless a class is answered for each example"
    ),
}

#: The types of numbered columns such as `logit_0`, by their names without the number. They follow the columns
#: of `PREDICTIONS`. Only multi-label tasks have numbered labels and predictions, such as `label_0`.
NUMBERED = {"label": INTEGER, "prediction": INTEGER, "logit": "float32"}


class LoadedResults(ShowsOverview, Results):
    """The results of experiments: their cells, seeds, trials, curves and predictions as data frames.

    The report's answer and tables are attributes as well, and `plot` returns its figures. Each is read or
    computed on first use. `TRIALS`, `CURVES` and `PREDICTIONS` describe the columns of three of the frames.
    An empty frame has the same columns.
    """

    def overview(self) -> Table:
        """The table of all cells' scores that the terminal shows after a run. It has no comparisons.

        Scores are those of a report, and studies that are left out are named. Raises UserError if a plug-in's
        metric fails.
        """
        closings = [experiment.closing for experiment in self.experiments if experiment.closing]
        analysis = self._analysis
        notes = analysis.notes if any(cell.studies for cell in self.all_cells) else self.notes
        return overview(self.title, self, [*notes, *closings], analysis)

    @cached_property
    def analysis(self) -> Analysis:
        """The comparisons that a report shows.

        Raises UserError if trials are not comparable, and if a plug-in's metric fails.
        """
        refuse_mixtures(find_mixtures(self))
        return self._analysis

    @cached_property
    def _analysis(self) -> Analysis:
        from tensorbench.reports.analysis import analyse

        return analyse(self)

    @property
    def answer(self) -> str:
        """The sentences with which the report answers which method to use, one per line.

        Raises UserError as `analysis` does.
        """
        from tensorbench.reports.answers import answers

        return "\n".join(answers(self.analysis))

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The report's tables, by the names of their CSV files. Raises UserError as `analysis` does."""
        from tensorbench.reports.tidy import tidy_tables

        return {name: _frame(table) for name, table in tidy_tables(self.analysis).items()}

    def plot(self, *kinds: str) -> Figures:
        """The report's figures, or only the figures of these kinds. A notebook shows them one below another.

        The kinds are `differences`, `differences-by-task`, `score-vs-parameters` and `score-vs-memory`.
        Suites tuned by studies also have `curves` (scores by trials of tuning) and `rates` (scores by
        learning rate). Other suites have `training-curves`. Allocations of ranks have `ranks`, and methods
        under three budgets or more have `ranks-budgets`.

        Raises UserError if there is nothing to draw, if a kind is unknown or has no data, and as `analysis`
        does.
        """
        from tensorbench.reports.drawing import Figures

        if not self._figures:
            raise UserError("no figure can be drawn yet: too little has finished")
        available = list(dict.fromkeys(figure.kind for figure in self._figures))
        for kind in kinds:
            if kind not in available:
                raise UnknownNameError("figure of these results", kind, available)
        return Figures(figure for figure in self._figures if figure.kind in (kinds or available))

    @cached_property
    def _figures(self) -> list[Drawn]:
        from tensorbench.reports.figures import draw

        return draw(self.analysis)[0]

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One line per trial that has a run, including trials of searches.

        If a trial has several runs, the line describes the run that counts.
        """
        return typed((_trial(experiment, record) for experiment, record in self._records()), TRIALS)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One line per point of each trial's curves. Lines are in the order of `trials`, measure and step."""
        runs = grouped(self._records(), lambda run: run[0].name)
        own = {name: [record for _, record in of_name] for name, of_name in runs.items()}
        frames = [_curves(experiment, own.get(experiment.name, ())) for experiment in self.experiments]
        return typed(pd.concat(frames, ignore_index=True) if frames else [], CURVES)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One line per finished trial and example on which the trial was scored.

        The columns of `PREDICTIONS` come first, then the numbered columns of `NUMBERED`. If a trial has fewer
        classes than others, its values in the last numbered columns are missing. Trials of searches, and
        trials without stored predictions, have no lines. Raises UserError for predictions that were changed
        or cannot be read.
        """
        finished = {seed.trial_id for seed in self.all_seeds if seed.finished}
        read = [_predictions(*run) for run in self._records() if run[1].trial_id in finished]
        frames = [frame for frame in read if frame is not None]
        stored = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        more = {
            f"{name}_{number}": dtype
            for name, dtype in NUMBERED.items()
            for number in range(sum(str(column).startswith(f"{name}_") for column in stored))
        }
        return typed(stored, PREDICTIONS).join(stored[list(more)].astype(more))

    def _records(self) -> Iterator[tuple[Experiment, Record]]:
        """Yields each trial's experiment and the one of its runs that counts (see `latest`)."""
        counts = latest(record for each in self.experiments for record in each.records.values())
        for experiment in self.experiments:
            in_order = sorted(experiment.records.values(), key=lambda run: (run.started, run.origin))
            yield from ((experiment, record) for record in in_order if counts[record.trial_id] is record)


def load_results(
    *experiments: str | PathLike[str] | pd.DataFrame,
    store: str = DEFAULT_STORE,
    selection: Selection | None = None,
    **table: Unpack[TableOptions],
) -> LoadedResults:
    """Loads the results of experiments in a store, of packs, or of other programs: frames, answer, figures.

    `experiments` are names of experiments in the store, or files of packs, which need no store. The results
    of several experiments are combined. `selection` limits the rows and the comparisons. The returned object
    has the frames `cells` and `seeds` (see `tensorbench.reports.results.Results`), and everything that
    `LoadedResults` documents.

    `experiments` may also be results of other programs: a table of runs (.csv, .tsv, .jsonl, .parquet, or a
    data frame), a result file of lm-evaluation-harness, inspect or peft, or a folder of such files. The
    remaining keywords are those of `TableOptions`. They name a table's columns, if these do not have the
    default names, a folder with the scores of examples, and the metric:
    `load_results("runs.csv", method="algorithm", score="test_acc", lr="learning_rate")`.

    Raises UserError for arguments of other types, for an experiment that does not exist or has no result, for
    a pack or a table that is refused, and for a selection of rows that do not exist.
    """
    if not experiments:
        raise UserError("load_results() takes at least one experiment, or the file of a pack or of a table")
    return LoadedResults(**vars(reading.read(store, experiments, selection, table)))


def _frame(table: Table) -> pd.DataFrame:
    """Makes a frame of a report's table.

    A column that is unknown in every line is one of numbers, since text that is absent is empty.
    """
    frame = pd.DataFrame(table.lines)
    unknown = {name: "float64" for name in frame if frame[name].isna().all()}
    return frame.astype(unknown | ({"within": "boolean"} if "within" in frame else {}))


def typed(lines: pd.DataFrame | Iterable[Mapping[str, Any]], columns: Mapping[str, Column]) -> pd.DataFrame:
    """Makes a frame with exactly these columns, in this order and with these types, even without lines."""
    frame = lines if isinstance(lines, pd.DataFrame) else pd.DataFrame(list(lines))
    frame = frame.reindex(columns=list(columns))
    for name, column in columns.items():
        if column.dtype == MOMENT:
            frame[name] = pd.to_datetime(frame[name].astype("float64"), unit="ms", utc=True)
    return frame.astype({name: column.dtype for name, column in columns.items()})


def _which(experiment: Experiment, record: Record) -> dict[str, Any]:
    budget = record.tag(Tag.BUDGET)
    return {
        "experiment": experiment.name,
        "trial_id": record.trial_id,
        "run_id": record.origin,
        "task": record.tag(Tag.TASK),
        "backbone": record.tag(Tag.BACKBONE),
        # The tag and the tables use different words for a fixed size.
        "budget": OWN_SIZE if budget in ("", "own") else budget,
        "method": record.tag(Tag.METHOD),
        "seed": int(record.tag(Tag.SEED)),
    }


def _trial(experiment: Experiment, record: Record) -> dict[str, Any]:
    provenance = record.provenance
    threads = provenance.get("threads", "")
    return {
        **{name: provenance.get(name, "") for name in TRIALS},
        **_which(experiment, record),
        "family": record.tag(Tag.FAMILY),
        "ranks": record.tag(Tag.RANKS),
        "phase": record.tag(Tag.PHASE, "final"),
        "status": str(record.status),
        "failure": record.tag(Tag.FAILURE),
        "message": record.tag(Tag.FAILURE_MESSAGE),
        "metric": record.tag(Tag.METRIC),
        "evaluated": record.tag(Tag.EVALUATED),
        **{column: record.measure(measure) for column, measure in COLUMNS.items()},
        "score": record.score,
        "text": record.tag(Tag.TEXT),
        "started": record.started or None,
        "ended": record.ended,
        # Python reads no number of more than 4300 digits, which a tag of a pack may have.
        "threads": int(threads) if threads.isdecimal() and len(threads) < 10 else None,
    }


def _curves(experiment: Experiment, records: Iterable[Record]) -> pd.DataFrame:
    points = experiment.source.curves().rename(columns={"key": "measure"})
    which = pd.DataFrame(
        [_which(experiment, record) | {"run": record.run_id} for record in records],
        columns=[*WHICH, "run"],
    )
    # Runs that do not count, such as retried failures, have curves as well.
    return which.merge(points.rename(columns={"run_id": "run"}), on="run").drop(columns="run")


def _predictions(experiment: Experiment, record: Record) -> pd.DataFrame | None:
    content = experiment.source.read(record, Artifact.PREDICTIONS)
    if content is None:
        return None
    try:
        stored = read_predictions(content)
    except ValueError as error:
        raise UserError(
            f"{Artifact.PREDICTIONS} of run {record.run_id} ({record.name}) cannot be read: {error}"
        ) from error
    columns: dict[str, Any] = {"example": stored.example}
    for name, values in (("label", stored.label), ("prediction", stored.prediction), ("logit", stored.logit)):
        if values is not None and values.ndim == 1:
            columns[name] = values
        elif values is not None:
            columns |= {f"{name}_{number}": values[:, number] for number in range(values.shape[1])}
    right = stored.label == stored.prediction
    counted = stored.label.dtype.kind in "iu" and len(right)
    columns["correct"] = right.reshape(len(right), -1).all(axis=1) if counted else pd.NA
    single = compact(stored)
    columns["log_probability"] = single.log_probability if single else float("nan")
    return pd.DataFrame(columns).assign(**_which(experiment, record))
