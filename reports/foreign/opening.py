"""Opens results of other programs: tables of runs, files of lm-evaluation-harness and inspect, and peft's."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.records.measures import Measure
from tensorbench.reports.foreign.names import (
    BINARY_LOG,
    COLUMNS,
    COMPRESSED,
    ENDINGS,
    FILES,
    TableOptions,
    less_is_better,
)
from tensorbench.reports.foreign.runs import ForeignRun, of_name
from tensorbench.reports.foreign.source import ForeignSource
from tensorbench.reports.foreign.table import bounded_lines, read_table
from tensorbench.reports.results import grouped
from tensorbench.reports.units import listed, many

#: A note on result files of evaluations, which name no training seeds.
NO_SEEDS = (
    "These files name no training seed: models are told apart by name, and `NAME-seed3` is run 3 of NAME. "
    "Without such names each model is one run, and no difference can be claimed."
)
#: A note on the limits of peft's results.
UNTUNED = (
    "peft's runs have seed 0 and were not tuned alike: their order holds the luck of rates and of one run."
)
#: The task of each final metric in peft's files.
PEFT_TASKS = {"test accuracy": "MetaMathQA", "test dino_similarity": "image-gen"}
#: The configuration of peft's comparison that is the default reference.
REFERENCE = "lora--llama-3.2-3B-rank32"
#: The largest number that is read from peft's files, in absolute value. It fits an integer column.
LARGEST_NUMBER = 2**63 - 1
#: Metrics of lm-evaluation-harness of which more is better. They count if a file does not say so, as older
#: ones. Names that tasks use in either direction, such as `score`, are absent.
MORE_IS_BETTER = (
    *("acc", "acc_all", "acc_bytes", "acc_mutual_info", "acc_norm", "accuracy"),
    *("exact", "exact_match", "em", "f1", "mcc", "likelihood", "pass@1", "pass_at_1"),
    *("bleu", "bleu_max", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum", "rougeL_max"),
    *("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"),
)
#: The largest size of a JSON file in bytes.
LARGEST_JSON = 64 * 2**20
#: Metrics of inspect that tell how much scores differ, not how good they are.
SPREADS = ("bootstrap_stderr", "std", "stderr", "var")
#: The score of each of inspect's grades: `CORRECT`, `INCORRECT`, `PARTIAL` and `NOANSWER`.
GRADES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}


def open_foreign(name: str | pd.DataFrame, options: TableOptions) -> ForeignSource:
    """Opens results of another program: a table of runs, a result file, or a folder of result files.

    Raises UserError if the results cannot be read, if options for tables are given for other files, and if a
    table lacks a column that an option names.
    """
    further = options.get("metric", ""), options.get("chance")
    if isinstance(name, pd.DataFrame):
        return ForeignSource("table", *read_table(name, options), *further)
    path = Path(name)
    if path.suffix in COMPRESSED:
        raise UserError(f"{path} is compressed: unpack it first")
    if path.suffix in ENDINGS:
        if not path.is_file():
            raise UserError(f"{path} is no file" if path.exists() else f"there is no file {path}")
        return ForeignSource(path.name, *read_table(path, options), *further)
    if columns := [option for option in options if option in (*COLUMNS, "config", "examples")]:
        raise UserError(f"--{columns[0]} is for tables, which end with {', '.join(ENDINGS)}; got {path}")
    files = sorted({file for pattern in FILES for file in path.glob(pattern)}) if path.is_dir() else [path]
    notes: list[str] = []
    runs = [run for file in files for run in _read(file, notes)]
    if not runs:
        why = [note for note in notes if note not in (NO_SEEDS, UNTUNED)]
        why = why or [f"files of results are called {', '.join(FILES)}"]
        raise UserError(f"{path}: no result of a run in it; {' '.join(why[:3])}")
    # If a run was evaluated again after a failure, the failure does not count. Several failures of one run
    # count once.
    unscored = {(*run.row, run.seed): run for run in runs if run.score is None}
    scored = [run for run in runs if run.score is not None]
    failed = unscored.keys() - {(*run.row, run.seed) for run in scored}
    return ForeignSource(path.name, [*scored, *(unscored[key] for key in sorted(failed))], notes, *further)


def _read(file: Path, notes: list[str]) -> list[ForeignRun]:
    if file.suffix == BINARY_LOG:
        raise UserError(
            f"{file}: convert inspect's logs to JSON: inspect log convert --to json --output-dir DIR {file}"
        )
    try:
        if not file.is_file():
            # A pipe would be read without end.
            raise ValueError("it is not a file")
        if (size := file.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"it has {size:,} bytes, and at most {LARGEST_JSON:,} are read")
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


# --- files of evaluations ---


def read_lm_eval(file: Path, content: Mapping[str, Any], notes: list[str]) -> Iterator[ForeignRun]:
    """Yields a run for each task of a results file, with the score of each question if samples are stored.

    The run's score is the task's first metric of which larger values are better, by the file or, if the file
    does not say, by its name. Groups of tasks are left out, since the file has their tasks too.
    Adds notes on tasks without such a metric, which are left out, and on samples that are incomplete and
    therefore not used.
    """
    config = content.get("config") or {}
    arguments = config.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(pair.split("=", 1) for pair in arguments.split(",") if "=" in pair)
    adapter, backbone = arguments.get("peft"), arguments.get("pretrained")
    method, seed = of_name(str(adapter or content.get("model_name") or backbone or file.parent.name))
    for task, values in content["results"].items():
        if content.get("group_subtasks", {}).get(task):
            continue
        metrics = {
            key: key.partition(",")[0]
            for key, value in values.items()
            if isinstance(value, int | float) and "_stderr" not in key and key not in ("alias", "sample_len")
        }
        stated = (content.get("higher_is_better") or {}).get(task) or {}
        # A direction that the file gives as null is unknown.
        better = dict.fromkeys(MORE_IS_BETTER, True)
        better |= {metric: False for metric in metrics.values() if less_is_better(metric)}
        better |= {each: more for each, more in stated.items() if more is not None}
        key = next((key for key, metric in metrics.items() if better.get(metric)), None)
        if key is None:
            why = "has no metric of which more is better"
            if unknown := next((metric for metric in metrics.values() if metric not in better), None):
                stating = json.dumps({task: {unknown: True}})
                why = f'does not say whether more {unknown} is better ("higher_is_better": {stating} would)'
            notes.append(f"{file.name}: {task} {why}, and is left out.")
            continue
        metric, _, chosen = key.partition(",")
        examples = _answers(file, task, metric, chosen)
        size = content.get("n-samples", {}).get(task, {}).get("effective")
        if examples and size and len(examples) != size:
            notes.append(
                f"{task} of {method}: {len(examples):,} of {many(size, 'answer')} are there: not used."
            )
            examples = {}
        yield ForeignRun(
            method=method,
            task=f"{task} {metric}",
            score=float(values[key]),
            seed=seed,
            where=f"{file.name}, {task}",
            backbone=str(backbone) if adapter and backbone else ForeignRun.backbone,
            examples=examples,
        )


def _answers(file: Path, task: str, metric: str, chosen: str) -> dict[str, float]:
    """The score of each question, from 0 to 1, by the question's id. Empty without a file of samples."""
    samples = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
    if not samples.is_file():
        return {}
    with samples.open(encoding="utf-8") as lines:
        answers = [json.loads(line) for line in bounded_lines(samples.name, lines) if line.strip()]
    return {
        str(answer["doc_id"]): float(answer[metric])
        for answer in answers
        if answer.get("filter", "none") == (chosen or "none")
        and isinstance(answer.get(metric), int | float)
        and 0 <= answer[metric] <= 1
    }


