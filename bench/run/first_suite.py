"""Writes a first suite for a table of texts. Guesses its columns, and sizes the suite for about an hour."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from tensorbench.execution.estimate import (
    SPECIAL_TOKENS,
    TOKENS_A_WORD,
    Pace,
    seconds_per_operation,
    workloads,
)
from tensorbench.machine.cards import choose_device
from tensorbench.machine.table import duration
from tensorbench.methods import UserError
from tensorbench.methods.errors import cut, first_few, shown
from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.plan.yaml_text import parse
from tensorbench.tasks import TASKS, Task, resolve, split_count
from tensorbench.tasks.description import SPLIT_WORDS, Description
from tensorbench.tasks.labels import AMOUNTS
from tensorbench.tasks.rows import NUMBER
from tensorbench.tasks.tables import read_csv
from tensorbench.tasks.task import SPLITS

#: The longest time of a first suite in seconds.
HOUR = 3600
#: The sizes of a first suite, largest first: the numbers of training examples, epochs, studies and points.
DESIGNS = (
    (4000, 3, 8, 5),
    (2000, 2, 8, 5),
    (1000, 2, 8, 5),
    (1000, 2, 5, 4),
    (500, 2, 5, 4),
    (250, 2, 5, 4),
    (250, 2, 3, 4),
)

#: The numbers of studies after which methods are compared.
LOOKS = (3, 5, 8)

#: A column of texts has at least FEWEST_WORDS words per value on average, and a column of classes at most
#: MOST_CLASSES distinct values.
FEWEST_WORDS, MOST_CLASSES = 3, 20
#: The largest share of texts that are cut without a word.
MOST_CUT = 0.05

SUITE = """\
# Written by tensorbench init, for about {time} on the machine where it ran.
#   tensorbench plan {file} --power
#   tensorbench run {file}
name: {name}
backbones: [minilm-l6]           # reads English; or {{hub: owner/model}}, {{local: FOLDER}}
tasks:
  - name: {name}
{task}
methods:
  - converged_head               # the frozen backbone alone, which every adapter should beat
  - lora
  - {{method: tenslora, variant: qkv_depth}}
