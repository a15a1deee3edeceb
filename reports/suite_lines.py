"""Writes, for a cell of a report, the suite that repeats its trials, as YAML to copy and run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tensorbench.machine.visible import visible
from tensorbench.records.stored_plan import PlannedTrial
from tensorbench.reports.results import Cell, Results, Seed
from tensorbench.reports.units import unit_of

#: The fields of a recipe that come first.
FIRST = ("lr", "head_lr", "core_lr", "epochs", "steps", "batch_size")
#: The words, in lower case, that YAML 1.1 does not read as strings.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}

_PLAIN = re.compile(r"[A-Za-z]([A-Za-z0-9_./ -]*[A-Za-z0-9_])?", re.ASCII)


def suite_lines(results: Results) -> Callable[[Cell], str]:
    """Returns a function that takes a cell and returns its suite as YAML, or the reason why it has none.

    The suite has the cell's own task, backbone, method, ranks, rates and seeds. Its trials have the same ids
    as the cell's trials, unless the method's version has changed since. A comment in the suite names the
    version with which the cell was run. For a cell with studies, the suite has a single trial: the trial with
    the lowest validation loss in all complete studies.
    """
    trials = {id_: trial for each in results.experiments for id_, trial in each.trials.items()}

    def lines(cell: Cell) -> str:
        if results.experiment(cell.experiment).source.foreign:
            return "None: another program made these runs."
        seeds = [seed for seed in cell.trials if seed.trial_id in trials]
        if cell.studies:
            seeds = sorted(cell.counted, key=lambda seed: seed.validation_loss or 0.0)[:1]
        if not seeds:
            return "None: no trial of a complete study has finished."
        return _suite(cell, seeds, trials[seeds[0].trial_id])

    return lines


def _suite(cell: Cell, seeds: Sequence[Seed], trial: PlannedTrial) -> str:
    options = {key: value for key, value in trial.method.items() if key != "version"}
    # A suite may set only the length of texts, and to no more than the backbone accepts.
    task = {key: value for key, value in trial.task.items() if key not in ("training", "label")}
    task["max_tokens"] = trial.data.get("max_tokens")
    task = {key: value for key, value in task.items() if value is not None}
    backbone = {key: value for key, value in trial.backbone.items() if value is not None and key != "label"}
    recipe = {key: value for key, value in trial.recipe.items() if value not in (None, [], False)}
    first = [key for key in FIRST if key in recipe]
    text = [
        *(f"# {visible(line)}" for line in _comments(cell, seeds)),
        f"# version {trial.method['version']} of method {trial.method['method']}: another gives other trials",
        f"name: {re.sub('[^A-Za-z0-9]+', '-', f'{cell.family} {cell.task}').strip('-')[:128] or 'row'}",
        "tasks:",
        *_item(task),
        f"backbones: [{_flow(backbone.get('name') if backbone.keys() == {'name'} else backbone)}]",
        "methods:",
        *_item(options),
        "training:",
        *(f"  {key}: {_flow(recipe[key])}" for key in (*first, *sorted(recipe.keys() - {*first}))),
        f"seeds: {_flow([seed.seed for seed in seeds])}",
        f"evaluate: {trial.evaluate}",
        "floor: none",
    ]
    # Trials that measure no forgetting need no line for it.
    if trial.forgetting is not None:
        text.append(f"forgetting: {_flow(trial.forgetting)}")
    if any("…/" in line for line in text):
        text.insert(0, "# Packs keep no folders: put yours in the place of …")
    return "\n".join(text) + "\n"


def _comments(cell: Cell, seeds: Sequence[Seed]) -> list[str]:
    """The comments above a suite: the cell that it repeats, the cell's score or studies, and its trials."""
    where = f"{cell.method}, {cell.budget}, on {cell.task} with {cell.backbone}"
    unit, studies = unit_of(cell.metric, cell.unit), cell.studies
    of = f"trial{'s' * (len(seeds) > 1)} {', '.join(seed.trial_id for seed in seeds)}"
    if studies is None:
        score = f"{cell.evaluated} {cell.metric} {unit.score(cell.mean)}{unit.mark}, mean of {cell.finished} "
        return [f"{where}: {score if cell.mean is not None else ''}{of}"]
    tuning: dict[str, Any] = {
        "studies": studies.studies,
        "points": studies.points,
        "lr": {"decades": studies.decades},
    }
    if studies.head_lr is not None:
        tuning["head_lr"] = studies.head_lr
    return [
        f"{where}: {of}, the lowest validation loss of its studies, which tried",
        f"centre: {studies.centre!r} with tuning: {_flow(tuning)}",
    ]


def _item(fields: Mapping[str, Any]) -> list[str]:
    """Formats these fields as an item of a YAML list, with one field per line."""
    return [
        f"  {' ' if place else '-'} {key}: {_flow(value)}"
        for place, (key, value) in enumerate(fields.items())
    ]


def _flow(value: Any) -> str:
    """Formats a plain value on one line, so that YAML 1.1 and YAML 1.2 read the same value."""
    if isinstance(value, Mapping):
        entries = (f"{_flow(key)}: {_flow(entry)}" for key, entry in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_flow, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        # YAML 1.1 reads 1e-05 as a text.
        digits, _, exponent = repr(value).partition("e")
        return f"{digits}{'.0' * ('.' not in digits)}e{exponent}" if exponent else digits
    if not isinstance(value, str):
        return repr(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    quoted = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
    return f'"{"".join(quoted)}"'.replace(r"\U0000000a", r"\n")