def read_inspect(file: Path, content: Mapping[str, Any], notes: list[str]) -> Iterator[ForeignRun]:
    """Yields a run for each scorer of a log, with the scores of its samples.

    The run's score is the scorer's first metric, without `SPREADS` and metrics of which less is better. A
    note names scorers that have no other and are left out. Of metrics with unknown names, more is taken to be
    better. If a scorer has several reducers of epochs, the mean counts, or else the first. If the status of
    the log is not `success`, the run failed but did not diverge, and a note says so.
    """
    evaluated, status = content["eval"], content["status"]
    method, seed = of_name(str(evaluated["model"]))
    scores = (content.get("results") or {}).get("scores") or []
    if status != "success":
        notes.append(f"{file.name}: status {status}: a failed run, in no mean.")
    by_name = grouped(scores, lambda each: str(each["name"]))
    for name, reduced in by_name.items():
        if len(reduced) > 1:
            reduced.sort(key=lambda each: each.get("reducer") != "mean")
            others = listed(each.get("reducer") for each in reduced[1:])
            notes.append(f"{file.name}: scorer {name} by {reduced[0].get('reducer')}, not by {others}.")
    scores = [reduced[0] for reduced in by_name.values()]
    names = [*by_name] or [each["name"] for each in evaluated.get("scorers") or []] or [""]
    values = {
        each["name"]: [
            metric["value"]
            for key, metric in each["metrics"].items()
            if key not in SPREADS and not less_is_better(key)
        ]
        for each in scores
    }
    for name in names:
        own = values.get(name, []) if status == "success" else []
        if status == "success" and not own:
            notes.append(
                f"{file.name}: scorer {name} has no metric of which more is better, and is left out."
            )
            continue
        yield ForeignRun(
            method=method,
            task=str(evaluated["task"]) + f" {name}" * (len(names) > 1),
            score=float(own[0]) if own else None,
            seed=seed,
            where=file.name,
            failure="error",
            examples=_samples(content.get("samples") or [], name) if own else {},
        )