budgets: [{{isoparameters: 4}}]    # as many parameters as LoRA of rank 4
# each method is tuned {studies} times by {points} trials, and stops at the look at which it has a verdict
tuning: {{studies: {studies}, points: {points}, looks: {looks}}}
training: {{batch_size: 16, epochs: {epochs}, clip: 1.0}}
"""


class _Column(NamedTuple):
    name: str
    rows: int
    distinct: int
    blank: bool
    #: The number of words of each value.
    words: list[int]
    numbers: bool
    #: Whether all values are numbers, and some are not whole.
    fractional: bool
    #: Whether the values name official splits.
    splits: bool

    @property
    def like_text(self) -> bool:
        there = [count for count in self.words if count]
        return bool(there) and fmean(there) >= FEWEST_WORDS and self.distinct > self.rows / 2

    @property
    def like_label(self) -> bool:
        few = 2 <= self.distinct <= min(MOST_CLASSES, self.rows // 2)
        return few and not (self.blank or self.splits or self.like_text)


def write_first_suite(
    table: Path,
    out: Path | None = None,
    *,
    texts: Sequence[str] = (),
    label: str | None = None,
    device: str = "auto",
) -> list[str]:
    """Writes a suite for a CSV table to `out`. Returns lines on what it chose, and the next commands.

    By default the file has the table's name, in the working folder. `texts` and `label` are names of columns,
    which are guessed if they are not given. The suite has the largest of DESIGNS that takes at most an hour
    on this machine's `device`, or the smallest if all take longer. Raises UserError for a table that cannot
    be read, for columns that cannot be guessed, and for a file that exists or has no folder.
    """
    if table.suffix.lower() not in (".csv", ".tsv"):
        raise UserError(f"{table}: init takes a table in .csv or .tsv; for other data write a suite yourself")
    file = out or Path(table.with_suffix(".yaml").name)
    if file.exists() or not file.parent.is_dir() or not str(file).isprintable():
        raise UserError(
            f"cannot write {shown(str(file))}: it exists, its folder does not, or its name is not printable. "
            "Name another with --out"
        )
    columns = _columns(table)
    texts = texts or [_only(table, "text", {c.name: c.like_text for c in columns})]
    label = label or _only(table, "label", {c.name: c.like_label for c in columns if c.name not in texts})
    data: dict[str, Any] = {"csv": str(table.absolute()), "text": texts[0] if len(texts) == 1 else [*texts]}
    data["label"] = label
    if any(c.numbers and c.distinct > MOST_CLASSES for c in columns if c.name == label):
        data["target"] = "regression"
    split_by = next((c.name for c in columns if c.splits and c.name not in (*texts, label)), None)
    if split_by:
        data["split_by"] = split_by
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", table.stem).strip("-._")[:100] or "table"
    name = f"my-{name}" if name in TASKS else name
    task = resolve(name, validate(Description, data, str(table)))
    data["csv"] = os.path.relpath(table, file.parent)
    text, trials, time = _fitted(task, data, file, choose_device(device))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
    kind = "numbers: a regression; delete `target` for classes"
    if task.classes:
        kind = f"{len(task.classes)} classes: {first_few([cut(each) for each in task.classes], 6)}"
        if any(c.fractional for c in columns if c.name == label):
            kind += f"; {AMOUNTS}"
    unused = [column.name for column in columns if column.name not in (*texts, label, split_by)]
    said = [
        f"{table}: {columns[0].rows:,} rows",
        f"text: {' and '.join(texts)}",
        f"label: {label} ({kind})",
    ]
    if split_by:
        said.append(f"splits: {split_by}")
    if unused:
        said.append(f"not used: {first_few(unused, 10)}")
    return [
        f"{'; '.join(said)}.",
        *_too_long([column for column in columns if column.name in texts]),
        f"{file}: {trials} trials, about {time} on this machine. Next:",
        *(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#   ")),
    ]


def _too_long(texts: Sequence[_Column]) -> list[str]:
    """A sentence on the share of texts that are cut, if more than MOST_CUT of them are."""
    words = [sum(row) for row in zip(*(column.words for column in texts), strict=True)]
    limits = (TaskRow.model_fields["max_tokens"].default, 256, 512)
    shares = {
        most: fmean(TOKENS_A_WORD * count + SPECIAL_TOKENS > most for count in words) for most in limits
    }
    most, share = next(iter(shares.items()))
    if share <= MOST_CUT:
        return []
    said = f"About {100 * share:.0f}% of the texts have more than {most} tokens and are cut."
    enough = next((size for size in shares if shares[size] <= MOST_CUT), limits[-1])
    if shares[enough] < share:
        rest = 100 * shares[enough]
        said += f" With `max_tokens: {enough}` in the task, {rest:.0f}% are, and a trial takes longer."
    return [said]


def _columns(table: Path) -> list[_Column]:
    read = read_csv(table, None).columns
    columns = []
    for name in read.column_names:
        values = read[name].to_pylist()
        there = [value for value in values if value is not None and value.strip()]
        distinct = set(there)
        words = {value.strip().casefold() for value in distinct}
        numbers = all(re.match(NUMBER, value) for value in distinct)
        columns.append(
            _Column(
                name=name,
                rows=len(values),
                distinct=len(distinct),
                blank=len(there) < len(values),
                words=[len((value or "").split()) for value in values],
                numbers=numbers,
                fractional=numbers and any(not float(value).is_integer() for value in distinct),
                splits="train" in map(SPLIT_WORDS.get, words) and words <= SPLIT_WORDS.keys(),
            )
        )
    return columns


def _only(table: Path, role: str, candidates: dict[str, bool]) -> str:
    """Returns the column for the role "text" or "label".

    `candidates` maps each column to whether its values suit the role. If several do, the one named like the
    role is returned. Raises UserError if no column suits the role, or if the choice remains ambiguous.
    """
    if not candidates:
        raise UserError(f"{table}: no column is left for the {role}")
    alike = [name for name, like in candidates.items() if like]
    named = [name for name in alike if name.casefold() == role]
    if len(chosen := named or alike) == 1:
        return chosen[0]
    what = f"several columns look like the {role}" if alike else f"no column looks like the {role}, of"
    names = alike or list(candidates)
    example = shlex.join(["tensorbench", "init", str(table), f"--{role}", names[0]])
    raise UserError(f"{table}: {what}: {first_few(names, 20)}. Name it, for example: {example}")


def _fitted(task: Task, data: dict[str, Any], file: Path, device: str) -> tuple[str, int, str]:
    """Returns the text of a suite, the number of its trials, and its estimated time in words.

    It is the largest suite of DESIGNS that takes at most an hour, or the smallest if all take longer.
    """
    counts = {split: split_count(task, split) or 0 for split in SPLITS}
    speed = seconds_per_operation(device)
    for size, epochs, studies, points in DESIGNS:
        lines = [f"    {field}: {_flow(value)}" for field, value in data.items()]
        for split, share in zip(SPLITS, (size, size // 2, size), strict=True):
            if share < counts[split]:
                lines.append(f"{f'    {split}_size: {share}':<33}# of {counts[split]:,}")
        text = SUITE.format(
            time="{time}",
            file=shlex.quote(str(file)),
            name=_flow(task.name),
            task="\n".join(lines),
            studies=studies,
            points=points,
            looks=[look for look in LOOKS if look <= studies],
            epochs=epochs,
        )
        suite = validate(Suite, parse(text), str(file)).beside(file.parent)
        plan = make_plan(suite, device)
        pace, work = Pace(plan, (), speed), workloads(plan)
        seconds = sum(pace.seconds(trial, work[trial.id]) for trial in plan.trials)
        if seconds <= HOUR:
            break
    time = duration(seconds)
    return text.replace("{time}", time, 1), len(plan.trials), time


def _flow(value: Any) -> str:
    """Writes a string or a list of strings as YAML on one line.

    Strings that YAML might read as another type or as syntax are quoted, as in JSON.
    """
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and parse(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)
