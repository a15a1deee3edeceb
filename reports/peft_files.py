"""Writes stored trials as result files of peft's method_comparison, and reads its files as results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from tensorbench.machine.memory import MIB
from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.records.origin import StoredConfig
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import PlannedTrial, StudyTrial
from tensorbench.records.words import Artifact, Status, Tag
from tensorbench.reports.peft_comparison import PeftRun, read_peft_results
from tensorbench.reports.reading import read, summed
from tensorbench.reports.study import CEILING, COLUMNS, Experiment, Seed, Study, kept_trials

#: The metrics that, like peft's "test accuracy", are a share of right answers.
SHARES = ("accuracy", "exact_match")

#: The text that tables show in place of a budget for peft's results, which have none.
UNTUNED = "seed 0, not tuned alike"

#: The names of peft's metrics, each with our name of the same metric. Empty if we have no such metric.
SCORED_AS = {"test accuracy": "accuracy", "test dino_similarity": ""}

#: Notes in every file, on numbers that a trial measures differently from peft or does not measure.
NOTES = (
    "accelerator_memory_*: the peak of the trial, of the process if it ran on a CPU (0: not measured)",
    "train_time: the median step times the number of steps",
    "train total tokens: not measured, 0",
    "num_trainable_params and file_size: of the adapter; a head beside it is in num_head_params",
)

#: The libraries whose version and commit peft states in `package_info`.
LIBRARIES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")


def peft_files(store: str, names: Sequence[str]) -> dict[str, str]:
    """The texts of the result files of experiments or packs, by file name.

    Each finished trial of the tables has a file if it has a test score by a metric of `SHARES`. Of the trials
    of a study, only the trial that the study keeps has a file. Raises UserError as
    `tensorbench.reports.reading.read` does, and if no trial has a file.
    """
    study = read(store, names, studies=True)
    files = {}
    # A trial may be in several cells.
    for id_, seed in {seed.trial_id: seed for seed in _kept(study)}.items():
        experiment = study.experiment(seed.experiment)
        record, trial = experiment.records[id_], experiment.trials[id_]
        if record.tag(Tag.METRIC) in SHARES and trial.evaluate == "test":
            name = _name(seed, record, trial)
            files[f"{name}.json"] = _text(_content(name, experiment, seed, record, trial))
    if not files:
        raise UserError(
            f"--peft-comparison: {study.title} has no finished trial with a test score by "
            f"{' or '.join(SHARES)}, which peft's files hold"
        )
    return files


def _kept(study: Study) -> Iterator[Seed]:
    for cell in study.all_cells:
        if cell.studies is None:
            yield from study.finished(cell.number)
        else:
            kept = kept_trials(cell.studies, study.of_cell(cell.number))
            yield from (seed for seed in kept.values() if seed is not None)


def _name(seed: Seed, record: Record, trial: PlannedTrial) -> str:
    """The name METHOD--NAME of a trial's file. It is unique because it ends with part of the trial's id."""
    ranks = f"rank {record.tag(Tag.RANKS)}" if record.tag(Tag.RANKS) else ""
    words = (seed.backbone, seed.task, seed.method, ranks, f"seed {seed.seed}", trial.id[:8])
    method, *parts = (
        re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_.") for word in (trial.method["method"], *words) if word
    )
    return f"{method}--{'-'.join(parts)}"


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _content(
    name: str, experiment: Experiment, seed: Seed, record: Record, trial: PlannedTrial
) -> dict[str, Any]:
    config = experiment.source.content(record, Artifact.CONFIG, StoredConfig)
    packages = config.start.libraries if config and config.start else {}
    provenance = record.provenance
    return {
        "run_info": {
            "created_at": datetime.fromtimestamp(record.started / 1e3, UTC).isoformat(timespec="seconds"),
            "total_time": record.measure(Measure.SECONDS) or 0.0,
            "experiment_name": name.replace("--", "/", 1),
            "peft_branch": f"tensorpeft-bench {provenance.get('harness', '')}".strip(),
            "train_config": _train_config(seed, record, trial),
            "peft_config": _peft_config(record, trial),
            "error_msg": "",
        },
        "train_info": _train_info(experiment, record, trial),
        "meta_info": {
            "model_info": {"sha": trial.weights_hash, "created_at": None},
            "dataset_info": {seed.task: {"sha": trial.data.get("data_hash"), "created_at": None}},
            "package_info": {
                key: value
                for library in LIBRARIES
                for key, value in (
                    (f"{library}-version", packages.get(library, provenance.get(f"version_{library}", ""))),
                    (f"{library}-commit-hash", None),
                )
            },
            "system_info": {
                "system": provenance.get("platform", ""),
                "processor": provenance.get("cpu", ""),
                "accelerator": provenance.get("gpu") or "N/A",
            },
            "pytorch_info": "",
        },
        "notes": NOTES,
    }


def _train_config(seed: Seed, record: Record, trial: PlannedTrial) -> dict[str, Any]:
    recipe = trial.recipe
    return {
        "model_id": seed.backbone,
        "dtype": trial.backbone.get("dtype", "float32"),
        "max_seq_length": trial.data.get("max_tokens"),
        "batch_size": recipe["batch_size"],
        "max_steps": int(record.measure(Measure.STEPS) or 0),
        "seed": seed.seed,
        "grad_norm_clip": recipe["clip"],
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {"lr": recipe["lr"], "weight_decay": recipe["adapter_weight_decay"]},
        "lr_scheduler": "cosine",
        "use_amp": recipe["precision"] == "bf16",
        "recipe": recipe,
    }


def _peft_config(record: Record, trial: PlannedTrial) -> dict[str, Any] | None:
    """The trial's method in the form of a peft configuration. None for full fine-tuning."""
    if trial.method["method"] == CEILING:
        return None
    kind = str(trial.method.get("type") or trial.method["method"]).upper()
    return {"peft_type": kind, **trial.method, "ranks": record.tag(Tag.RANKS)}


