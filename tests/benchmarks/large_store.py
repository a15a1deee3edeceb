"""Writes a store of 10,000 finished trials, as a suite that ran would have left it, and times its readers.

    python tests/benchmarks/large_store.py FOLDER [--trials 10000]

One trial is stored through the harness; the others are its rows in MLflow's tables with their own names
and numbers, since storing each through MLflow takes a quarter of an hour. Predictions are small and made up.
Then, each in a process of its own: `run` on the finished suite, and `report`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from bench.plan import Plan, Row, Trial, make_plan
from bench.suite import load_suite
from bench.tracking import Store
from bench.training import Evaluation, Progress, Trained
from bench.trial import Outcome

SCALES = [1.0, 2.0, 4.0, 8.0, 16.0]
SUITE: dict[str, Any] = {
    "name": "large",
    "backbones": ["tiny-random-bert", "tiny-random-vit"],
    "tasks": ["movie-sentiment", "amazon-sentiment", "digits", "textile"],
    "methods": [
        "head_only",
        "full",
        {"method": "lora", "each": {"scale": SCALES}},
        {
            "method": "tenslora",
            "each": {
                "variant": ["att", "qkv", "depth", "att_qkv", "att_depth", "qkv_depth", "att_qkv_depth"],
                "init": ["orthogonal", "normal", "kaiming_uniform"],
                "scale": SCALES,
            },
        },
    ],
    "budgets": [{"isorank": 4}, {"isorank": 2}, {"isoparameters": 2}, {"isoparameters": 3}],
    "seeds": [0, 1, 2, 3, 4],
    "training": {"epochs": 5, "batch_size": 32},
}
TABLES = ("runs", "tags", "params", "metrics", "latest_metrics")
EXAMPLES = 200


def write(folder: Path, trials: int) -> tuple[Path, str]:
    """Suite file and store URI of a store with at least this many finished trials (whole seeds)."""
    folder.mkdir(parents=True, exist_ok=True)
    suite = folder / "large.yaml"
    suite.write_text(yaml.safe_dump(SUITE | {"seeds": _seeds(folder, trials)}))
    plan = make_plan(load_suite(suite))
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    store = Store.create(uri, plan.suite.name)
    suite_run = store.begin_suite(plan)
    rows = {id_: row for row in plan.rows for id_ in row.trials.values()}
    first = plan.trials[0]
    run = store.begin_trial(first, [rows[first.id]], "accuracy", suite_run, _provenance())
    labels, logits = _examples(0.8)
    for epoch in range(1, 6):
        run.progress(Progress(epoch, 5, epoch, [(epoch, 1.0 / epoch)], 0.7, 0.5))
    run.finish(
        Outcome(
            Trained(5, 5, 0.8, 10.0),
            Evaluation(logits, 0.8, 0.5),
            torch.arange(EXAMPLES),
            labels,
            rows[first.id].parameters,
            100,
            1.0,
            100.0,
            {},
            {},
        )
    )
    _clone(folder, run.run_id, plan, rows)
    store.end_suite(suite_run, "FINISHED")
    return suite, uri


def _seeds(folder: Path, trials: int) -> list[int]:
    """As many seeds as make the suite this large."""
    probe = folder / "probe.yaml"
    probe.write_text(yaml.safe_dump(SUITE | {"seeds": [0]}))
    a_seed = len(make_plan(load_suite(probe)).trials)
    probe.unlink()
    return list(range(-(-trials // a_seed)))


def _provenance() -> dict[str, str]:
    from bench.measure import provenance

    return provenance("cpu")


def _examples(accuracy: float) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(EXAMPLES) % 2
    right = torch.rand(EXAMPLES) < accuracy
    logits = torch.nn.functional.one_hot(torch.where(right, labels, 1 - labels), 2).float()
    return labels, logits


def _clone(folder: Path, template: str, plan: Plan, rows: dict[str, Row]) -> None:
    database = sqlite3.connect(folder / "mlflow.db")
    columns = {table: [c[1] for c in database.execute(f"pragma table_info({table})")] for table in TABLES}
    stored = {
        table: [
            dict(zip(columns[table], line, strict=True))
            for line in database.execute(f"select * from {table} where run_uuid = ?", [template])
        ]
        for table in TABLES
    }
    numbers = random.Random(0)
    home = Path(stored["runs"][0]["artifact_uri"].removeprefix("file://"))
    predictions = (home / "predictions.parquet").read_bytes()
    lines: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    for trial in plan.trials[1:]:
        run_id = uuid.uuid4().hex
        artifacts = home.parent.parent / run_id / "artifacts"
        artifacts.mkdir(parents=True)
        (artifacts / "predictions.parquet").write_bytes(predictions)
        replaced = _told(trial, rows[trial.id], numbers)
        for table in TABLES:
            for line in stored[table]:
                new = line | {"run_uuid": run_id}
                if table == "runs":
                    new |= {"artifact_uri": artifacts.as_uri(), "name": replaced["mlflow.runName"]}
                elif line["key"] in replaced:
                    new["value"] = replaced[line["key"]]
                elif line["key"].startswith("validation/"):
                    new["value"] = min(1.0, replaced["score"] * (1 - 0.2 / line["step"]))
                lines[table].append(new)
    for table in TABLES:
        names = columns[table]
        database.executemany(
            f"insert into {table} ({','.join(names)}) values ({','.join('?' * len(names))})",
            [[line[name] for name in names] for line in lines[table]],
        )
    database.commit()
    database.close()


def _told(trial: Trial, row: Row, numbers: random.Random) -> dict[str, Any]:
    """Tags and metrics in which trials differ."""
    budget = row.budget.label if row.budget else "own"
    told = {"budget": budget, "asked": row.asked, "ratio": row.ratio, "within": row.within}
    ranks = ",".join(map(str, row.ranks))
    centre = 0.7 + 0.02 * np.log10(1 + row.parameters) + 0.01 * (hash_of(row.method) - 0.5)
    return {
        "mlflow.runName": f"{row.method} {ranks} · {row.task} · seed {trial.seed}",
        "trial_id": trial.id,
        "method": row.method,
        "backbone": row.backbone,
        "task": row.task,
        "seed": str(trial.seed),
        "ranks": ranks,
        "budget": budget,
        "budgets": json.dumps([told] if row.budget else []),
        "score": float(np.clip(numbers.gauss(centre, 0.01), 0, 1)),
        "parameters/adapter": row.parameters,
        "cost/step_ms": numbers.gauss(10, 1),
        "cost/peak_mib": numbers.gauss(100, 5),
    }


def hash_of(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return random.Random(name).random()


def timed(*arguments: str) -> tuple[float, float, int]:
    """Seconds, peak memory in MiB and exit code of the program."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bench", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    return time.perf_counter() - started, _mib(used), os.waitstatus_to_exitcode(status)


def _mib(used: resource.struct_rusage) -> float:
    return used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=10_000)
    asked = parser.parse_args()
    suite, uri = asked.folder / "large.yaml", f"sqlite:///{asked.folder / 'mlflow.db'}"
    if not (asked.folder / "mlflow.db").exists():
        started = time.perf_counter()
        suite, uri = write(asked.folder.absolute(), asked.trials)
        print(f"written in {time.perf_counter() - started:.0f} s")
    for arguments in (
        ("run", str(suite), "--store", uri, "--device", "cpu"),
        ("report", "large", "--store", uri, "--out", str(asked.folder / "report"), "--force"),
    ):
        seconds, mib, code = timed(*arguments)
        print(f"{arguments[0]}: {seconds:.1f} s, {mib:.0f} MiB at most, exit code {code}")


if __name__ == "__main__":
    main()
