"""Opens results of other programs: tables of runs, files of lm-evaluation-harness and inspect, and peft's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from tensorbench.methods import UserError
from tensorbench.reports.foreign.inspect_log import read_inspect
from tensorbench.reports.foreign.lm_eval import read_lm_eval
from tensorbench.reports.foreign.names import BINARY_LOG, COLUMNS, ENDINGS, FILES, TableOptions
from tensorbench.reports.foreign.peft_results import read_peft
from tensorbench.reports.foreign.runs import ForeignRun, ForeignSource
from tensorbench.reports.foreign.table import read_table

#: What files of results lack.
NO_SEEDS = (
    "These files name no training seed: models are told apart by name, and `NAME-seed3` is run 3 of NAME. "
    "Without such names each model is one run, and no difference can be claimed."
)


def open_foreign(name: str | pd.DataFrame, options: TableOptions) -> ForeignSource:
    """Opens results of another program.

    Raises UserError if they cannot be read, and for columns that a table lacks.
    """
    metric = options.get("metric", "")
    if isinstance(name, pd.DataFrame):
        return ForeignSource("table", *read_table(name, options), metric)
    path = Path(name)
    if path.suffix in ENDINGS:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        return ForeignSource(path.name, *read_table(path, options), metric)
    if columns := [option for option in options if option in COLUMNS or option == "examples"]:
        raise UserError(f"--{columns[0]} is for tables, which end with {', '.join(ENDINGS)}; got {path}")
    files = sorted({file for pattern in FILES for file in path.glob(pattern)}) if path.is_dir() else [path]
    notes: list[str] = []
    runs = [run for file in files for run in _read(file, notes)]
    if not runs:
        raise UserError(f"{path}: no result of a run in it; files of results are called {', '.join(FILES)}")
    # Of a run that was evaluated again after a failure the failure does not count, and one failure is enough.
    unscored = {(*run.row, run.seed): run for run in runs if run.score is None}
    scored = [run for run in runs if run.score is not None]
    failed = unscored.keys() - {(*run.row, run.seed) for run in scored}
    return ForeignSource(path.name, [*scored, *(unscored[key] for key in sorted(failed))], notes, metric)


#: The reader of a JSON file by a key of its content.
READERS = {"run_info": read_peft, "eval": read_inspect, "results": read_lm_eval}


def _read(file: Path, notes: list[str]) -> list[ForeignRun]:
    if file.suffix == BINARY_LOG:
        raise UserError(
            f"{file}: convert inspect's logs to JSON: inspect log convert --to json --output-dir DIR {file}"
        )
    try:
        if not file.is_file():
            # A pipe would be read without end.
            raise ValueError("it is not a file")
        content: Any = json.loads(file.read_bytes())
        reader = next((reader for key, reader in READERS.items() if key in content), None)
        if reader is None:
            raise ValueError("no result of lm-evaluation-harness, inspect or peft")
        if NO_SEEDS not in notes and reader is not read_peft:
            notes.append(NO_SEEDS)
        return list(reader(file, content, notes))
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise UserError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
