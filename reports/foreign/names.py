"""The names that results of other programs have: endings of tables, result files, and columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    # This import takes long, and commands ask for names before they open anything.
    import pandas as pd

#: The endings of tables, each with its field separator. Empty for formats without separators.
ENDINGS = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": "", ".parquet": ""}
#: The endings of compressed files, which must be unpacked before they can be read.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
#: The ending of inspect's binary logs, which must be converted to JSON before they can be read.
BINARY_LOG = ".eval"
#: Patterns for result files in a folder: one of peft, two of lm-evaluation-harness, and two of inspect.
FILES = ("*--*.json", "results_*.json", "*/results_*.json", "20??-??-??T*_*.json", "20??-??-??T*_*.eval")


#: Words in the name of a score of which less is better.
_LESS_IS_BETTER = {
    *("bits", "brier", "cer", "err", "error", "loss", "mae", "mse", "nll", "perplexity", "ppl", "rmse"),
    *("ter", "wer"),
}


def less_is_better(metric: str) -> bool:
    """Whether less of a score with this name is better, as its words say: `word_perplexity`, for example."""
    return not _LESS_IS_BETTER.isdisjoint(re.split("[^a-z]+", metric.casefold()))


class TableOptions(TypedDict, total=False):
    """Options for reading a table of runs: the names of its columns, its examples, and its metric.

    An absent option for a column means that the column has the option's name.
    """

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
    effort: str
    #: The columns of a configuration, separated by commas. By default, those called `config` or `trial`.
    config: str
    #: A folder with the scores of test examples. Its tables have the columns that identify a run, the score
    #: and a column `example`.
    examples: str
    #: The metric of the scores (see `tensorbench.records.metrics`).
    metric: str
    #: The score by chance, of all tasks or by task.
    chance: float | Mapping[str, float]


#: The options that name no columns.
OTHERS = ("config", "examples", "metric", "chance")
#: The options that name columns.
COLUMNS = tuple(name for name in TableOptions.__annotations__ if name not in OTHERS)


def is_foreign(name: str | pd.DataFrame) -> bool:
    """Whether `name` is a data frame, or a file or folder with results of another program.

    A file is recognised by its ending, and a folder by a final slash or by the names of its files.
    """
    if not isinstance(name, str):
        return True
    path = Path(name)
    ending = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    if ending in (*ENDINGS, ".json", BINARY_LOG):
        return True
    # No experiment's name ends with a slash.
    files = (next(path.glob(pattern), None) for pattern in FILES)
    # An empty name would be the working folder.
    return bool(name) and path.is_dir() and (name.endswith("/") or any(files))