def _train_info(experiment: Experiment, record: Record, trial: PlannedTrial) -> dict[str, Any]:
    seconds, steps = record.measure(Measure.SECONDS) or 0.0, int(record.measure(Measure.STEPS) or 0)
    step_ms = record.measure(Measure.STEP_MS)
    peak = int((record.measure(Measure.PEAK_MIB) or 0) * MIB)
    losses = experiment.source.curves(Measure.TRAIN_LOSS, [record.run_id])["value"]
    final = {
        "step": steps,
        "test accuracy": record.score,
        "test samples": int(record.measure(Measure.TEST_EXAMPLES) or 0),
        "train loss": float(losses.iloc[-1]) if len(losses) else None,
        "train samples": steps * trial.recipe["batch_size"],
        "train total tokens": 0,
    }
    if (forgetting := record.measure(Measure.FORGETTING)) is not None:
        final["forgetting"] = forgetting
    return {
        "accelerator_memory_reserved_avg": peak,
        "accelerator_memory_max": peak,
        "accelerator_memory_reserved_99th": peak,
        "train_time": seconds if step_ms is None else step_ms * steps / 1e3,
        "file_size": int(record.measure(Measure.ADAPTER_BYTES) or 0),
        "num_trainable_params": int(record.measure(Measure.ADAPTER_PARAMETERS) or 0),
        "num_head_params": int(record.measure(Measure.HEAD_PARAMETERS) or 0),
        "status": "success",
        "metrics": [final],
    }


# --- peft's results as a study ---


def holds_peft_results(folder: Path) -> bool:
    """Whether the path is a folder with at least one file named METHOD--NAME.json."""
    return folder.is_dir() and next(folder.glob("*--*.json"), None) is not None


def peft_study(folders: Sequence[Path]) -> Study:
    """Reads peft's result files in these folders. Each run becomes a cell with a single seed.

    These runs have no budget, so the field `budget` of each cell has the text `UNTUNED` instead. Raises
    UserError as `read_peft_results` does, and if no file has a score.
    """
    runs, skipped, _ = read_peft_results(folders)
    if not runs:
        raise UserError(f"{', '.join(map(str, folders))}: no result file with a score")
    cells, seeds = zip(*(_lines(number, run) for number, run in enumerate(runs)), strict=True)
    frame = pd.DataFrame(list(seeds)).astype(dict.fromkeys([*StudyTrial.model_fields, *COLUMNS], float))
    notes = [f"peft's results are of {UNTUNED}: what ranks them holds the luck of rates and of one run."]
    notes += [f"{name}: no score, left out." for name in skipped]
    return Study((), summed(pd.DataFrame(list(cells)), frame), frame, tuple(notes))


def _lines(number: int, run: PeftRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts a run to a line of the frame of cells and to a line of the frame of seeds.

    The line of cells lacks the columns that `summed` adds.
    """
    which = {
        "task": "image-gen" if run.questions is None else "MetaMathQA",
        "backbone": run.model,
        "budget": UNTUNED,
        "method": run.name,
        "experiment": run.file.partition("/")[0],
    }
    unknown = ("peak", "asked", "ratio", "within", "tuning", "studies")
    cell = which | {
        "title": run.name,
        "family": run.name.partition("--")[0],
        "ranks": "",
        "parameters": run.parameters,
        "percent_of_lora": None,
        **dict.fromkeys(unknown),
        "metric": SCORED_AS[run.metric],
        "evaluated": "test",
        **dict.fromkeys(("unit", "capabilities", "left"), ""),
    }
    measures: dict[Measure, float | None] = {
        Measure.SCORE: run.score,
        Measure.ADAPTER_PARAMETERS: run.parameters,
        Measure.SECONDS: run.seconds,
    }
    seed = {
        "cell": number,
        **which,
        "seed": run.seed,
        **dict.fromkeys(StudyTrial.model_fields),
        "trial_id": run.sha256[:16],
        "run_id": run.file,
        "status": str(Status.FINISHED),
        **dict.fromkeys(("failure", "message"), ""),
        **{column: measures.get(measure) for column, measure in COLUMNS.items()},
        Measure.FORGETTING.column: run.forgetting,
    }
    return cell, seed
