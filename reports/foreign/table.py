"""Reads a table of runs, one per line: CSV, TSV, JSON lines, parquet or a data frame."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import first_few, shown
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS
from tensorbench.reports.foreign.exports import Line, unfolded
from tensorbench.reports.foreign.names import COLUMNS, ENDINGS, TableOptions, less_is_better
from tensorbench.reports.foreign.runs import DEFAULT_METRIC, ForeignRun
from tensorbench.reports.results import grouped
from tensorbench.reports.units import listed, many

#: The smallest and the largest learning rate that a table may have.
RATES = 1e-12, 1e6
#: The largest number of lines of a table. A small compressed file can hold far more.
MOST_LINES = 10_000_000
#: The largest number of characters of a line of a table.
LONGEST_LINE = 2**24
#: The largest number of columns of a table. If there are more, rows and columns were probably exchanged.
MOST_COLUMNS = 10_000
#: The bytes with which files of gzip begin.
GZIP = b"\x1f\x8b"
#: The texts that count as a missing number.
MISSING = ("", "nan", "none", "null", "na", "n/a", "inf", "-inf")
#: Optional measures of a run, by the column's name, which is the same in `LoadedResults.trials`.
NUMBERS = {
    each.column: each
    for each in (
        *(Measure.SELECTED_VALIDATION, Measure.SELECTED_LOSS, Measure.ADAPTER_PARAMETERS),
        *(Measure.SECONDS, Measure.STEP_MS, Measure.PEAK_MIB, Measure.FORGETTING),
    )
} | {"effort": Measure.EFFORT}
#: The other names of columns that state how much a method was tuned.
EFFORTS = ("trials", "tries")

#: The names of columns of configurations.
CONFIGS = ("config", "configuration", "trial")
#: Words in the names of columns that seem to be settings.
SETTINGS = {
    *("alpha", "batch", "bottleneck", "decay", "drop", "dropout", "momentum", "optimizer", "r", "rank"),
    *("scale", "scheduler", "warmup", "wd"),
}
#: The numbers of digits to which two numbers of a setting, and two learning rates, are compared.
SETTING_DIGITS, RATE_DIGITS = 6, 12
#: The columns that identify a run.
KEYS = ("method", "task", "backbone", "budget", "seed", "study", "lr")


def read_table(table: Path | pd.DataFrame, options: TableOptions) -> tuple[list[ForeignRun], list[str]]:
    """Reads a table of runs. Returns the runs, and notes on columns that it lacks.

    Raises UserError, with the file and the line, if the table has no line, if a column does not exist or
    occurs twice, if a value is not a number, if a parquet file has more than `MOST_LINES` rows, if examples
    belong to no run, and if scores or runs would be taken for what they are not.
    """
    name = "the table" if isinstance(table, pd.DataFrame) else table.name
    if not (lines := list(_lines(table))):
        raise UserError(f"{name} has no line")
    lines, ended = unfolded(lines)
    there = {key: None for _, line in lines for key in line}
    columns = _columns(name, there, options)
    for needed in ("method", "score"):
        if needed not in columns:
            raise UserError(
                f"{name} has no column '{needed}': name it by --{needed}; the columns are {listed(there)}"
            )
    settings = _settings(name, there, options)
    used = {*columns.values(), *settings}
    unused = [column for column in there if column.strip() and column not in used]
    task = "" if isinstance(table, pd.DataFrame) else table.stem
    runs, keys = [], []
    for (where, line), well in zip(lines, ended, strict=True):
        run = _run(where, {own: line.get(column) for own, column in columns.items()}, task or "all")
        run = replace(run, config=", ".join(_setting(line.get(column)) for column in settings))
        # The score of a run that did not end is not its last one.
        runs.append(run if well else replace(run, score=None, failure="error"))
        keys.append(tuple(_text(line.get(columns[key])) for key in KEYS if key in columns))
    metrics = defaultdict[str, set[str]](set)
    for column in unused:
        if column.strip().casefold() == "metric":
            for run, (_, line) in zip(runs, lines, strict=True):
                metrics[run.task] |= {_text(line.get(column)).casefold()} - {""}
    _refuse_metrics(name, columns["score"], metrics, options)
    _refuse_two_scales(runs, options)
    notes = [f"Columns not used: {first_few(unused, 10)}."] if unused else []
    if lost := ended.count(False):
        notes.append(f"{many(lost, 'run')} did not finish: counted as failed, and in no mean.")
    _refuse_settings(name, lines, unused, runs)
    if "seed" not in columns:
        _refuse_pooled(name, lines, unused, [(key[0], key[1:]) for key in keys])
        runs = _numbered(runs)
        notes.append(
            "No column of seeds: the runs of a method are taken as independent, and paired in an arbitrary "
            "order. A column `seed` would pair runs that share theirs, which narrows intervals."
        )
    if options.get("examples"):
        runs = _with_examples(Path(options["examples"]), columns, runs, keys)
    return runs, notes


def _lines(table: Path | pd.DataFrame) -> Iterator[Line]:
    if isinstance(table, pd.DataFrame):
        named = [name for name in table.index.names if name is not None]
        try:
            _check_columns([*map(str, (*named, *table.columns))])
        except ValueError as error:
            raise UserError(f"the table: {error}") from error
        with_index = table.reset_index() if named else table
        for index, row in zip(table.index, with_index.to_dict("records"), strict=True):
            yield f"row {index}", {str(key): value for key, value in row.items()}
        return
    number, name, reader = 0, table.name, None
    try:
        if table.suffix == ".parquet":
            from pyarrow.parquet import ParquetFile

            with ParquetFile(table) as stored:
                _check_columns(stored.schema_arrow.names)
                if stored.metadata.num_rows > MOST_LINES:
                    raise ValueError(f"it has {stored.metadata.num_rows:,} rows, over {MOST_LINES:,}")
                # A frame would turn some columns into its index, which are no columns then.
                rows = (row for batch in stored.iter_batches(100) for row in batch.to_pylist())
                for number, row in enumerate(rows, 1):
                    yield f"{name}, row {number}", row
            return
        with table.open(encoding="utf-8-sig", newline="") as file:
            if file.buffer.read(2) == GZIP:
                raise ValueError("it is compressed: unpack it first")
            file.seek(0)
            if separator := ENDINGS.get(table.suffix):
                reader = csv.DictReader(bounded_lines(name, file), delimiter=separator, strict=True)
                _check_columns(reader.fieldnames or ())
                for values in reader:
                    if None in values or None in values.values():
                        raise ValueError(
                            f"it has not the {len(reader.fieldnames or ())} fields of the heading"
                        )
                    yield f"{name}, line {reader.line_num}", values
                return
            for number, text in enumerate(bounded_lines(name, file), 1):
                if text.strip():
                    values = json.loads(text)
                    if not isinstance(values, dict):
                        raise ValueError("no JSON object")
                    _check_columns(list(values))
                    yield f"{name}, line {number}", values
    except UnicodeDecodeError as error:
        # Files are decoded in blocks, so the line is not known.
        raise UserError(f"{name} cannot be read: {error}") from error
    except (OSError, ValueError, csv.Error, RecursionError, NotImplementedError) as error:
        number = reader.reader.line_num if reader else number
        raise UserError(f"{name}, line {number or 1} cannot be read: {error}") from error


def bounded_lines(name: str, file: TextIO) -> Iterator[str]:
    """Yields the lines of a file. Raises UserError for a line of `LONGEST_LINE` characters or more."""
    for number in count(1):
        if not (text := file.readline(LONGEST_LINE)):
            return
        if len(text) == LONGEST_LINE:
            raise UserError(f"{name}, line {number} has {LONGEST_LINE:,} characters or more")
        yield text


def _check_columns(columns: Sequence[str]) -> None:
    """Raises ValueError if there are more than `MOST_COLUMNS`, or if a column occurs twice."""
    if len(columns) > MOST_COLUMNS:
        raise ValueError(f"it has {len(columns):,} columns, and at most {MOST_COLUMNS:,} are read")
    if repeated := [column for column, count in Counter(columns).items() if count > 1]:
        raise ValueError(f"column {shown(repeated[0])} occurs twice")


def _columns(name: str, there: Mapping[str, None], options: TableOptions) -> dict[str, str]:
    """Maps each option and measure to its column, if the table has this column.

    Without an option, a column of `KEYS`, of scores or of effort may have its name in capitals, and blanks
    around it, and effort may have one of the names `EFFORTS`.
    Raises UserError if an option names a column that the table lacks, and if several columns could be meant.
    """
    own: Mapping[str, Any] = options
    for option in COLUMNS:
        if option in own and own[option] not in there:
            raise UnknownNameError(f"column of {name}", own[option], there)
    columns: dict[str, str] = {}
    for option in dict.fromkeys((*COLUMNS, *NUMBERS)):
        alike = [option] if option in there else []
        if option in own:
            alike = [own[option]]
        elif not alike and option in (*KEYS, "score", "effort"):
            names = (option, *EFFORTS) if option == "effort" else (option,)
            alike = [column for column in there if column.strip().casefold() in names]
        if len(alike) > 1:
            raise UserError(f"{name}: several columns could be '{option}': {listed(map(shown, alike))}")
        columns |= dict.fromkeys([option][: len(alike)], *alike)
    return columns


def _refuse_metrics(
    name: str, score: str, of_tasks: Mapping[str, Collection[str]], options: TableOptions
) -> None:
    """Raises UserError if a task has scores of several metrics, or of one of which less is better.

    `score` is the column of scores, and `of_tasks` has what the table says of each task's metrics.
    """
    if several := next((each for each in of_tasks.values() if len(each) > 1), None):
        raise UserError(
            f"{name}: a task has scores of several metrics, {listed(sorted(several))}: split the table"
        )
    stated = options.get("metric") or ""
    if stated == DEFAULT_METRIC or METRICS.get(stated or DEFAULT_METRIC).sign < 0:
        return
    if less := next(filter(less_is_better, [score, *chain.from_iterable(of_tasks.values())]), None):
        raise UserError(
            f"{name}: more is taken to be better, and of {shown(less)} less seems to be. --metric rmse takes "
            "less to be better, and --metric score more"
        )


def _settings(name: str, there: Mapping[str, None], options: TableOptions) -> list[str]:
    """The columns of a configuration. Raises UserError if an option names one that the table lacks."""
    if stated := options.get("config"):
        columns = [column.strip() for column in stated.split(",")]
        for column in columns:
            if column not in there:
                raise UnknownNameError(f"column of {name}", column, there)
        return columns
    return [column for column in there if column.strip().casefold() in CONFIGS]


def _setting(value: Any) -> str:
    """A value of a configuration as text. Numbers that differ by rounding alone have one text."""
    try:
        return f"{float(_text(value)):.{SETTING_DIGITS}g}"
    except ValueError:
        return _text(value)


def _refuse_settings(
    name: str, lines: Sequence[Line], unused: Sequence[str], runs: Sequence[ForeignRun]
) -> None:
    """Raises UserError if runs that count as repeated differ in an unused column that seems to be a setting.

    It seems to be one by its name, or if a method has the same several values of it on each of its tasks, and
    they are not those of the seeds.
    """
    repeated = grouped(zip(runs, lines, strict=True), lambda each: (*each[0].row, each[0].trial))
    for column in unused:
        values: dict[tuple[object, ...], Counter[str]] = {
            key: Counter(_setting(line.get(column)) for _, (_, line) in own) for key, own in repeated.items()
        }
        if not any(len(own) > 1 for own in values.values()):
            continue
        words = {*re.split("[^a-z]+", column.casefold())}
        by_method = grouped(values, lambda key: key[1:])
        alike = all(
            len(own) > 1 and len(values[own[0]]) > 1 and all(values[key] == values[own[0]] for key in own)
            for own in by_method.values()
        )
        of_seeds = grouped(zip(runs, lines, strict=True), lambda each: each[0].place)
        seeded = runs[0].seeded and all(
            len({_setting(line.get(column)) for _, (_, line) in own}) == 1 for own in of_seeds.values()
        )
        if SETTINGS & words or (alike and not seeded):
            raise UserError(
                f"{name}: runs that count as repeated differ in column {shown(column)}, which is not used: "
                f"pass --config {column} if it is a setting, or drop it if it tells nothing of what ran"
            )


def _refuse_pooled(
    name: str,
    lines: Sequence[Line],
    unused: Sequence[str],
    identities: Sequence[tuple[str, tuple[str, ...]]],
) -> None:
    """Raises UserError if each method has the same values of an unused column, several of them.

    They could be seeds, tasks or backbones, and runs of several would be taken as independent. `identities`
    has each line's method, and what else identifies its run.
    """
    for column in unused:
        counts = defaultdict[tuple[str, ...], defaultdict[str, Counter[str]]](lambda: defaultdict(Counter))
        for (method, others), (_, line) in zip(identities, lines, strict=True):
            counts[others][method][_text(line.get(column))] += 1
        shared = [list(of_method.values()) for of_method in counts.values() if len(of_method) > 1]
        if shared and all(len(own[0]) > 1 and own.count(own[0]) == len(own) for own in shared):
            raise UserError(
                f"{name}: each method has the same values of column {shown(column)}, which is not used, and "
                "there are no seeds: name it, as --task, --backbone, --budget or --seed, or drop it if it "
                "tells nothing of what ran"
            )


def _refuse_two_scales(runs: Sequence[ForeignRun], options: TableOptions) -> None:
    """Raises UserError if the scores of one row of a task look like shares, and others are percentages."""
    if METRICS.get(options.get("metric") or DEFAULT_METRIC).bounds[1] != 1:
        return
    scored = [run for run in runs if run.score is not None]
    for of_task in grouped(scored, lambda run: run.task).values():
        most = max(abs(run.score or 0.0) for run in of_task)
        for own in grouped(of_task, lambda run: run.row).values() if most > 1 else ():
            scores = [abs(run.score or 0.0) for run in own]
            if any(scores) and max(scores) <= 1:
                raise UserError(
                    f"{own[0].where}: score {own[0].score} beside {most} of the same task: is it a share, or "
                    "in percent? Write all scores of the task as shares"
                )


def _run(where: str, values: Mapping[str, Any], task: str) -> ForeignRun:
    def text(name: str, default: str) -> str:
        return _text(values.get(name)) or default

    def number(name: str) -> float | None:
        return _number(where, name, values.get(name))

    def whole(name: str) -> int | None:
        value = number(name)
        if value is not None and (value != int(value) or not 0 <= value < 2**53):
            raise UserError(f"{where}: {name} {shown(values[name])} is no whole number from 0")
        return None if value is None else int(value)

    method, rate = text("method", ""), number("lr")
    if not method:
        raise UserError(f"{where}: the method is empty")
    if rate is not None and not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"{where}: lr {shown(values['lr'])} is not from {RATES[0]:g} to {RATES[1]:g}")
    if "seed" in values and whole("seed") is None:
        raise UserError(f"{where}: the seed is empty")
    rate = None if rate is None else float(f"{rate:.{RATE_DIGITS}g}")
    return ForeignRun(
        method=method,
        task=text("task", task),
        backbone=text("backbone", ForeignRun.backbone),
        budget=text("budget", ForeignRun.budget),
        score=number("score"),
        seed=whole("seed") or 0,
        where=where,
        study=whole("study"),
        lr=rate,
        measures={
            measure: value
            for column, measure in NUMBERS.items()
            if column in values
            and (value := (whole if measure == Measure.ADAPTER_PARAMETERS else number)(column)) is not None
        },
    )


def _numbered(runs: Sequence[ForeignRun]) -> list[ForeignRun]:
    """Numbers runs without seeds: those that only differ in their scores get the seeds 0, 1, …"""
    counts = Counter[tuple[object, ...]]()
    seeds: dict[int, int] = {}
    # Lines are often sorted by score. Pairing them in their order would pair the best run of each method with
    # the best of the other, so that differences vary too little. The order of hashes is as good as random,
    # and is the same however lines are sorted.
    for place in sorted(range(len(runs)), key=lambda place: (runs[place].id, str(runs[place]))):
        key = (*runs[place].row, runs[place].study, runs[place].trial)
        seeds[place] = counts[key]
        counts[key] += 1
    return [replace(run, seed=seeds[place], seeded=False) for place, run in enumerate(runs)]


def _text(value: Any) -> str:
    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value).strip()


def _number(where: str, name: str, value: Any) -> float | None:
    """The value as a number. None if it is empty, NaN or infinite. Raises UserError for anything else."""
    text = _text(value)
    if text.casefold() in MISSING:
        return None
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{where}: {name} {shown(value)} is no number") from None
    return number if math.isfinite(number) else None


def _with_examples(
    folder: Path, columns: Mapping[str, str], runs: Sequence[ForeignRun], keys: Sequence[tuple[str, ...]]
) -> list[ForeignRun]:
    """Adds the scores of test examples to runs. `keys` has the values of each run's columns in `KEYS`.

    If tables have a column of labels, the score by chance is the share of the most frequent one.
    """
    files = sorted(file for file in folder.glob("*") if file.suffix in ENDINGS)
    if not files:
        raise UserError(f"--examples {folder}: no file in it ends with {', '.join(ENDINGS)}")
    own, there = [columns[key] for key in KEYS if key in columns], {*keys}
    scores: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    labels: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for file in files:
        for where, line in _lines(file):
            for column in (*own, "example", columns["score"]):
                if column not in line:
                    raise UnknownNameError(f"column of {file.name}", column, map(str, line))
            key, example = tuple(_text(line[column]) for column in own), _text(line["example"])
            score = _number(where, "score", line[columns["score"]])
            if key not in there:
                raise UserError(f"{where}: no run has {', '.join(map(' '.join, zip(own, key, strict=True)))}")
            if score is None or not 0 <= score <= 1:
                raise UserError(f"{where}: score {shown(line[columns['score']])} is not from 0 to 1")
            if example in scores[key]:
                raise UserError(f"{where}: example {shown(example)} of this run occurs twice")
            scores[key][example] = score
            if "label" in line:
                labels[key][_text(line["label"])] += 1

    def complete(run: ForeignRun, key: tuple[str, ...]) -> ForeignRun:
        measures = dict(run.measures)
        if key in labels:
            measures[Measure.GUESSING_SCORE] = max(labels[key].values()) / labels[key].total()
        return replace(run, examples=scores.get(key, {}), measures=measures)

    return [complete(run, key) for run, key in zip(runs, keys, strict=True)]