def _samples(samples: list[Mapping[str, Any]], scorer: str) -> dict[str, float]:
    """The mean score of each sample over its epochs, by the sample's id.

    Empty if some sample has no score from 0 to 1.
    """
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for sample in samples:
        value = ((sample.get("scores") or {}).get(scorer) or {}).get("value")
        number = GRADES.get(value) if isinstance(value, str) else value
        if not isinstance(number, int | float) or not 0 <= number <= 1:
            return {}
        scores[str(sample["id"])].append(float(number))
    return {sample: fmean(each) for sample, each in scores.items()}


def read_peft(file: Path, content: Mapping[str, Any], notes: list[str]) -> Iterator[ForeignRun]:
    """Yields the run in a result file of peft's method_comparison, or nothing if the run has no score.

    Adds the note `UNTUNED` once, and a note for a file without a score. Copies of a file in several folders
    have the same id, made of the file's name and content. Raises UserError for an accuracy that is no share.
    """
    run, train = content["run_info"], content["train_info"]
    last = train["metrics"][-1] if train["metrics"] else {}
    metric = next((name for name in PEFT_TASKS if isinstance(last.get(name), int | float)), None)
    if UNTUNED not in notes:
        notes.append(UNTUNED)
    if train["status"] != "success" or metric is None or not math.isfinite(last[metric]):
        notes.append(f"{file.name}: no score, left out.")
        return
    score = float(last[metric])
    if not 0 <= score <= 1:
        raise UserError(f"{file}: {metric} {shown(score)} is not in [0, 1]")
    numbers = {
        Measure.ADAPTER_PARAMETERS: _number(train.get("num_trainable_params"), int, 0),
        Measure.SECONDS: _number(train.get("train_time"), float, 0),
        Measure.FORGETTING: _number(last.get("forgetting", last.get("drift")), float, -LARGEST_NUMBER),
    }
    yield ForeignRun(
        method=file.stem,
        task=PEFT_TASKS[metric],
        score=score,
        seed=_number(int(run["train_config"]["seed"]), int, -LARGEST_NUMBER),
        where=f"{file.parent.name}/{file.name}",
        backbone=str(run["train_config"].get("model_id", "")) or ForeignRun.backbone,
        of_family=file.stem.partition("--")[0],
        plain=file.stem == REFERENCE,
        measures={measure: number for measure, number in numbers.items() if number is not None},
        content=f"{file.stem} {json.dumps(content, sort_keys=True)}",
    )


def _number(value: Any, kind: type, least: int) -> Any:
    """Returns the value as an int or a float, whichever `kind` is. None if it is not a finite number.

    Raises ValueError if it is below `least` or above `LARGEST_NUMBER`.
    """
    if not isinstance(value, int | float) or value != value or abs(value) == math.inf:
        return None
    if not least <= value <= LARGEST_NUMBER:
        raise ValueError(f"{shown(value)} is not from {least:,} to {LARGEST_NUMBER:,}")
    return kind(value)


#: The reader for a JSON file whose content has this key.
READERS = {"run_info": read_peft, "eval": read_inspect, "results": read_lm_eval}
