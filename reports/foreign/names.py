"""How results of other programs are named: endings of tables, names of result files, and columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    # This import takes long, and commands ask for names before they open anything.
    import pandas as pd

#: The endings of tables, and how the fields of those with fields are separated.
ENDINGS = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": "", ".parquet": ""}
#: The ending of inspect's logs that are not converted to JSON.
BINARY_LOG = ".eval"
#: The names of result files in a folder: of peft, of lm-evaluation-harness, and of inspect.
FILES = ("*--*.json", "results_*.json", "*/results_*.json", "20??-??-??T*_*.json", "20??-??-??T*_*.eval")


class TableOptions(TypedDict, total=False):
    """The columns of a table of runs, where they have other names than these, and its examples and metric."""

    method: str
    task: str
    backbone: str
    budget: str
    score: str
    seed: str
    study: str
    lr: str
    validation: str
    validation_loss: str
    #: A folder with the scores of test examples: tables with the columns of the runs, and `example`.
    examples: str
    #: The metric of the scores, see `tensorbench.records.metrics`.
    metric: str


#: The options that name columns.
COLUMNS = tuple(name for name in TableOptions.__annotations__ if name not in ("examples", "metric"))


def is_foreign(name: str | pd.DataFrame) -> bool:
    """Whether a name is a file or folder with results of another program, by its ending or its files."""
    if not isinstance(name, str):
        return True
    path = Path(name)
    if path.suffix in (*ENDINGS, ".json", BINARY_LOG):
        return True
    # No experiment's name ends with a slash.
    files = (next(path.glob(pattern), None) for pattern in FILES)
    return path.is_dir() and (name.endswith("/") or any(files))
