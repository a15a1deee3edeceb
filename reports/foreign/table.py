"""Reads a table of runs, one per line: CSV, TSV, JSON lines, JSON, parquet or a data frame."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import first_few, shown
from tensorbench.records.measures import Measure
from tensorbench.reports.foreign.names import COLUMNS, ENDINGS, TableOptions
from tensorbench.reports.foreign.runs import ForeignRun
from tensorbench.reports.units import listed

#: The smallest and the largest learning rate that a table may have.
RATES = 1e-12, 1e6
#: The largest number of lines of a table. A small compressed file can hold far more.
MOST_LINES = 10_000_000
#: The texts that count as a missing number.
MISSING = ("", "nan", "none", "null", "na", "n/a", "inf", "-inf")
#: Words in the name of a score of which less is better.
LESS_IS_BETTER = {
    "cer",
    "err",
    "error",
    "loss",
    "mae",
    "mse",
    "nll",
    "perplexity",
    "ppl",
    "rmse",
    "ter",
    "wer",
}
#: Optional measures of a run, by the column's name, which is the same in `LoadedResults.trials`.
NUMBERS = {
    each.column: each
    for each in (
        *(Measure.SELECTED_VALIDATION, Measure.SELECTED_LOSS, Measure.ADAPTER_PARAMETERS),
        *(Measure.SECONDS, Measure.STEP_MS, Measure.PEAK_MIB, Measure.FORGETTING),
    )
}

#: A line of a table, with its place: the file and the line.
Line = tuple[str, Mapping[str, Any]]


#: The columns that identify a run.
KEYS = ("method", "task", "backbone", "budget", "seed", "study", "lr")


def read_table(table: Path | pd.DataFrame, options: TableOptions) -> tuple[list[ForeignRun], list[str]]:
    """Reads a table of runs. Returns the runs, and notes on columns that it lacks.

    Raises UserError, with the file and the line, if the table has no line, if a column does not exist or
    occurs twice, if a value is not a number, if a parquet file has more than `MOST_LINES` rows, if examples
    belong to no run, and if a column that is not used would change what is compared.
    """
    name = "the table" if isinstance(table, pd.DataFrame) else table.name
    lines = list(_lines(table))
    if not lines:
        raise UserError(f"{name} has no line")
    columns = _columns(name, {key: None for _, line in lines for key in line}, options)
    for needed in ("method", "score"):
        if needed not in columns:
            there = listed(dict.fromkeys(key for _, line in lines for key in line))
            raise UserError(
                f"{name} has no column '{needed}': name it by --{needed}; the columns are {there}"
            )
    notes = list(_unused(name, lines, columns, options))
    task = "" if isinstance(table, pd.DataFrame) else table.stem
    runs, keys = [], []
    for where, line in lines:
        runs.append(_run(where, {own: line.get(column) for own, column in columns.items()}, task or "all"))
        keys.append(tuple(_text(line.get(columns[key])) for key in KEYS if key in columns))
    if "seed" not in columns:
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
        try:
            _refuse_repeated(map(str, table.columns))
        except ValueError as error:
            raise UserError(f"the table: {error}") from error
        for index, row in zip(table.index, table.to_dict("records"), strict=True):
            yield f"row {index}", {str(key): value for key, value in row.items()}
        return
    number, name = 0, table.name
    try:
        if table.suffix == ".parquet":
            from pyarrow.parquet import ParquetFile

            with ParquetFile(table) as stored:
                _refuse_repeated(stored.schema_arrow.names)
                if stored.metadata.num_rows > MOST_LINES:
                    raise ValueError(f"it has {stored.metadata.num_rows:,} rows, over {MOST_LINES:,}")
                # A frame would turn some columns into its index, which are no columns then.
                rows = (row for batch in stored.iter_batches(1_000) for row in batch.to_pylist())
                for number, row in enumerate(rows, 1):
                    yield f"{name}, row {number}", row
            return
        with table.open(encoding="utf-8-sig", newline="") as file:
            if separator := ENDINGS.get(table.suffix):
                reader = csv.DictReader(file, delimiter=separator, strict=True)
                _refuse_repeated(reader.fieldnames or ())
                for values in reader:
                    number = reader.line_num
                    if None in values or None in values.values():
                        raise ValueError(
                            f"it has not the {len(reader.fieldnames or ())} fields of the heading"
                        )
                    yield f"{name}, line {number}", values
                return
            for number, text in enumerate(file, 1):
                if text.strip():
                    values = json.loads(text)
                    if not isinstance(values, dict):
                        raise ValueError("no JSON object")
                    yield f"{name}, line {number}", values
    except (OSError, ValueError, csv.Error, RecursionError, NotImplementedError) as error:
        raise UserError(f"{name}, line {number + (number == 0)} cannot be read: {error}") from error


def _refuse_repeated(columns: Iterable[str]) -> None:
    if repeated := [column for column, count in Counter(columns).items() if count > 1]:
        raise ValueError(f"column {shown(repeated[0])} occurs twice")


def _columns(name: str, there: Mapping[str, None], options: TableOptions) -> dict[str, str]:
    """Maps each option and measure to its column, if the table has this column.

    Without an option, a column may have the option's name in capitals, and blanks around it. Raises UserError
    if an option names a column that the table lacks, and if several columns could be meant.
    """
    own: Mapping[str, Any] = options
    for option in COLUMNS:
        if option in own and own[option] not in there:
            raise UnknownNameError(f"column of {name}", own[option], there)
    columns = {}
    for option in dict.fromkeys((*COLUMNS, *NUMBERS)):
        alike = [column for column in there if column.strip().casefold() == option]
        column = own.get(option, option if option in there else None)
        if column is None and len(alike) > 1:
            raise UserError(f"{name}: several columns could be '{option}': {listed(map(shown, alike))}")
        if found := [column] if column is not None else alike:
            columns[option] = str(found[0])
    return columns


def _unused(
    name: str, lines: Sequence[Line], columns: Mapping[str, str], options: TableOptions
) -> Iterator[str]:
    """Yields a note on columns that are not used.

    Raises UserError if one of them, or the name of the scores, says that the table would be misread: scores
    of several metrics, scores of which less is better, and, without seeds, runs that differ in more than
    their seeds.
    """
    unused = [column for column in dict.fromkeys(k for _, line in lines for k in line) if column.strip()]
    unused = [column for column in unused if column not in columns.values()]
    values = {column: [_text(line.get(column)) for _, line in lines] for column in unused}
    metrics = {each for column in unused if column.strip().casefold() == "metric" for each in values[column]}
    if len(metrics) > 1:
        raise UserError(
            f"{name}: scores of several metrics, {listed(sorted(metrics))}: split the table, and name each "
            "metric by --metric"
        )
    for label in (columns["score"], *metrics):
        if not options.get("metric") and LESS_IS_BETTER.intersection(re.split("[^a-z]+", label.casefold())):
            raise UserError(
                f"{name}: more is taken to be better, and of {shown(label)} less seems to be: name its "
                "metric (--metric rmse), or give one minus a share of errors"
            )
    methods = [_text(line.get(columns["method"])) for _, line in lines]
    for column in unused if "seed" not in columns else ():
        if _tells_runs_apart(methods, values[column]):
            raise UserError(
                f"{name}: methods share values of column {shown(column)}, which is not used, and there are "
                "no seeds: name it, as --task, --backbone, --budget or --seed, or leave it out"
            )
    if unused:
        yield f"Columns not used: {first_few(unused, 10)}."


def _tells_runs_apart(methods: Sequence[str], values: Sequence[str]) -> bool:
    """Whether a column has several values for a method that other methods have too, as tasks and seeds.

    Numbers with a fraction are measures, and truth values tell how a run went.
    """
    by_value, by_method = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for method, value in zip(methods, values, strict=True):
        by_value[value].add(method)
        by_method[method].add(value)
    if {value.casefold() for value in by_value} <= {"true", "false", ""} or any(map(_fraction, by_value)):
        return False
    shared = {value for value, of_methods in by_value.items() if len(of_methods) > 1}
    return any(len(own & shared) > 1 for own in by_method.values())


def _fraction(value: str) -> bool:
    try:
        return not float(value).is_integer()
    except ValueError:
        return False


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
        key = (*runs[place].row, runs[place].study, runs[place].lr)
        seeds[place] = counts[key]
        counts[key] += 1
    return [replace(run, seed=seeds[place]) for place, run in enumerate(runs)]


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
    """Adds the scores of test examples to runs. `keys` has the values of each run's columns in `KEYS`."""
    files = sorted(file for file in folder.glob("*") if file.suffix in ENDINGS)
    if not files:
        raise UserError(f"--examples {folder}: no file in it ends with {', '.join(ENDINGS)}")
    own, there = [columns[key] for key in KEYS if key in columns], {*keys}
    scores: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
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
    return [replace(run, examples=scores.get(key, {})) for run, key in zip(runs, keys, strict=True)]
